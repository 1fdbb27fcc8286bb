"""The one place where floats become integers: one grid per population for weights, bias and threshold.

A population's behaviour does not change when weights, bias and threshold are multiplied by one scale. So the scale is
chosen to use the chip's registers: the weight at which 8 bits are clipped becomes 254 (`quantize/grids.py` says where
that is, and what fewer bits are), and the connection's exponent the largest under which threshold and bias fit and,
whatever the input, no activation can leave 16 bits and no current and no voltage 24 (`quantize/bounds`). Where several
connections lead into a population, weaker ones get a finer mantissa and so many powers of two less exponent: all share
the scale. Then, of 8 bits, with
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
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit

from base.errors import UserError
from quantize import arithmetic as rules
from quantize.bounds.search import stays_inside
from quantize.fold import FoldedLayer, conducted
from quantize.grids import Grid, Rounded, clip_of, largest_of, over_rows, rounded, steps_of
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population
from quantize.precision import WITHOUT_SAMPLES, Precision

THRESHOLD_MAX = (1 << rules.THRESHOLD_BITS) - 1
BIAS_MANTISSA_MAX = (1 << (rules.BIAS_BITS - 1)) - 1
# With the largest bias on top, a voltage at the threshold still fits into 24 bits.
BIASED_THRESHOLD_MAX = (rules.STATE_LIMIT - 1 - (BIAS_MANTISSA_MAX << rules.BIAS_EXPONENT_MAX)) >> rules.STATE_SHIFT
ACTIVATION_MAX = (1 << (rules.ACTIVATION_BITS - 1)) - 1
STATE_UNIT = 1 << rules.STATE_SHIFT
NO_CURRENT = np.zeros((2, 1), np.int64)
WEIGHT_BITS_TO_SPARE = 6  # of 8, where inputs are so wide or memory so long that no exponent alone keeps sums inside
FINE_THRESHOLD = 1 << 5  # for the range of voltages no mantissa becomes smaller: rounding stays below 2 % of it
CALIBRATED_MARGIN = 2  # times what samples push a state to must fit, where that decides

Row = dict[str, Any]


class Quantized(NamedTuple):
    """One layer in integers. lost: 4096ths of current and voltage lost per step, broadcasting to its shape.
    threshold_mant: [] or per channel [O]. bias: mantissas times 2^bias_exp in state units, int64, [] or [O]. scale:
    from floats to units of activation and threshold, [] or [O]. grids: of its connections, none where the input is a
    bias. backed_off: by how many powers of two the scale is smaller than activations and currents alone would have it,
    so that no voltage leaves 24 bits."""

    lost: tuple[np.ndarray, np.ndarray]
    threshold_mant: np.ndarray
    bias: np.ndarray
    bias_exp: int
    scale: np.ndarray
    grids: tuple[Grid, ...]
    backed_off: int = 0


def quantize(
    layers: Sequence[FoldedLayer],
    input_shape: tuple[int, ...],
    payload_bits: int,
    precision: Precision = WITHOUT_SAMPLES,
) -> tuple[IntegerNetwork, list[Row]]:
    """Folded layers as integers, the last one the output, and a table of every chosen integer: one row per connection,
    the first of a population with all that the population holds, of the output with its time weights.

    Where the first layer takes the input as a bias, the network's input is what `input_biases` makes of it.
    Raises UserError for what no register can hold: a decay outside its 12 bits, a threshold no scale can express; and
    for a precision of layers that are not there.
    """
    return assembled(layers, quantize_each(layers, payload_bits, precision), input_shape, payload_bits, precision)


def assembled(
    layers: Sequence[FoldedLayer],
    each: Sequence[Quantized],
    input_shape: tuple[int, ...],
    payload_bits: int,
    precision: Precision,
) -> tuple[IntegerNetwork, list[Row]]:
    """The network and the table of `quantize`, from what `quantize_each` made of the layers."""
    output = layers[-1]
    time_weights = None
    if output.time_weights is not None:
        time_weights = np.rint(rules.TIME_WEIGHT_UNITY * output.time_weights).astype(np.int64)
    biased = next((layer for layer in layers if layer.input_is_bias), None)
    network = IntegerNetwork(
        biased.shape if biased else tuple(input_shape),
        tuple(_population(layer, quantized) for layer, quantized in zip(layers, each, strict=True)),
        tuple(
            Connection(joined.source, layer.name, grid.weight, grid.exponent, delay=joined.delay, **joined.geometry)
            for layer, quantized in zip(layers, each, strict=True)
            for joined, grid in zip(layer.connections, quantized.grids, strict=False)
        ),
        output.name,
        payload_bits,
        time_weights,
        biased.name if biased else "",
    )
    rows = [
        row
        for layer, quantized in zip(layers, each, strict=True)
        for row in _table(layer, quantized, network[layer.name], precision)
    ]
    if time_weights is not None:
        row = next(row for row in rows if row["population"] == output.name)
        row |= {
            "time_weights": _span(time_weights),
            "time_weight_error": float(np.abs(time_weights / rules.TIME_WEIGHT_UNITY - output.time_weights).max()),
        }
    return network, rows


def quantize_each(layers: Sequence[FoldedLayer], payload_bits: int, precision: Precision) -> list[Quantized]:
    """The layers as `quantize` takes them, one by one. Raises UserError likewise."""
    precision.check(layer.name for layer in layers if not layer.input_is_bias)
    payload = (1 << payload_bits) - 1
    return [
        _quantize_biased(layer, payload) if layer.input_is_bias else _quantize_layer(layer, payload, precision)
        for layer in layers
    ]


def input_biases(layers: Sequence[FoldedLayer], network: IntegerNetwork, inputs: np.ndarray) -> np.ndarray:
    """What the host loads for inputs [T, B, *shape], the same at every step: bias mantissas int16 [T, B, *input_shape].

    The first layer in float64, its bias included, rounded to the population's grid. The result is one step in memory.
    """
    (layer,) = (layer for layer in layers if layer.input_is_bias)
    (connection,), population = layer.connections, network[layer.name]
    current = conducted(connection, torch.from_numpy(inputs[0]).double(), torch.from_numpy(layer.bias).double())
    scale = float(population.threshold_mant) / layer.threshold
    mantissas = np.rint(current.numpy() * (STATE_UNIT * scale / 2**population.bias_exp)).astype(np.int16)
    return np.broadcast_to(mantissas, (len(inputs), *mantissas.shape))


def _quantize_biased(layer: FoldedLayer, payload: int) -> Quantized:
    """A population whose bias the input is: no weights of its own, and a threshold without error."""
    (connection,) = layer.connections
    flat = connection.weight.reshape(len(connection.weight), -1)
    least, most = (layer.bias + payload * part.sum(axis=1) for part in (flat.clip(max=0), flat.clip(min=0)))
    largest = float(max(np.abs(least).max(), np.abs(most).max()))
    chosen: Quantized | None = None
    for bias_exp in range(rules.BIAS_EXPONENT_MAX, -1, -1):
        filling = (BIAS_MANTISSA_MAX << bias_exp) / STATE_UNIT  # the largest bias, in units of the threshold's mantissa
        threshold = filling * layer.threshold / largest if largest else math.inf
        if threshold > BIASED_THRESHOLD_MAX and bias_exp:
            continue
        threshold_mant = int(min(threshold, BIASED_THRESHOLD_MAX))
        if chosen is not None and threshold_mant < FINE_THRESHOLD:
            break
        if threshold_mant < 1:
            raise UserError(
                f"layer '{layer.name}': the threshold {layer.threshold:g} rounds to 0 on the grid of its bias, which "
                f"the input can bring to {largest:g}; lower the weights or raise the threshold."
            )
        scale = np.asarray(threshold_mant / layer.threshold)
        made = Quantized(_lost(layer), np.asarray(threshold_mant), np.asarray(0), bias_exp, scale, ())
        chosen = chosen or made
        half = 1 << (rules.BIAS_BITS - 1)
        ends = (np.array([end << bias_exp]) for end in (-half, half - 1))
        _, inside = _stays_inside(layer, made, NO_CURRENT, *ends)
        if inside:
            return made._replace(backed_off=chosen.bias_exp - bias_exp)
    assert chosen is not None
    return chosen


def _quantize_layer(layer: FoldedLayer, payload: int, precision: Precision) -> Quantized:
    """The layer on the largest scale that holds its states; where only a scale that is too coarse would hold its
    voltages, or none, as if no leak makes up for a negative drive, on the largest that holds its currents."""
    lost = _lost(layer)
    chosen: Quantized | None = None
    for backed_off, (grids, sums) in enumerate(_fitting(layer, payload, precision)):
        made = _on(grids, layer, lost, precision)
        if layer.neuron == "none":
            return made
        threshold = made.threshold_mant.min()
        if chosen is None:
            if threshold < 1:
                clip = max(float(clip.max()) for clip in clips_of(layer, precision))
                raise UserError(
                    f"layer '{layer.name}': the threshold {layer.threshold:g} rounds to 0 on the grid of its weights, "
                    f"which end at {_largest(layer):g} and are clipped at {clip:g}; lower the weights, or the learning "
                    "rate of clips that are learned, or raise the threshold."
                )
        elif threshold < FINE_THRESHOLD or any(
            (a.scale != b.scale).any() for a, b in zip(grids, chosen.grids, strict=True)
        ):
            break
        current, voltage = _held(layer, made, sums, precision)
        if current and chosen is None:
            chosen, first = made, backed_off
        if current and voltage:
            return made._replace(backed_off=backed_off - first)
    if chosen is not None:
        return chosen
    least, most = precision.exponents
    raise UserError(
        f"layer '{layer.name}': no exponent in {least}..{most} holds threshold "
        f"{layer.threshold:g}, bias up to {np.abs(layer.bias).max():g} and weights up to {_largest(layer):g} together; "
        "bring them closer to each other."
    )


def _on(grids: list[Grid], layer: FoldedLayer, lost: tuple[np.ndarray, np.ndarray], precision: Precision) -> Quantized:
    """The layer on those grids."""
    scale = np.asarray(grids[0].scale * 2.0 ** grids[0].exponent)  # the same by every connection
    if scale.ndim and (scale == scale[0]).all():
        scale = np.asarray(scale[0])  # stock neurons hold one threshold
    each = scale.reshape(-1)
    threshold, bias, bias_exp = _in_units(each, layer.threshold, layer.bias, precision.bias_exponents[0])
    return Quantized(lost, threshold.reshape(scale.shape), bias, bias_exp, scale, tuple(grids))


def _held(layer: FoldedLayer, made: Quantized, sums: np.ndarray, precision: Precision) -> tuple[bool, bool]:
    """Whether 24 bits hold currents and voltages: under all that makes sums [2, O], or under samples with a margin."""
    if precision.range == "calibrated":
        if layer.reach is None:
            raise UserError(
                f"layer '{layer.name}': range = 'calibrated' takes samples; quantize what `calibrate` of "
                "quantize.calibration makes of the network, or choose range = 'proven'."
            )
        unit = STATE_UNIT * float(made.scale.max()) * CALIBRATED_MARGIN
        current, voltage = (unit * reach < rules.STATE_LIMIT for reach in layer.reach)
        return current, voltage
    return _stays_inside(layer, made, sums << rules.STATE_SHIFT, made.bias, made.bias)


def _stays_inside(
    layer: FoldedLayer, made: Quantized, currents: np.ndarray, least_bias: np.ndarray, most_bias: np.ndarray
) -> tuple[bool, bool]:
    lost = (_flat(share, layer) for share in made.lost)
    threshold = made.threshold_mant.reshape(-1) << rules.STATE_SHIFT
    kind = layer.reset.startswith("hard"), rules.is_late(layer.reset), layer.floor
    return stays_inside(currents, least_bias, most_bias, *lost, threshold, *kind)


def _flat(values: np.ndarray, layer: FoldedLayer) -> np.ndarray:
    """Values that broadcast to the layer's shape, one for all or for each neuron, [1] or [M]."""
    return (values if values.shape in ((), layer.shape) else np.broadcast_to(values, layer.shape)).reshape(-1)


