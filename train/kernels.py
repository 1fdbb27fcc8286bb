"""The steps of `train/scan.py` compiled: forward and backward over neurons that stay in cache for all steps.

Every kernel runs steps begin..end - 1 of neurons first..last - 1, going on from `state`, which it leaves as it is after
these steps. Arrays are [T, M], or [M], or [N] where all samples share values, or [1] where all neurons share one. What
a loop writes over and over lies in arrays of its own, and division does not look for zeros, so that LLVM uses vector
instructions.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from train.surrogates import SURROGATES

TRIANGULAR, RECTANGULAR, SIGMOID, FAST_SIGMOID, ARCTAN, SLAYER = range(len(SURROGATES))  # their places there

TILE = 4096  # neurons whose state stays in cache for all steps; fewer are shorter runs through memory


@njit(cache=True, nogil=True)
def fill(tile, values, start, stop):  # type: ignore[no-untyped-def]
    """Neurons start..stop - 1 of values [M], [N] or [1]; several times as fast as assigning a slice."""
    one, at = values[0], start
    if len(values) == 1:
        for i in range(stop - start):
            tile[i] = one
        return
    while at < stop:
        first = at % len(values)
        size = min(len(values) - first, stop - at)
        into, part = tile[at - start : at - start + size], values[first : first + size]
        for i in range(size):
            into[i] = part[i]
        at += size


@njit(cache=True, nogil=True)
def forward(  # type: ignore[no-untyped-def]
    first, last, begin, end, current, bias, spikes, state, alpha, beta, threshold, hard, floor, late
):  # fmt: skip
    """state [2, M]: current and voltage; [2, 1], those of all neurons, where nobody asks what is left. The membranes
    overwrite the current."""
    zero, one = np.float32(0), np.float32(1)
    u, v, drive = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    keep_u, keep_v = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for start in range(first, last, TILE):
        stop = min(start + TILE, last)
        size = stop - start
        fill(u, state[0], start, stop)
        fill(v, state[1], start, stop)
        fill(drive, bias, start, stop)
        fill(keep_u, alpha, start, stop)
        fill(keep_v, beta, start, stop)
        for t in range(begin, end):
            pre, fired = current[t, start:stop], spikes[t, start:stop]
            if late:
                for i in range(size):
                    u[i] = keep_u[i] * u[i] + pre[i]
                    reached = keep_v[i] * v[i] + u[i] + drive[i]
                    if hard:
                        pre[i] = reached
                        v[i] = zero if v[i] > threshold else reached
                    else:
                        v[i] = reached - threshold if v[i] > threshold else reached
                        pre[i] = v[i]
                    fired[i] = one if v[i] > threshold else zero
                    v[i] = zero if floor and v[i] < zero else v[i]
            else:
                for i in range(size):
                    u[i] = keep_u[i] * u[i] + pre[i]
                    reached = keep_v[i] * v[i] + u[i] + drive[i]
                    pre[i] = reached
                    fired[i] = one if reached > threshold else zero
                    voltage = (zero if hard else reached - threshold) if reached > threshold else reached
                    v[i] = zero if floor and voltage < zero else voltage
        if state.shape[1] == current.shape[1]:
            for i in range(size):
                state[0, start + i], state[1, start + i] = u[i], v[i]


@njit(cache=True, nogil=True, error_model="numpy")
def slope(shape, membrane, threshold, width, h):  # type: ignore[no-untyped-def]
    """The shapes of train/surrogates.py, at distances of membranes from the threshold."""
    zero, one = np.float32(0), np.float32(1)
    peak, size = one / width, len(membrane)
    if shape == TRIANGULAR:
        fall = one / (width * width)
        for i in range(size):
            risen = peak - abs(membrane[i] - threshold) * fall
            h[i] = risen if risen > zero else zero
    elif shape == RECTANGULAR:
        half = width / np.float32(2)
        for i in range(size):
            h[i] = peak if abs(membrane[i] - threshold) < half else zero
    elif shape == SIGMOID:
        steep = np.float32(4) * peak
        for i in range(size):
            h[i] = math.exp(-steep * abs(membrane[i] - threshold))
        for i in range(size):
            h[i] = steep * h[i] / ((one + h[i]) * (one + h[i]))
    elif shape == FAST_SIGMOID:
        steep = np.float32(2) * peak
        for i in range(size):
            below = one + steep * abs(membrane[i] - threshold)
            h[i] = peak / (below * below)
    elif shape == ARCTAN:
        steep = np.float32(math.pi) * peak
        for i in range(size):
            distance = steep * (membrane[i] - threshold)
            h[i] = peak / (one + distance * distance)
    elif shape == SLAYER:
        steep = np.float32(2) * peak
        for i in range(size):
            h[i] = peak * math.exp(-steep * abs(membrane[i] - threshold))


@njit(cache=True, nogil=True)
def backward(  # type: ignore[no-untyped-def]
    first, last, begin, end, grad_spikes, grad_membrane, membrane, widths, kept, spikes, earlier, grad_current,
    grad_bias, moment, state, alpha, beta, threshold, hard, floor, late, shape, gain, detached, dead_below_zero,
):  # fmt: skip
    """state [3, M]: gradients of current and voltage, and what a late reset costs; [3, 1], that of all neurons, where
    nobody asks what is left. spikes, earlier: those of all steps and of the one before, for hard late resets."""
    zero = np.float32(0)
    h, total, nothing = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.zeros(TILE, np.float32)
    grad_u, grad_v, cost = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    keep_u, keep_v = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    skips, deciding = hard and late, np.empty(TILE, np.float32)
    lowest = zero if floor else np.float32(-np.inf)
    highest = threshold if hard else np.float32(np.inf)
    by_level, by_threshold = np.float32(hard and not detached), zero if hard or detached else threshold
    for start in range(first, last, TILE):
        stop = min(start + TILE, last)
        size = stop - start
        fill(grad_u, state[0], start, stop)
        fill(grad_v, state[1], start, stop)
        fill(cost, state[2], start, stop)
        fill(total, grad_bias, start, stop)
        fill(keep_u, alpha, start, stop)
        fill(keep_v, beta, start, stop)
        for t in range(end - 1, begin - 1, -1):
            arriving, leaving = grad_spikes[t, start:stop], grad_current[t, start:stop]
            reached = membrane[t, start:stop]
            pre, before = reached, nothing[:size]
            if skips:
                before = spikes[t - 1, start:stop] if t > 0 else earlier[start:stop]
                pre = deciding[:size]
                for i in range(size):
                    membrane_then = reached[i]
                    pre[i] = zero if before[i] > zero else membrane_then
            slope(shape, pre, threshold, widths[t if len(widths) > 1 else 0], h)
            if len(kept) > 0:
                left = kept[t, start:stop]
                for i in range(size):
                    gained = h[i] * gain
                    h[i] = gained if left[i] else zero
            if dead_below_zero:
                for i in range(size):
                    alive = h[i]
                    h[i] = alive if pre[i] > zero else zero
            extra = grad_membrane[t, start:stop] if len(grad_membrane) > 0 else nothing[:size]
            if late:
                for i in range(size):
                    blamed = (arriving[i] - (zero if detached else cost[i])) * h[i]
                    on_v = (keep_v[i] * grad_v[i] if pre[i] > lowest else zero) + blamed + extra[i]
                    cost[i] = on_v * (reached[i] if hard else threshold)
                    on_v = zero if before[i] > zero else on_v
                    on_u = on_v + keep_u[i] * grad_u[i]
                    h[i], grad_v[i], grad_u[i], leaving[i] = blamed, on_v, on_u, on_u
                    total[i] += on_v
            else:
                for i in range(size):
                    kept_on = keep_v[i] * grad_v[i]
                    level = pre[i] if pre[i] > lowest else zero
                    blamed = (arriving[i] - kept_on * (by_level * level + by_threshold)) * h[i]
                    on_v = (kept_on if lowest < pre[i] <= highest else zero) + blamed + extra[i]
                    on_u = on_v + keep_u[i] * grad_u[i]
                    h[i], grad_v[i], grad_u[i], leaving[i] = blamed, on_v, on_u, on_u
                    total[i] += on_v
            if len(moment) > 0:
                moments = moment[start:stop]
                for i in range(size):
                    moments[i] += h[i] * (pre[i] - threshold)
        if state.shape[1] == membrane.shape[1]:
            for i in range(size):
                state[0, start + i], state[1, start + i], state[2, start + i] = grad_u[i], grad_v[i], cost[i]
        for i in range(size):
            grad_bias[start + i] = total[i]
