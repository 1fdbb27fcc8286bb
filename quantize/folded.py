"""Folded networks as plain data in float64, which need no torch: populations, what leads into them, and the weights
that a synapse behind pooling becomes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from quantize.integer_network import INPUT

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class FoldedConnection:
    """weight [O, I] over the flattened source or [O, C / groups, kh, kw]; `geometry` holds a convolution's stride,
    padding, dilation and groups, and is empty for a dense one. delay in steps. clip: where weights are clipped when
    they are rounded, [] or per channel [O]; None where that is still to be found."""

    source: str
    weight: np.ndarray
    geometry: dict[str, Any] = field(default_factory=dict)
    delay: int = 0
    clip: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class FoldedLayer:
    """One population in float64, and what leads into it. bias [O]: one per neuron, or per channel of a shape (C, H, W).

    alpha, beta: shares of current and voltage that are kept per step, broadcasting to the shape. neuron: "lif", or
    "none" for a current readout, to which decays and threshold mean nothing. time_weights [T]: of the output, how much
    each step counts where the host sums it; None: all the same. input_is_bias: whether its one connection, from the
    input, adds to the voltage as the bias does, and not to the current. reach: the largest magnitudes of u and v that
    samples push the float neurons to; None where none were looked at.
    """

    name: str
    shape: tuple[int, ...]
    connections: tuple[FoldedConnection, ...]
    bias: np.ndarray
    alpha: float | np.ndarray
    beta: float | np.ndarray
    threshold: float
    reset: str = "hard"
    floor: bool = False
    neuron: str = "lif"
    time_weights: np.ndarray | None = None
    input_is_bias: bool = False
    reach: tuple[float, float] | None = None


def conv_after_pooling(weight: np.ndarray, geometry: dict[str, Any], window: Pair) -> tuple[np.ndarray, dict[str, Any]]:
    """Pooling, then a convolution = one convolution whose kernel repeats each weight over the pooled window.

    Its stride and padding are the window times the old ones; a dilated kernel is spelled out with zeros first. Exact
    where the window divides the map, which the network guarantees.
    """
    if window == (1, 1):
        return weight, geometry
    outputs, channels, height, width = weight.shape
    down, right = geometry["dilation"]
    spelled = np.zeros((outputs, channels, down * (height - 1) + 1, right * (width - 1) + 1))
    spelled[:, :, ::down, ::right] = weight
    stride, padding = ((geometry[name][0] * window[0], geometry[name][1] * window[1]) for name in ("stride", "padding"))
    return _repeated(spelled, window), geometry | {"stride": stride, "padding": padding, "dilation": (1, 1)}


def dense_after_pooling(weight: np.ndarray, source: tuple[int, ...], window: Pair) -> np.ndarray:
    """Pooling, then a dense layer = a dense layer over the map before: every weight repeated over its window."""
    channels, height, width = source
    maps = weight.reshape(len(weight), channels, height // window[0], width // window[1])
    return _repeated(maps, window).reshape(len(weight), -1)


def _repeated(maps: np.ndarray, window: Pair) -> np.ndarray:
    """Maps [..., H, W] with every value over a window of its own."""
    return maps.repeat(window[0], axis=-2).repeat(window[1], axis=-1)


def depthwise(
    kernel: np.ndarray, stride: Pair, padding: Pair = (0, 0), dilation: Pair = (1, 1)
) -> tuple[np.ndarray, dict[str, Any]]:
    """Every channel by itself: kernel [C, 1, kh, kw] and its geometry."""
    return kernel, {"stride": stride, "padding": padding, "dilation": dilation, "groups": len(kernel)}


def with_input_scaled(layers: tuple[FoldedLayer, ...], unit: float) -> tuple[FoldedLayer, ...]:
    """Layers whose weights from the input are so many times as large."""
    return tuple(
        replace(
            layer,
            connections=tuple(
                replace(joined, weight=joined.weight * unit) if joined.source == INPUT else joined
                for joined in layer.connections
            ),
        )
        for layer in layers
    )
