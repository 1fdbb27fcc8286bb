"""The one place where floats become integers: one grid per population for weights, bias and threshold.

A population's behaviour does not change when weights, bias and threshold are multiplied by one scale. So the scale is
chosen to use the chip's registers: the weight at which 8 bits are clipped becomes 254 (`quantize/grids.py` says where
that is, and what fewer bits are), and the connection's exponent the largest under which threshold and bias fit and,
whatever the input, no activation can leave 16 bits and no current 24. Where several connections lead into a population,
weaker ones get a finer mantissa and so many powers of two less exponent: all share the scale. Then, of 8 bits, with
S_w = 254 / clip of the strongest and S = S_w 2^exponent (docs/arithmetic.md, "From floats to integers"):

    weight = 2 round(S_w w / 2)     threshold = round(S th)     bias = round(64 S b)
    decay_v = round(4096 (1 - beta))     decay_u = round(4096 (1 - alpha)) - 1

Time weights become round(65536 f). Each is then at most 2^-17 off, so two classes of spikes change places only where
their weighted counts lie within T 2^-17 of each other.

A population whose bias the input is has no weights to follow. Its scale makes the threshold a whole number and the
largest bias that any input can give all but fill the mantissas; `input_biases` rounds to them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from base.errors import UserError
from quantize import arithmetic as rules
from quantize.fold import FoldedLayer
from quantize.grids import EIGHT_BITS, Grid, Precision, clip_of, grids, largest_scale
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population

THRESHOLD_MAX = (1 << rules.THRESHOLD_BITS) - 1
BIAS_MANTISSA_MAX = (1 << (rules.BIAS_BITS - 1)) - 1
# With the largest bias on top, a voltage at the threshold still fits into 24 bits.
BIASED_THRESHOLD_MAX = (rules.STATE_LIMIT - 1 - (BIAS_MANTISSA_MAX << rules.BIAS_EXPONENT_MAX)) >> rules.STATE_SHIFT
ACTIVATION_MAX = (1 << (rules.ACTIVATION_BITS - 1)) - 1
STATE_UNIT = 1 << rules.STATE_SHIFT
WEIGHT_BITS_TO_SPARE = 6  # of 8, where inputs are so wide or memory so long that no exponent alone keeps sums inside

Row = dict[str, Any]


def quantize(
    layers: Sequence[FoldedLayer],
    input_shape: tuple[int, ...],
    payload_bits: int,
    precision: Precision = EIGHT_BITS,
) -> tuple[IntegerNetwork, list[Row]]:
    """Folded layers as integers, the last one the output, and a table of every chosen integer: one row per connection,
    the first of a population with all that the population holds, of the output with its time weights.

    Where the first layer takes the input as a bias, the network's input is what `input_biases` makes of it.
    Raises UserError for what no register can hold: a decay outside its 12 bits, a threshold no scale can express; and
    for a precision of layers that are not there.
    """
    precision.check(layer.name for layer in layers if not layer.input_is_bias)
    populations: list[Population] = []
    connections: list[Connection] = []
    rows: list[Row] = []
    payload = (1 << payload_bits) - 1
    for layer in layers:
        if layer.input_is_bias:
            population, joined, table = _quantize_biased(layer, payload)
        else:
            population, joined, table = _quantize_layer(layer, payload, precision)
        populations.append(population)
        connections += joined
        rows += table
    output = layers[-1]
    time_weights = None
    if output.time_weights is not None:
        time_weights = np.rint(rules.TIME_WEIGHT_UNITY * output.time_weights).astype(np.int64)
        row = next(row for row in rows if row["population"] == output.name)
        row |= {
            "time_weights": _span(time_weights),
            "time_weight_error": float(np.abs(time_weights / rules.TIME_WEIGHT_UNITY - output.time_weights).max()),
        }
    biased = next((layer for layer in layers if layer.input_is_bias), None)
    network = IntegerNetwork(
        biased.shape if biased else tuple(input_shape),
        tuple(populations),
        tuple(connections),
        output.name,
        payload_bits,
        time_weights,
        biased.name if biased else "",
    )
    return network, rows


def input_biases(layers: Sequence[FoldedLayer], network: IntegerNetwork, inputs: np.ndarray) -> np.ndarray:
    """What the host loads for inputs [T, B, *shape], the same at every step: bias mantissas int16 [T, B, *input_shape].

    The first layer in float64, its bias included, rounded to the population's grid. The result is one step in memory.
    """
    (layer,) = (layer for layer in layers if layer.input_is_bias)
    (connection,), population = layer.connections, network[layer.name]
    shown, weight, bias = (torch.from_numpy(array).double() for array in (inputs[0], connection.weight, layer.bias))
    if connection.geometry:
        current = F.conv2d(shown, weight, bias, **connection.geometry)
    else:
        current = F.linear(shown.flatten(1), weight, bias)
    scale = float(population.threshold_mant) / layer.threshold
    mantissas = np.rint(current.numpy() * (STATE_UNIT * scale / 2**population.bias_exp)).astype(np.int16)
    return np.broadcast_to(mantissas, (len(inputs), *mantissas.shape))


def _quantize_biased(layer: FoldedLayer, payload: int) -> tuple[Population, list[Connection], list[Row]]:
    """A population whose bias the input is: no weights of its own, and a threshold without error."""
    decay_u, decay_v = _decays(layer)
    (connection,) = layer.connections
    flat = connection.weight.reshape(len(connection.weight), -1)
    least, most = (layer.bias + payload * part.sum(axis=1) for part in (flat.clip(max=0), flat.clip(min=0)))
    largest = float(max(np.abs(least).max(), np.abs(most).max()))
    for bias_exp in range(rules.BIAS_EXPONENT_MAX, -1, -1):
        filling = (BIAS_MANTISSA_MAX << bias_exp) / STATE_UNIT  # the largest bias, in units of the threshold's mantissa
        threshold = filling * layer.threshold / largest if largest else math.inf
        if threshold <= BIASED_THRESHOLD_MAX:
            break
    threshold_mant = int(min(threshold, BIASED_THRESHOLD_MAX))
    if threshold_mant < 1:
        raise UserError(
            f"layer '{layer.name}': the threshold {layer.threshold:g} rounds to 0 on the grid of its bias, which the "
            f"input can bring to {largest:g}; lower the weights or raise the threshold."
        )
    scale = threshold_mant / layer.threshold
    population = Population(
        layer.name,
        layer.shape,
        decay_u=decay_u,
        decay_v=decay_v,
        threshold_mant=np.asarray(threshold_mant),
        bias_mant=np.asarray(0),
        bias_exp=bias_exp,
        reset=layer.reset,
        floor=layer.floor,
    )
    row = {
        "population": layer.name,
        "from": f"{connection.source}, as bias",
        "neurons": population.size,
        "scale": scale,
        "threshold": layer.threshold,
        "threshold_mant": threshold_mant,
        "threshold_error": 0.0,
        "bias_min": round(STATE_UNIT * scale * least.min()),
        "bias_max": round(STATE_UNIT * scale * most.max()),
        "bias_exp": bias_exp,
        "bias_error": 2**bias_exp / (2 * STATE_UNIT * scale),
    }
    return population, [], [row | _decay_columns(layer, decay_u, decay_v)]


def _quantize_layer(
    layer: FoldedLayer, payload: int, precision: Precision
) -> tuple[Population, list[Connection], list[Row]]:
    decay_u, decay_v = _decays(layer)
    fitting = _fitting(layer, int(decay_u.min()), payload, precision)
    scale = _state_scale(fitting)
    threshold = round(scale * layer.threshold)
    bias_mant, bias_exp = _bias(np.rint(STATE_UNIT * scale * layer.bias).astype(np.int64))
    population = Population(
        layer.name,
        layer.shape,
        decay_u=decay_u,
        decay_v=decay_v,
        threshold_mant=np.asarray(threshold),
        bias_mant=bias_mant if len(layer.shape) == 1 else bias_mant.reshape(-1, 1, 1),
        bias_exp=bias_exp,
        reset=layer.reset,
        floor=layer.floor,
        neuron=layer.neuron,
    )
    connections, rows = [], []
    for connection, grid in zip(layer.connections, fitting, strict=True):
        geometry = {"delay": connection.delay, **connection.geometry}
        connections.append(Connection(connection.source, layer.name, grid.weight, grid.exponent, **geometry))
        rows.append(
            {
                "population": layer.name,
                "from": connection.source,
                "neurons": population.size,
                "weights": grid.weight.size,
                "bits": precision.of(layer.name),
                "levels": len(np.unique(grid.weight)),
                "scale": scale,
                "exponent": grid.exponent,
                "weight_min": int(grid.weight.min()),
                "weight_max": int(grid.weight.max()),
                "weight_error": float(np.abs(grid.weight / grid.scale - connection.weight).max()),
            }
        )
    rows[0] |= {
        "threshold": layer.threshold,
        "threshold_mant": threshold,
        "threshold_error": abs(threshold / scale - layer.threshold),
        "bias_min": int(population.bias.min()),
        "bias_max": int(population.bias.max()),
        "bias_exp": bias_exp,
        "bias_error": float(np.abs((bias_mant << bias_exp) / (STATE_UNIT * scale) - layer.bias).max()),
    } | _decay_columns(layer, decay_u, decay_v)
    return population, connections, rows


def _decays(layer: FoldedLayer) -> tuple[np.ndarray, np.ndarray]:
    """decay_u and decay_v. Raises UserError for one outside its 12 bits."""
    decay_u = _decay(layer, "alpha") - rules.CURRENT_DECAY_OFFSET
    decay_v = _decay(layer, "beta")
    for kept, decay, what in ((layer.alpha, decay_u, "alpha"), (layer.beta, decay_v, "beta")):
        outside = (decay < 0) | (decay >= rules.DECAY_UNITY)
        if outside.any():
            raise UserError(
                f"layer '{layer.name}': {what} = {np.asarray(kept)[outside][0]} is decay {decay[outside][0]}, outside "
                f"0..4095; the chip keeps shares {'0 to 4095/4096' if what == 'alpha' else '1/4096 to 1'} per step."
            )
    return decay_u, decay_v


def _decay_columns(layer: FoldedLayer, decay_u: np.ndarray, decay_v: np.ndarray) -> Row:
    return {
        "alpha": _span(layer.alpha),
        "decay_u": _span(decay_u),
        "beta": _span(layer.beta),
        "decay_v": _span(decay_v),
    }


def _decay(layer: FoldedLayer, what: str) -> np.ndarray:
    lost = rules.DECAY_UNITY * (1 - np.asarray(getattr(layer, what), np.float64))
    return np.asarray(np.rint(lost), np.int64)


def _span(values: Any) -> Any:
    """One number where all are equal, else the text "least..most"."""
    least, most = np.min(values).item(), np.max(values).item()
    return least if least == most else f"{least:.4g}..{most:.4g}"


def _state_scale(each: list[Grid]) -> float:
    """From floats to units of activation and threshold; the same by every connection."""
    return each[0].scale * 2.0 ** each[0].exponent


def _fitting(layer: FoldedLayer, decay_u: int, payload: int, precision: Precision = EIGHT_BITS) -> list[Grid]:
    """The grids of the largest exponent whose threshold and bias fit and under which no input can push a sum or current
    out."""
    memory = rules.DECAY_UNITY / (decay_u + rules.CURRENT_DECAY_OFFSET)  # how often a constant input adds up in u
    weights = [connection.weight for connection in layer.connections]
    bits = precision.of(layer.name)
    clips = [clip_of(weight, bits, precision.calibration) for weight in weights]
    bias, largest = np.abs(layer.bias).max(), max(np.abs(weight).max() for weight in weights)
    of_mantissas = largest_scale(clips, bits, if_zero=1 / (layer.threshold or 1.0))
    for exponent in range(rules.EXPONENT_MAX, rules.EXPONENT_MIN - WEIGHT_BITS_TO_SPARE - 1, -1):
        scale = of_mantissas * 2.0**exponent
        if (
            round(scale * layer.threshold) > THRESHOLD_MAX
            or STATE_UNIT * scale * bias > BIAS_MANTISSA_MAX << rules.BIAS_EXPONENT_MAX
        ):
            continue  # before any weight is rounded
        found = grids(weights, clips, bits, exponent, of_mantissas)
        activation = _strongest_sum(layer, found, payload)
        if activation <= ACTIVATION_MAX and STATE_UNIT * activation * memory < rules.STATE_LIMIT:
            if round(scale * layer.threshold) < 1 and layer.neuron == "lif":
                raise UserError(
                    f"layer '{layer.name}': the threshold {layer.threshold:g} rounds to 0 on the grid of its largest "
                    f"weight {largest:g}; lower the weights or raise the threshold."
                )
            return found
    raise UserError(
        f"layer '{layer.name}': no exponent in {rules.EXPONENT_MIN}..{rules.EXPONENT_MAX} holds threshold "
        f"{layer.threshold:g}, bias up to {bias:g} and weights up to {largest:g} together; "
        "bring them closer to each other."
    )


def _strongest_sum(layer: FoldedLayer, each: list[Grid], payload: int) -> float:
    """The largest activation, either way, that any spikes of all sources together can give a neuron."""
    up = down = np.zeros(len(layer.bias))
    for connection, grid in zip(layer.connections, each, strict=True):
        flat = grid.weight.reshape(len(grid.weight), -1)
        unit = (payload if connection.source == INPUT else 1) * 2.0**grid.exponent
        up = up + np.ceil(flat.clip(min=0).sum(axis=1) * unit)
        down = down + np.ceil(-flat.clip(max=0).sum(axis=1) * unit)
    return float(max(up.max(), down.max()))


def _bias(bias: np.ndarray) -> tuple[np.ndarray, int]:
    """Mantissas and the smallest common exponent for a bias in state units."""
    exponent = 0
    while np.abs(np.rint(bias / 2**exponent)).max() > BIAS_MANTISSA_MAX:
        exponent += 1
    return np.rint(bias / 2**exponent).astype(np.int64), exponent
