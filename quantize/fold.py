"""Before any rounding: what trains apart becomes populations and the connections into them, in float64.

Pooling moves into the weights after it, a norm of currents into weights and bias, a norm of weights into them, then
KLIF's k into both and the decay, the scale of graded inputs into the weights that read them; max pooling of spikes is a
population of its own. A folded population fires the spikes of the one it came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn
from torch.nn import functional as F

from base.errors import UserError
from quantize.folded import FoldedConnection, FoldedLayer, Pair, conv_after_pooling, dense_after_pooling, depthwise
from train.network import SpikingNetwork
from train.neurons import LIF
from train.parts import ScaledWS, Skip, SumPool2d, running_affine
from train.wiring import INPUT, Link, Norm, Stage


@torch.no_grad()
def fold(network: SpikingNetwork) -> tuple[FoldedLayer, ...]:
    """The network's populations, each folded. Raises UserError for weights that are not finite."""
    clips: Mapping[str, Tensor] | nn.ParameterDict = network.clips or {}
    unit = 1 / (2**network.payload_bits - 1)
    layers = tuple(_fold_stage(stage, clips.get(stage.name), unit) for stage in network.stages)
    if network.time_weights is None:
        return layers
    *others, output = layers
    return (*others, replace(output, time_weights=_float64(output.name, "time weight", network.time_weights)))


def conducted(connection: FoldedConnection, maps: Tensor, bias: Tensor | None = None) -> Tensor:
    """Current [N, *shape] that a connection makes of maps [N, *source], in their precision; bias [O] is added."""
    weight = torch.from_numpy(connection.weight).to(maps)
    if connection.geometry:
        return F.conv2d(maps, weight, bias, **connection.geometry)
    return F.linear(maps.flatten(1), weight, bias)


def check_alive(layers: tuple[FoldedLayer, ...], payload_bits: int) -> None:
    """Raises UserError for a layer that has weights, but no neuron that any spikes could bring above its threshold.

    The bound is that of the strongest constant input: u up to sum / (1 - alpha), v up to (u + bias) / (1 - beta).
    """
    for layer in layers:
        if layer.neuron == "none" or not any(connection.weight.any() for connection in layer.connections):
            continue
        shape = (-1, *[1] * (len(layer.shape) - 1))
        drive = np.zeros(len(layer.bias))
        for connection in layer.connections:
            payload = 2**payload_bits - 1 if connection.source == INPUT else 1
            drive += payload * connection.weight.clip(min=0).reshape(len(drive), -1).sum(axis=1)
        current = drive.reshape(shape) / (1.0 if layer.input_is_bias else 1 - np.asarray(layer.alpha))
        pushed = current + layer.bias.reshape(shape)
        with np.errstate(divide="ignore", invalid="ignore"):  # without a leak there is no highest
            highest = np.where(pushed > 0, pushed / (1 - np.asarray(layer.beta)), 0.0).max()
        if highest <= layer.threshold:
            raise UserError(
                f"layer '{layer.name}': no input brings its voltage above {highest:.3g}, so its neurons never pass the "
                f"threshold {layer.threshold:g} and nothing behind them hears any; lower the threshold, raise beta, or "
                "train longer."
            )


def _fold_stage(stage: Stage, logarithms: Tensor | None, unit: float) -> FoldedLayer:
    """logarithms: base 2, of where the weights of each connection are clipped, if that is known. unit: of the input."""
    neuron, recurrent = stage.neuron, stage.recurrent
    k = _float64(stage.name, "k", neuron.k).item() if isinstance(neuron, LIF) and neuron.k is not None else 1.0
    clips: np.ndarray | list[None] = [None] * (len(stage.links) + 1)
    if logarithms is not None:
        clips = 2.0 ** _float64(stage.name, "clip", logarithms)
    folded = [
        _fold_link(stage.name, link, stage.output_shape, clip, k * (unit if link.source == INPUT else 1))
        for link, clip in zip(stage.links, clips, strict=False)
    ]
    connections = [connection for connection, _ in folded]
    bias = k * reduce(np.add, [bias for _, bias in folded])
    if recurrent is not None:
        feedback = k * _float64(stage.name, "recurrent weight", recurrent)
        connections.append(FoldedConnection(stage.name, feedback, delay=1, clip=clips[-1]))
    if isinstance(neuron, LIF):
        alpha, beta = (_share(stage.name, what, getattr(neuron, what)) for what in ("alpha", "beta"))
        constants = (alpha, beta, neuron.threshold, neuron.reset, neuron.floor)
        return FoldedLayer(
            stage.name, stage.output_shape, tuple(connections), bias, *constants, input_is_bias=stage.input_is_bias
        )
    # Without memory a threshold of half a spike is an OR; a readout has none.
    threshold, kind = (0.5, "lif") if neuron is None else (0.0, "none")
    return FoldedLayer(stage.name, stage.output_shape, tuple(connections), bias, 0.0, 1.0, threshold, neuron=kind)


