"""The integer contract `loihi-lif-v1`: what one neuron and one synapse do in one step.

Every other implementation in the project (the engine, Lava's processes) is tested against these functions, which say
each rule once and literally, in 64-bit NumPy integers. docs/arithmetic.md is the same page in prose.

    activation   a = sum over connections of shift(W s, exponent)
    current      u = wrap(truncate(u (4096 - (decay_u + 1)) / 4096) + a 2^6)
    voltage      v = saturate(truncate(v (4096 - decay_v) / 4096) + u + bias)         and max(v, 0) with a floor
    spike        s = v > threshold 2^6
    reset        v = 0 (hard) or v - threshold 2^6 (soft), where s; late, in the voltage of the next step
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

ARITHMETIC_ID = "loihi-lif-v1"

STATE_BITS = 24  # u and v: signed
STATE_LIMIT = 1 << (STATE_BITS - 1)  # u lies in (-2^23, 2^23], v in [-(2^23 - 1), 2^23 - 1]
DECAY_BITS = 12  # decay_u, decay_v: unsigned
DECAY_UNITY = 1 << DECAY_BITS
CURRENT_DECAY_OFFSET = 1  # the chip adds one to decay_u, so that 4095 means "no memory"
THRESHOLD_BITS = 17  # mantissa, unsigned
STATE_SHIFT = 6  # activations and threshold mantissas are aligned with the state by this shift
BIAS_BITS = 13  # mantissa, signed
BIAS_EXPONENT_MAX = 7
WEIGHT_MIN, WEIGHT_MAX = -256, 254  # mixed sign: 8 bits whose lowest is dropped, so only even numbers
WEIGHT_STEP = 2
EXPONENT_MIN, EXPONENT_MAX = -8, 7
ACTIVATION_BITS = 16  # signed; Loihi 1 wraps beyond, Lava does not look
DELAY_MAX = 62
RESETS = ("hard", "soft", "hard-late", "soft-late")
TIME_WEIGHT_UNITY = 1 << 16  # where the host weighs the output's steps: the integer that stands for 1


def truncate_toward_zero(product: np.ndarray) -> np.ndarray:
    """product / 4096 without its fraction, int64: the sign apart, the magnitude shifted."""
    return np.sign(product) * (np.abs(product) >> DECAY_BITS)


def wrap_current(current: np.ndarray) -> np.ndarray:
    """One wrap by 2^24 into (-2^23, 2^23]. Not two's complement: -2^23 becomes +2^23, as in Lava."""
    wrapped = np.where(current > STATE_LIMIT, current - 2 * STATE_LIMIT, current)
    return np.where(current <= -STATE_LIMIT, current + 2 * STATE_LIMIT, wrapped)


def saturate_voltage(voltage: np.ndarray) -> np.ndarray:
    """Clip to plus or minus (2^23 - 1)."""
    return np.clip(voltage, -(STATE_LIMIT - 1), STATE_LIMIT - 1)


@dataclass(frozen=True)
class Rules:
    """The rules of the step that another implementation could get wrong.

    The contract is `LOIHI_LIF_V1`. A first divergence is explained by running the reference with one rule replaced.
    """

    truncate: Callable[[np.ndarray], np.ndarray] = truncate_toward_zero
    wrap: Callable[[np.ndarray], np.ndarray] = wrap_current
    saturate: Callable[[np.ndarray], np.ndarray] = saturate_voltage
    fires: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.greater
    current_decay_offset: int = CURRENT_DECAY_OFFSET


LOIHI_LIF_V1 = Rules()


def lif_step(
    u: np.ndarray,
    v: np.ndarray,
    activation: np.ndarray,
    *,
    decay_u: np.ndarray | int,
    decay_v: np.ndarray | int,
    threshold_mant: np.ndarray | int,
    bias: np.ndarray | int,
    reset: str,
    floor: bool,
    rules: Rules = LOIHI_LIF_V1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of a population: (u, v, activation) -> (u, v after reset, spikes), each int64 of one shape, spikes bool.

    `bias` is in state units (mantissa shifted by its exponent). A late reset is that of the step before, which the v
    it left still tells. Lava: `AbstractPyLifModelFixed.run_spk`.
    """
    hard, late = reset.startswith("hard"), is_late(reset)
    threshold = np.asarray(np.int64(threshold_mant) << STATE_SHIFT)
    u, v = np.asarray(u, np.int64), np.asarray(v, np.int64)
    u = rules.truncate(u * (DECAY_UNITY - (np.int64(decay_u) + rules.current_decay_offset)))
    u = rules.wrap(u + (np.asarray(activation, np.int64) << STATE_SHIFT))
    fired = rules.fires(v, threshold)
    v = rules.truncate(v * (DECAY_UNITY - np.int64(decay_v))) + u + np.int64(bias)
    if late:
        v = np.where(fired, 0 if hard else v - threshold, v)
    v = rules.saturate(v)
    if floor:
        v = np.maximum(v, 0)
    spikes = rules.fires(v, threshold)
    if not late:
        v = np.where(spikes, 0 if hard else v - threshold, v)
    return u, v, spikes


def is_late(reset: str) -> bool:
    """Whether neurons are reset in the step after the spike, as in snnTorch with `reset_delay`."""
    return reset.endswith("-late")


def readout_current(activation: np.ndarray, bias: np.ndarray | int) -> np.ndarray:
    """What a readout without neurons yields in a step, int64 in state units: 64 a + bias, nothing kept."""
    return (np.asarray(activation, np.int64) << STATE_SHIFT) + np.int64(bias)


def shift(accumulated: np.ndarray, exponent: int) -> np.ndarray:
    """accumulated * 2^exponent; a negative exponent shifts the SUM right, towards minus infinity (as `weight_exp`)."""
    return accumulated << exponent if exponent >= 0 else accumulated >> -exponent


def dense_sum(spikes: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """spikes [B, ...] (flattened per sample to I), weight [O, I] -> int64 [B, O]."""
    return spikes.reshape(len(spikes), -1).astype(np.int64) @ weight.astype(np.int64).T


def conv_sum(
    spikes: np.ndarray,
    weight: np.ndarray,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> np.ndarray:
    """Cross-correlation as in torch: spikes [B, C, H, W], weight [O, C / groups, kh, kw] -> int64 [B, O, H', W']."""
    (rows, columns), (down, right) = padding, dilation
    out_channels, group_channels, height, width = weight.shape
    padded = np.pad(spikes.astype(np.int64), ((0, 0), (0, 0), (rows, rows), (columns, columns)))
    span = (down * (height - 1) + 1, right * (width - 1) + 1)
    windows: np.ndarray = sliding_window_view(padded, span, (2, 3))[  # type: ignore[call-overload]
        :, :, :: stride[0], :: stride[1], ::down, ::right
    ]
    per_group = out_channels // groups
    parts = [
        np.einsum(
            "bchwij,ocij->bohw",
            windows[:, g * group_channels : (g + 1) * group_channels],
            weight[g * per_group : (g + 1) * per_group].astype(np.int64),
        )
        for g in range(groups)
    ]
    return np.concatenate(parts, axis=1)


def conv_shape(
    source: tuple[int, int, int],
    weight: tuple[int, int, int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int]:
    """Shape [O, H', W'] of a convolution of weight [O, C / groups, kh, kw] over [C, H, W]; H' or W' may be below 1."""
    height, width = (
        (size + 2 * pad - step * (kernel - 1) - 1) // jump + 1
        for size, kernel, jump, pad, step in zip(source[1:], weight[2:], stride, padding, dilation, strict=True)
    )
    return weight[0], height, width
