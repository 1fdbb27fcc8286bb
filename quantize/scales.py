"""The one place where floats become integers: one grid per layer for weights, bias and threshold.

A layer's behaviour does not change when weights, bias and threshold are multiplied by one scale. So the scale is chosen
to use the chip's registers: the largest weight becomes 254, and the connection's exponent the largest under which
threshold and bias fit and, whatever the input, no activation can leave 16 bits and no current 24. Then, per layer, with
S_w = 254 / max|w| and S = S_w 2^exponent (docs/arithmetic.md, "From floats to integers"):

    weight = 2 round(S_w w / 2)     threshold = round(S th)     bias = round(64 S b)
    decay_v = round(4096 (1 - beta))     decay_u = round(4096 (1 - alpha)) - 1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from base.errors import UserError
from quantize import arithmetic as rules
from quantize.fold import FoldedLayer
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population

THRESHOLD_MAX = (1 << rules.THRESHOLD_BITS) - 1
BIAS_MANTISSA_MAX = (1 << (rules.BIAS_BITS - 1)) - 1
ACTIVATION_MAX = (1 << (rules.ACTIVATION_BITS - 1)) - 1
STATE_UNIT = 1 << rules.STATE_SHIFT

Row = dict[str, Any]


def quantize(
    layers: Sequence[FoldedLayer], input_shape: tuple[int, ...], payload_bits: int
) -> tuple[IntegerNetwork, list[Row]]:
    """A chain of folded layers as integers, and a table of every chosen integer: one row per layer.

    Raises UserError for what no register can hold: a decay outside its 12 bits, a threshold no scale can express.
    """
    populations, connections, rows = [], [], []
    source, payload = INPUT, (1 << payload_bits) - 1
    for layer in layers:
        population, connection, row = _quantize_layer(layer, source, payload)
        populations.append(population)
        connections.append(connection)
        rows.append(row)
        source, payload = layer.name, 1
    return IntegerNetwork(tuple(input_shape), tuple(populations), tuple(connections), source, payload_bits), rows


def _quantize_layer(layer: FoldedLayer, source: str, payload: int) -> tuple[Population, Connection, Row]:
    decay_u = round(rules.DECAY_UNITY * (1 - layer.alpha)) - rules.CURRENT_DECAY_OFFSET
    decay_v = round(rules.DECAY_UNITY * (1 - layer.beta))
    for kept, decay, what in ((layer.alpha, decay_u, "alpha"), (layer.beta, decay_v, "beta")):
        if not 0 <= decay < rules.DECAY_UNITY:
            raise UserError(
                f"layer '{layer.name}': {what} = {kept} is decay {decay}, outside 0..4095; the chip keeps shares "
                f"{'0 to 4095/4096' if what == 'alpha' else '1/4096 to 1'} per step."
            )
    largest = np.abs(layer.weight).max()
    weight_scale = rules.WEIGHT_MAX / largest if largest else 1 / layer.threshold
    weight = _even(weight_scale * layer.weight)
    exponent = _exponent(layer, weight, weight_scale, decay_u, payload)
    scale = weight_scale * 2.0**exponent
    threshold = round(scale * layer.threshold)
    bias_mant, bias_exp = _bias(np.rint(STATE_UNIT * scale * layer.bias).astype(np.int64))
    dense = not layer.geometry
    population = Population(
        layer.name,
        layer.shape,
        decay_u=np.asarray(decay_u),
        decay_v=np.asarray(decay_v),
        threshold_mant=np.asarray(threshold),
        bias_mant=bias_mant if dense else bias_mant.reshape(-1, 1, 1),
        bias_exp=bias_exp,
        reset=layer.reset,
        floor=layer.floor,
    )
    row = {
        "population": layer.name,
        "neurons": population.size,
        "weights": weight.size,
        "scale": scale,
        "exponent": exponent,
        "weight_min": int(weight.min()),
        "weight_max": int(weight.max()),
        "weight_error": float(np.abs(weight / weight_scale - layer.weight).max()),
        "threshold": layer.threshold,
        "threshold_mant": threshold,
        "threshold_error": abs(threshold / scale - layer.threshold),
        "bias_min": int(population.bias.min()),
        "bias_max": int(population.bias.max()),
        "bias_exp": bias_exp,
        "bias_error": float(np.abs((bias_mant << bias_exp) / (STATE_UNIT * scale) - layer.bias).max()),
        "alpha": layer.alpha,
        "decay_u": decay_u,
        "beta": layer.beta,
        "decay_v": decay_v,
    }
    return population, Connection(source, layer.name, weight, exponent, **layer.geometry), row


def _even(scaled: np.ndarray) -> np.ndarray:
    step = rules.WEIGHT_STEP
    return np.clip(step * np.rint(scaled / step), rules.WEIGHT_MIN, rules.WEIGHT_MAX).astype(np.int64)


def _exponent(layer: FoldedLayer, weight: np.ndarray, weight_scale: float, decay_u: int, payload: int) -> int:
    """The largest exponent whose threshold and bias fit and under which no input can push a sum or current out."""
    flat = weight.reshape(len(weight), -1)
    strongest = payload * max(flat.clip(min=0).sum(axis=1).max(), -flat.clip(max=0).sum(axis=1).min())
    memory = rules.DECAY_UNITY / (decay_u + rules.CURRENT_DECAY_OFFSET)  # how often a constant input adds up in u
    bias = np.abs(layer.bias).max()
    for exponent in range(rules.EXPONENT_MAX, rules.EXPONENT_MIN - 1, -1):
        scale = weight_scale * 2.0**exponent
        activation = np.ceil(strongest * 2.0**exponent)
        if (
            round(scale * layer.threshold) <= THRESHOLD_MAX
            and STATE_UNIT * scale * bias <= BIAS_MANTISSA_MAX << rules.BIAS_EXPONENT_MAX
            and activation <= ACTIVATION_MAX
            and STATE_UNIT * activation * memory < rules.STATE_LIMIT
        ):
            if round(scale * layer.threshold) < 1:
                raise UserError(
                    f"layer '{layer.name}': the threshold {layer.threshold:g} rounds to 0 on the grid of its largest "
                    f"weight {np.abs(layer.weight).max():g}; lower the weights or raise the threshold."
                )
            return exponent
    raise UserError(
        f"layer '{layer.name}': no exponent in {rules.EXPONENT_MIN}..{rules.EXPONENT_MAX} holds threshold "
        f"{layer.threshold:g}, bias up to {bias:g} and weights up to {np.abs(layer.weight).max():g} together; "
        "bring them closer to each other."
    )


def _bias(bias: np.ndarray) -> tuple[np.ndarray, int]:
    """Mantissas and the smallest common exponent for a bias in state units."""
    exponent = 0
    while np.abs(np.rint(bias / 2**exponent)).max() > BIAS_MANTISSA_MAX:
        exponent += 1
    return np.rint(bias / 2**exponent).astype(np.int64), exponent