def _share(layer: str, what: str, share: float | torch.Tensor) -> float | np.ndarray:
    if not isinstance(share, torch.Tensor):
        return share
    values = _float64(layer, what, share)
    return float(values) if values.ndim == 0 else values


def _fold_link(
    layer: str, link: Link, shape: tuple[int, ...], clip: np.ndarray | None, unit: float
) -> tuple[FoldedConnection, np.ndarray]:
    """The link as one connection, whose weights are to be so many times as large, and what it adds to the bias [O]."""
    synapse, (window, share) = link.synapse, pooling(link)
    if isinstance(synapse, nn.MaxPool2d):
        return FoldedConnection(link.source, *_or(synapse, shape[0]), clip=np.asarray(1.0)), np.zeros(shape[0])
    assert isinstance(synapse, (nn.Linear, nn.Conv2d, Skip))
    exact = synapse.weight.double() if isinstance(link.norm, ScaledWS) else synapse.weight
    values = _finite(layer, "weight", link.standardised(exact))
    bias = getattr(synapse, "bias", None)
    bias = np.zeros(len(values)) if bias is None else _float64(layer, "bias", bias)
    gain = np.array([unit * share])
    if isinstance(link.norm, Norm):
        of_norm, offset = _norm(layer, link.norm)
        gain, bias = gain * of_norm, offset + of_norm * bias
    weight = np.empty(values.shape)
    _multiply(values.reshape(len(values), -1), gain, weight.reshape(len(values), -1))
    geometry: dict[str, Any] = {}
    if isinstance(synapse, nn.Conv2d):
        geometry = {name: _pair(getattr(synapse, name)) for name in ("stride", "padding", "dilation")}
        weight, geometry = conv_after_pooling(weight, geometry | {"groups": synapse.groups}, window)
    elif len(shape) == 3:
        weight, geometry = depthwise(weight.reshape(-1, 1, 1, 1) * np.ones(window), window)
    elif isinstance(synapse, Skip):
        weight = np.diag(weight)
    if len(shape) == 1 and window != (1, 1):
        weight = dense_after_pooling(weight, link.input_shape, window)
    return FoldedConnection(link.source, weight, geometry, clip=clip), bias


def _norm(layer: str, norm: Norm) -> tuple[np.ndarray, np.ndarray]:
    gain, offset = running_affine(norm, torch.float64)
    return _float64(layer, "gain of the norm", gain), _float64(layer, "offset of the norm", offset)


def _or(pooling: nn.MaxPool2d, channels: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Any spike of the window: a kernel of ones on each channel by itself."""
    stride, padding, dilation = (_pair(value) for value in (pooling.stride, pooling.padding, pooling.dilation))
    return depthwise(np.ones((channels, 1, *_pair(pooling.kernel_size))), stride, padding, dilation)


def pooling(link: Link) -> tuple[Pair, float]:
    """Window of all the link's poolings together, and the share each pooled spike has in their output."""
    height, width, share = 1, 1, 1.0
    for part in link.before:
        if isinstance(part, (nn.AvgPool2d, SumPool2d)):
            rows, columns = _pair(part.kernel_size)
            height, width = height * rows, width * columns
            share /= rows * columns if isinstance(part, nn.AvgPool2d) else 1
    return (height, width), share


def unfolded(link: Link, weight: np.ndarray) -> np.ndarray:
    """A folded connection's weights in the shape of the link's synapse again: one of the equal ones of each window."""
    (height, width), _ = pooling(link)
    synapse = link.synapse
    if isinstance(synapse, nn.Conv2d):
        down, right = _pair(synapse.dilation) if (height, width) != (1, 1) else (1, 1)
        return weight[:, :, :: down * height, :: right * width]
    if weight.ndim == 4:
        return weight[:, 0, 0, 0]
    if (height, width) != (1, 1):
        channels, rows, columns = link.input_shape
        maps = weight.reshape(len(weight), channels, rows, columns)
        weight = maps[:, :, ::height, ::width].reshape(len(weight), -1)
    return np.diagonal(weight) if isinstance(synapse, Skip) else weight


def _pair(value: Any) -> Pair:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


@njit(cache=True)
def _multiply(values, gain, found):  # type: ignore[no-untyped-def]
    """Rows times their gains, [1] or [O], in float64: in one pass, where NumPy takes two or three."""
    for row in range(len(values)):
        one, into, own = values[row], found[row], gain[row % len(gain)]
        for i in range(len(one)):
            into[i] = one[i] * own


def _float64(layer: str, what: str, tensor: torch.Tensor) -> np.ndarray:
    return _finite(layer, what, tensor).astype(np.float64)


def _finite(layer: str, what: str, tensor: torch.Tensor) -> np.ndarray:
    values: np.ndarray = tensor.numpy(force=True)
    if not math.isfinite(np.vdot(values, values)) and not (finite := np.isfinite(values)).all():
        position = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise UserError(
            f"layer '{layer}': {what} at {position} is {values[position]}; only finite weights can be quantized, "
            "train again with a lower learning rate."
        )
    return values