def _population(layer: FoldedLayer, made: Quantized) -> Population:
    lost_u, lost_v = made.lost
    return Population(
        layer.name,
        layer.shape,
        lost_u - rules.CURRENT_DECAY_OFFSET,
        lost_v,
        _over(made.threshold_mant, layer),
        _over(made.bias >> made.bias_exp, layer),
        made.bias_exp,
        layer.reset,
        layer.floor,
        layer.neuron,
    )


def _over(values: np.ndarray, layer: FoldedLayer) -> np.ndarray:
    """Values [] or [O] in the shape that broadcasts over the layer's neurons."""
    return values.reshape(-1, *[1] * (len(layer.shape) - 1)) if values.ndim else values


def _table(layer: FoldedLayer, quantized: Quantized, population: Population, precision: Precision) -> list[Row]:
    """Every integer chosen for one layer, a row per connection."""
    scale = quantized.scale
    rows: list[Row] = [
        {
            "population": layer.name,
            "from": connection.source,
            "neurons": population.size,
            "weights": grid.weight.size,
            "bits": precision.of(layer.name),
            "levels": len(np.unique(grid.weight)),
            "scale": _span(scale),
            "exponent": grid.exponent,
            "weight_min": int(grid.weight.min()),
            "weight_max": int(grid.weight.max()),
            "weight_error": float(
                np.abs(over_rows(1 / grid.scale, grid.weight) * grid.weight - connection.weight).max()
            ),
        }
        for connection, grid in zip(layer.connections, quantized.grids, strict=False)
    ]
    if layer.input_is_bias:
        rows = [
            {
                "population": layer.name,
                "from": f"{layer.connections[0].source}, as bias",
                "neurons": population.size,
                "scale": _span(scale),
            }
        ]
        bias_error = 2**population.bias_exp / (2 * STATE_UNIT * float(scale))
    else:
        bias_error = float(np.abs(population.bias.reshape(-1) / (STATE_UNIT * scale) - layer.bias).max())
    threshold = population.threshold_mant.reshape(-1)
    rows[0] |= {
        "threshold": layer.threshold,
        "threshold_mant": _span(threshold),
        "threshold_error": float(np.abs(threshold / scale - layer.threshold).max()),
        "bias_min": int(population.bias.min()),
        "bias_max": int(population.bias.max()),
        "bias_exp": population.bias_exp,
        "bias_error": bias_error,
        "backed_off": quantized.backed_off,
        "alpha": _span(layer.alpha),
        "decay_u": _span(population.decay_u),
        "beta": _span(layer.beta),
        "decay_v": _span(population.decay_v),
    }
    return rows


