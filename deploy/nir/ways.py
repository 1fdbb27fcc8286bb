"""What lies between two populations of a NIR graph, node by node, as the weights of one connection."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from base.errors import UserError
from quantize import arithmetic as rules
from quantize.folded import conv_after_pooling, dense_after_pooling, depthwise

Node = dict[str, Any]

ROUNDED = 1e-6  # relative: factors as near to one, and delays to whole steps, are taken for what they are near to
WEIGHTS_MAX = 1 << 26  # of one connection, once pooling is within its weights


@dataclass(frozen=True)
class Way:
    """What lies between a population and one source of it, of shape `heard`, as far as it was followed: there the shape
    is `shape`. window: all poolings together. bias [O], where there is one."""

    source: str
    heard: tuple[int, ...]
    shape: tuple[int, ...]
    weight: np.ndarray | None = None
    geometry: dict[str, Any] | None = None
    bias: np.ndarray | float = 0.0
    scale: float = 1.0
    window: tuple[int, int] = (1, 1)
    delay: int = 0


def _dense(way: Way, node: Node, _: float) -> Way:
    weight = _first_weights(way, node, 2)
    if way.window != (1, 1):
        _check_size(weight.size * math.prod(way.window))
    if math.prod(way.shape) != weight.shape[1]:
        raise UserError(f"reads {weight.shape[1]} values, but hears a shape of {way.shape}; they must be as many.")
    if way.window != (1, 1):
        weight = dense_after_pooling(weight, way.heard, way.window)
    bias = _finite(node["bias"]) if "bias" in node else 0.0
    return replace(way, shape=(len(weight),), weight=weight * way.scale, bias=bias)


def _conv(way: Way, node: Node, _: float) -> Way:
    weight = _first_weights(way, node, 4)
    groups, padding = int(node["groups"]), node["padding"]
    geometry: dict[str, Any] = {name: _pair(node[name]) for name in ("stride", "dilation")}
    if isinstance(padding, str):
        spans = [d * (k - 1) for d, k in zip(geometry["dilation"], weight.shape[2:], strict=True)]
        if padding == "same" and (geometry["stride"] != (1, 1) or any(span % 2 for span in spans)):
            raise UserError("pads to the same size unevenly; give its padding as numbers.")
        padding = [span // 2 for span in spans] if padding == "same" else 0
    geometry |= {"padding": _pair(padding), "groups": groups}
    if len(way.shape) != 3 or way.shape[0] != weight.shape[1] * groups:
        raise UserError(f"reads {weight.shape[1] * groups} channels, but hears a shape of {way.shape}; they must fit.")
    shapes = (way.shape, weight.shape, geometry["stride"], geometry["padding"], geometry["dilation"])
    shape = rules.conv_shape(*shapes)
    if min(shape) < 1:
        raise UserError(f"would yield a shape of {shape}; lower its stride or kernel, or pad more.")
    if way.window != (1, 1):
        _check_size(weight.size * math.prod(geometry["dilation"]) * math.prod(way.window))
    weight, geometry = conv_after_pooling(weight, geometry, way.window)
    return replace(way, shape=shape, weight=weight * way.scale, geometry=geometry, bias=_finite(node["bias"]))


def _pool(way: Way, node: Node, _: float) -> Way:
    kernel, stride, padding = (_pair(node[name]) for name in ("kernel_size", "stride", "padding"))
    if way.weight is not None or len(way.shape) != 3:
        raise UserError(f"pools a shape of {way.shape} or behind weights; pool maps of spikes before their weights.")
    if kernel != stride or padding != (0, 0) or any(size % k for size, k in zip(way.shape[1:], kernel, strict=True)):
        raise UserError(
            f"has kernel {kernel}, stride {stride} and padding {padding} over {way.shape}; windows must lie side by "
            "side and fill the map."
        )
    channels, height, width = way.shape
    scale = way.scale / math.prod(kernel) if node["type"] == "AvgPool2d" else way.scale
    window = (way.window[0] * kernel[0], way.window[1] * kernel[1])
    return replace(way, shape=(channels, height // kernel[0], width // kernel[1]), scale=scale, window=window)


def _flatten(way: Way, node: Node, _: float) -> Way:
    if way.weight is not None or int(node["end_dim"]) not in (-1, len(way.shape) - 1) or int(node["start_dim"]) > 1:
        raise UserError("flattens a part, or behind weights; flatten all of the spikes before their weights.")
    return replace(way, shape=(math.prod(way.shape),))


def _scale(way: Way, node: Node, _: float) -> Way:
    values = _finite(node["scale"])
    if way.weight is None and (values == values.flat[0]).all():
        return replace(way, scale=way.scale * float(values.flat[0]))
    weighted = as_weights(way) if way.weight is None else way
    assert weighted.weight is not None
    rows = by_row(values, weighted.shape)
    return replace(weighted, weight=over_rows(weighted.weight, rows), bias=weighted.bias * rows)


def _delay(way: Way, node: Node, dt: float) -> Way:
    steps = _finite(node["delay"]) / dt
    whole = np.rint(steps)
    if (whole != whole.flat[0]).any() or (np.abs(steps - whole) > ROUNDED * np.maximum(whole, 1)).any():
        raise UserError(f"waits {span(steps)} steps of {dt:g} s; all spikes of a connection wait as many whole steps.")
    return replace(way, delay=way.delay + int(whole.flat[0]))


PASS: dict[str, Callable[[Way, Node, float], Way]] = {
    "Affine": _dense,
    "Linear": _dense,
    "Conv2d": _conv,
    "Scale": _scale,
    "Flatten": _flatten,
    "SumPool2d": _pool,
    "AvgPool2d": _pool,
    "Delay": _delay,
}


def as_weights(way: Way) -> Way:
    """A way without weights: each value goes on as it is, scaled."""
    if len(way.shape) == 3:
        _check_size(way.shape[0] * math.prod(way.window))
        weight, geometry = depthwise(np.full((way.shape[0], 1, *way.window), way.scale), way.window)
        return replace(way, weight=weight, geometry=geometry)
    _check_size(math.prod(way.shape) ** 2 * math.prod(way.window))
    weight = way.scale * np.eye(math.prod(way.shape))
    weight = weight if way.window == (1, 1) else dense_after_pooling(weight, way.heard, way.window)
    return replace(way, shape=(len(weight),), weight=weight)


def _first_weights(way: Way, node: Node, dimensions: int) -> np.ndarray:
    weight = _finite(node["weight"])
    if way.weight is not None:
        raise UserError("has weights, as has a node before it; put neurons in between.")
    if weight.ndim != dimensions:
        raise UserError(f"has weights of shape {weight.shape}; they have {dimensions} dimensions.")
    return weight


def _check_size(size: int) -> None:
    if size > WEIGHTS_MAX:
        raise UserError(f"needs {size:,} weights here, above the {WEIGHTS_MAX:,} that are made; make it smaller.")


def _finite(values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all() or not array.size:
        raise UserError("has numbers that are not finite, or none; train again with a lower learning rate.")
    return array


def _pair(values: Any) -> tuple[int, int]:
    first, second = np.broadcast_to(np.asarray(values), (2,)).tolist()
    return int(first), int(second)


def by_row(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One value for each neuron of (N,), or for each channel of (C, H, W): [N] or [C], never all of a large map."""
    if values.size == 1:
        return np.full(shape[0], values.flat[0])
    values = values.reshape(*[1] * (len(shape) - values.ndim), *values.shape)
    np.broadcast_to(values, shape)
    rows = values.reshape(len(values), -1)
    if (rows != rows[:, :1]).any():
        raise UserError(f"has {span(values)} within a channel; neurons of a channel share their weights' scale.")
    return np.broadcast_to(rows[:, 0], shape[:1])


def over_rows(weight: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return weight if (rows == 1).all() else weight * rows.reshape(-1, *[1] * (weight.ndim - 1))


def shared(values: np.ndarray, shape: tuple[int, ...]) -> float | np.ndarray:
    """One number where all are equal, else what broadcasts to the shape."""
    np.broadcast_to(values, shape)
    return float(values.flat[0]) if (values == values.flat[0]).all() else values


def span(values: Any) -> str:
    least, most = float(np.min(values)), float(np.max(values))
    return f"{least:g}" if least == most else f"{least:.4g}..{most:.4g}"
