"""How fine the weights are: so many levels, one step apart, up to the weight where they are clipped.

    8 to 2 bits    levels -2^(bits - 1) .. 2^(bits - 1) - 1
    "ternary"      -1, 0, 1
    1 bit          -1, 1; a weight of zero is no synapse, and stays none

The largest level stands for the clip. In mantissas one level is 2^(9 - bits), as on a chip that stores so few bits, and
128 for ternary and 1 bit. Thresholds, biases and decays keep their full width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
from numba import njit

from quantize.arithmetic import WEIGHT_MIN, WEIGHT_STEP
from quantize.precision import Bits

PERCENTILE = 99.9
# What "error" tries: quarter octaves down from the largest weight, then sixteenths around the best of them.
COARSE, FINE = 2.0 ** (-np.arange(20) / 4), 2.0 ** (np.array([0, -3, -2, -1, 1, 2, 3]) / 16)
IN_32_BITS = 1 << 22  # mantissas, whose sizes add up to 2^30 at most
WEAKEST_CHANNEL = 16  # times weaker than the strongest: one weaker still gets no scale of its own, so thresholds fit


class Grid(NamedTuple):
    """One connection's mantissas, float weight * scale ([], or [O] for each output by itself), and its exponent."""

    weight: np.ndarray
    scale: np.ndarray
    exponent: int


class Step(NamedTuple):
    """How a connection's weights become mantissas: times scale, [] or [O], which is `finer` powers of two finer than
    that of the strongest connection into the population."""

    scale: np.ndarray
    finer: int


def clip_of(weight: np.ndarray, bits: Bits, calibration: str, per_channel: bool = False) -> np.ndarray:
    """The magnitude that becomes the largest level, [], or per channel [O]; 0 for weights of zeros."""
    rows = weight.reshape(len(weight) if per_channel else 1, -1)
    sizes = np.abs(rows)
    largest = sizes.max(axis=1)
    if calibration == "percentile":
        clips = np.array([np.percentile(row[row > 0], PERCENTILE) if row.any() else 0.0 for row in sizes])
    elif calibration == "max":
        clips = largest
    else:
        clips = best_clip(largest, lambda clip: np.square(clipped(rows, clip, bits) - rows).sum(axis=1))
    return clips if per_channel else clips[0]


def best_clip(largest: np.ndarray, error: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The clips of least error among those tried, of the largest weights [C], each channel's error [C] by itself."""
    best = largest
    for shares in (COARSE, FINE):
        tried = np.minimum(best * shares[:, None], largest)
        best = tried[np.argmin([error(clip) for clip in tried], axis=0), np.arange(len(largest))]
    return best


def steps_of(clips: Sequence[np.ndarray], bits: Bits, if_zero: float) -> list[Step]:
    """How the weights of all connections into one population become mantissas, given where each is clipped.

    Scales are powers of two apart, the finest under which every clip fits. if_zero: the scale where all weights are 0.
    """
    _, most = levels(bits)
    widest = [largest_of(clip) for clip in clips]
    strongest = max(widest)
    if not strongest:
        return [Step(np.asarray(if_zero), 0)] * len(clips)
    whole = round if bits == 1 else math.floor  # one bit clips nothing: the nearest power is the best
    finer = [whole(math.log2(strongest / clip)) if clip else 0 for clip in widest]
    brought = [clip * 2.0**powers for clip, powers in zip(clips, finer, strict=True)]
    shared = brought[int(np.argmax(widest))] if bits == 1 else reduce(np.maximum, brought)
    scale = _unit(bits) * most / np.maximum(shared, strongest / WEAKEST_CHANNEL)
    return [Step(scale * 2.0**powers, powers) for powers in finer]


class Rounded(NamedTuple):
    """Mantissas, int16, of weights times scale, [] or [O]; and of each row the size of the sum of its negative and that
    of its positive ones, int64 [2, O]."""

    weight: np.ndarray
    scale: np.ndarray
    sums: np.ndarray


def rounded(weight: np.ndarray, step: Step, bits: Bits, lacking: int) -> Rounded:
    """The weights as mantissas, where the least exponent lacks so many powers of two: these are taken from the size of
    a level in mantissas, and where that is at its least, from the levels."""
    unit, scale = max(_unit(bits) >> lacking, WEIGHT_STEP), step.scale * 2.0**-lacking
    rows = weight.reshape(len(weight), -1)
    mantissas, sums = np.empty(rows.shape, np.int16), np.empty((2, len(rows)), np.int64)
    _round_rows(rows, np.array(scale / unit, ndmin=1), *levels(bits), unit, bits == 1, mantissas, sums)
    return Rounded(mantissas.reshape(weight.shape), scale, sums)


@njit(cache=True)
def _round_rows(rows, scale, least, most, unit, sign_alone, mantissas, sums):  # type: ignore[no-untyped-def]
    for row in range(len(rows)):
        values, found, own = rows[row], mantissas[row], scale[row % len(scale)]
        for i in range(len(values)):
            level = np.sign(values[i]) if sign_alone else min(max(np.rint(values[i] * own), least), most)
            found[i] = np.int32(level) * unit
        sums[:, row] = 0
        for start in range(0, len(found), IN_32_BITS):
            negative, positive = _signed_sums(found[start : start + IN_32_BITS])
            sums[0, row] += negative
            sums[1, row] += positive


@njit(cache=True, nogil=True)
def _signed_sums(mantissas):  # type: ignore[no-untyped-def]
    """Of sizes of what is negative, and of what is positive, in 32 bits: of these twice as many are added at once."""
    total = size = np.int32(0)
    for i in range(len(mantissas)):
        mantissa = np.int32(mantissas[i])
        total += mantissa
        size += abs(mantissa)
    return (size - total) // 2, (size + total) // 2


def largest_of(values: np.ndarray) -> float:
    """Of values [] or [O]; NumPy is slow to find it of one."""
    return float(values.max() if values.ndim else values)


def over_rows(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Values [] or [O] in the shape that broadcasts over weights [O, ...]."""
    return values.reshape(-1, *[1] * (weight.ndim - 1)) if values.ndim else values


def clipped(rows: np.ndarray, clips: np.ndarray, bits: Bits) -> np.ndarray:
    """What weights [C, N], each row clipped at its own of clips [C], are on their grid, as floats."""
    least, most = levels(bits)
    step = np.where(clips > 0, clips, 1.0)[:, None] / most
    return step * (np.sign(rows) if bits == 1 else np.clip(np.rint(rows / step), least, most))


def levels(bits: Bits) -> tuple[int, int]:
    """The least and the largest one."""
    if isinstance(bits, str) or bits == 1:
        return -1, 1
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def _unit(bits: Bits) -> int:
    """One level in mantissas."""
    least, _ = levels(bits)
    return -WEIGHT_MIN // max(-least, 2)  # the chip has no +256