def _lost(layer: FoldedLayer) -> tuple[np.ndarray, np.ndarray]:
    """4096ths of current and voltage lost per step. Raises UserError for a decay outside its 12 bits."""
    lost = [np.asarray(np.rint(rules.DECAY_UNITY * (1 - kept)), np.int64) for kept in (layer.alpha, layer.beta)]
    of_alpha = (layer.alpha, lost[0] - rules.CURRENT_DECAY_OFFSET, "alpha")
    for kept, decay, what in (of_alpha, (layer.beta, lost[1], "beta")):
        if np.count_nonzero(outside := decay >> rules.DECAY_BITS):
            share, refused = (np.asarray(values)[outside != 0][0] for values in (kept, decay))
            raise UserError(
                f"layer '{layer.name}': {what} = {share} is decay {refused}, outside "
                f"0..4095; the chip keeps shares {'0 to 4095/4096' if what == 'alpha' else '1/4096 to 1'} per step."
            )
    return lost[0], lost[1]


def _span(values: Any) -> Any:
    """One number where all are equal, else the text "least..most"."""
    least, most = np.min(values).item(), np.max(values).item()
    return least if least == most else f"{least:.4g}..{most:.4g}"


def _fitting(layer: FoldedLayer, payload: int, precision: Precision) -> Iterator[tuple[list[Grid], np.ndarray]]:
    """The grids of every exponent, from the largest on, whose threshold and bias fit and under which no input can push
    an activation out; and the sums [2, O], the least and the largest, that any input can make."""
    bits, weights = precision.of(layer.name), [connection.weight for connection in layer.connections]
    steps = steps_of(clips_of(layer, precision), bits, if_zero=1 / (layer.threshold or 1.0))
    of_mantissas = steps[0].scale * 2.0 ** -steps[0].finer
    threshold = largest_of(of_mantissas) * layer.threshold
    bias = STATE_UNIT * float(np.abs(of_mantissas * layer.bias).max())
    largest_bias = BIAS_MANTISSA_MAX << precision.bias_exponents[1]
    least, most = precision.exponents
    all_bits = least + max(step.finer for step in steps)  # the exponent down to which no mantissa gives up any
    each: list[Rounded] = []
    for exponent in range(most, least - WEIGHT_BITS_TO_SPARE - 1, -1):
        unit = 2.0**exponent
        if threshold * unit >= THRESHOLD_MAX + 0.5 or bias * unit > largest_bias:
            continue  # before any weight is rounded
        if not each or exponent < all_bits:
            lacks = [max(0, least - (exponent - step.finer)) for step in steps]
            each = [rounded(w, step, bits, lack) for w, step, lack in zip(weights, steps, lacks, strict=True)]
            sums = np.empty((len(each), *each[0].sums.shape))
            for into, connection, made, step, lack in zip(sums, layer.connections, each, steps, lacks, strict=True):
                payloads = payload if connection.source == INPUT else 1
                np.multiply(made.sums, payloads * 2.0 ** (lack - step.finer), out=into)
            most_alone = float(sums.max())
        if most_alone * unit > ACTIVATION_MAX:
            continue  # of one connection alone
        reached = _activations(sums, unit)
        if len(reached):
            exponents = [exponent - step.finer + lack for step, lack in zip(steps, lacks, strict=True)]
            grids = [Grid(made.weight, made.scale, power) for made, power in zip(each, exponents, strict=True)]
            yield grids, reached


