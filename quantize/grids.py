"""How fine the weights are: so many levels, one step apart, up to the weight where they are clipped.

    8 to 2 bits    levels -2^(bits - 1) .. 2^(bits - 1) - 1
    "ternary"      -1, 0, 1
    1 bit          -1, 1; a weight of zero is no synapse, and stays none

The largest level stands for the clip. In mantissas one level is 2^(9 - bits), as on a chip that stores so few bits, and
128 for ternary and 1 bit. Thresholds, biases and decays keep their full width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from base.errors import UserError, nearest
from quantize.arithmetic import EXPONENT_MIN, WEIGHT_MIN, WEIGHT_STEP

Bits = int | str
TERNARY = "ternary"
BITS: tuple[Bits, ...] = (8, 7, 6, 5, 4, 3, 2, 1, TERNARY)
CALIBRATIONS = ("max", "percentile", "error")
PERCENTILE = 99.9
# What "error" tries: quarter octaves down from the largest weight, then sixteenths around the best of them.
COARSE, FINE = 2.0 ** (-np.arange(20) / 4), 2.0 ** (np.array([0, -3, -2, -1, 1, 2, 3]) / 16)


@dataclass(frozen=True)
class Precision:
    """bits: of every layer's weights, 8 to 1 or "ternary"; per_layer: of some layers, by name. calibration: where the
    weights of a connection are clipped: where clipping and rounding together cost the least squared error ("error"), at
    the 99.9th percentile of their magnitudes ("percentile"), or at the largest ("max")."""

    bits: Bits = 8
    per_layer: Mapping[str, Bits] = field(default_factory=dict)
    calibration: str = "error"

    def __post_init__(self) -> None:
        chosen = {"bits": self.bits} | {f"per_layer.{name}": bits for name, bits in self.per_layer.items()}
        for key, bits in chosen.items():
            if bits not in BITS:
                raise UserError(f"quantize.{key}: {bits!r} is no width of weights; give 8 to 1, or '{TERNARY}'.")
        if self.calibration not in CALIBRATIONS:
            raise UserError(
                f"quantize.calibration: '{self.calibration}' is none; {nearest(self.calibration, CALIBRATIONS)}"
            )

    def of(self, layer: str) -> Bits:
        return self.per_layer.get(layer, self.bits)

    def check(self, layers: Iterable[str]) -> None:
        """Raises UserError for a name in per_layer that is none of the layers with weights."""
        known = set(layers)
        for name in self.per_layer:
            if name not in known:
                raise UserError(f"quantize.per_layer: '{name}' is no layer with weights; {nearest(name, known)}")


EIGHT_BITS = Precision()


class Grid(NamedTuple):
    """One connection's mantissas, float weight * scale, and its exponent."""

    weight: np.ndarray
    scale: float
    exponent: int


def clip_of(weight: np.ndarray, bits: Bits, calibration: str) -> float:
    """The magnitude that becomes the largest level; 0 for a connection of zeros."""
    sizes = np.abs(weight[weight != 0])
    if not sizes.size:
        return 0.0
    if calibration == "percentile":
        return float(np.percentile(sizes, PERCENTILE))
    clip = largest = float(sizes.max())
    if calibration == "error":
        for shares in (COARSE, FINE):
            clips = np.minimum(clip * shares, largest).tolist()
            clip = min(clips, key=lambda tried: _squared_error(weight, tried, bits))
    return clip


def largest_scale(clips: Sequence[float], bits: Bits, if_zero: float) -> float:
    """From floats to mantissas of the connection with the largest clip, which becomes the largest level; `if_zero`
    where all weights are zeros."""
    _, most = _levels(bits)
    return _unit(bits) * most / max(clips) if max(clips) else if_zero


def grids(weights: Sequence[np.ndarray], clips: Sequence[float], bits: Bits, exponent: int, scale: float) -> list[Grid]:
    """The weights of every connection into one population, where the one with the largest clip has that exponent and
    `largest_scale`.

    Mantissa scales are powers of two apart, the finest under which the clips fit. What an exponent below the chip's
    lacks is taken from the size of a level in mantissas, and where that is at its least, from the levels.
    """
    full, strongest = _unit(bits), max(clips)
    whole = round if bits == 1 else math.floor  # one bit clips nothing: the nearest power is the best
    found = []
    for weight, clip in zip(weights, clips, strict=True):
        finer = whole(math.log2(strongest / clip)) if clip else 0
        lacking = max(0, EXPONENT_MIN - (exponent - finer))
        unit, own = max(full >> lacking, WEIGHT_STEP), scale * 2.0 ** (finer - lacking)
        shown = np.sign(weight) * strongest / 2.0**finer if bits == 1 else weight
        mantissas = unit * np.clip(np.rint(shown * own / unit), *_levels(bits))
        found.append(Grid(mantissas.astype(np.int64), own, exponent - finer + lacking))
    return found


def _levels(bits: Bits) -> tuple[int, int]:
    """The least and the largest one."""
    if isinstance(bits, str) or bits == 1:
        return -1, 1
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def _unit(bits: Bits) -> int:
    """One level in mantissas."""
    least, _ = _levels(bits)
    return -WEIGHT_MIN // max(-least, 2)  # the chip has no +256


def _squared_error(weight: np.ndarray, clip: float, bits: Bits) -> float:
    least, most = _levels(bits)
    step = clip / most
    levels = np.sign(weight) if bits == 1 else np.clip(np.rint(weight / step), least, most)
    return float(((step * levels - weight) ** 2).sum())