@njit(cache=True)
def _activations(sums, unit):  # type: ignore[no-untyped-def]
    """The least and the largest activations, int64 [2, O], that connections make whose unshifted sums of weights have
    sizes [C, 2, O]; none, [0, O], if any leaves its register.

    What is negative is shifted with its sign, so both ends are rounded away from zero, by each connection."""
    connections, _, rows = sums.shape
    reached = np.empty((2, rows), np.int64)
    for row in range(rows):
        for end in range(2):
            size = 0.0
            for place in range(connections):
                size += np.ceil(sums[place, end, row] * unit)
            if size > ACTIVATION_MAX:
                return reached[:0]
            reached[end, row] = np.int64(size) if end else -np.int64(size)
    return reached


def clips_of(layer: FoldedLayer, precision: Precision) -> list[np.ndarray]:
    """Where the weights of each connection are clipped, [] or per channel [O]: where the layer says, or else where the
    precision's calibration does. Raises UserError where that takes samples."""
    if precision.calibration == "membrane" and any(connection.clip is None for connection in layer.connections):
        raise UserError(
            f"layer '{layer.name}': calibration = 'membrane' takes samples; quantize what `calibrate` of "
            "quantize.calibration makes of the network, or choose calibration = 'error'."
        )
    bits, per_channel = precision.of(layer.name), precision.separates(layer.neuron)
    return [
        clip_of(connection.weight, bits, precision.calibration, per_channel)
        if connection.clip is None
        else connection.clip
        for connection in layer.connections
    ]


def _largest(layer: FoldedLayer) -> float:
    return float(max(np.abs(connection.weight).max() for connection in layer.connections))


@njit(cache=True)
def _in_units(scale, threshold, bias, exponent):  # type: ignore[no-untyped-def]
    """By a scale [1] or [O] the threshold's mantissa, int64 likewise; the bias [O] in state units as multiples of
    2^exponent, int64, and the smallest such exponent, from that one on."""
    mantissa, state, largest = np.empty(len(scale), np.int64), np.empty(len(bias)), 0.0
    for i in range(len(scale)):
        mantissa[i] = np.rint(scale[i] * threshold)
    for i in range(len(bias)):
        state[i] = np.rint(STATE_UNIT * scale[i % len(scale)] * bias[i])
        largest = max(largest, abs(state[i]))
    while np.rint(largest / 2.0**exponent) > BIAS_MANTISSA_MAX:
        exponent += 1
    multiples = np.empty(len(bias), np.int64)
    for i in range(len(bias)):
        multiples[i] = np.int64(np.rint(state[i] / 2.0**exponent)) << exponent
    return mantissa, multiples, exponent
