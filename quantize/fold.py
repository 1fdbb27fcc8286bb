"""Before any rounding: what trains apart becomes one layer of weights, bias, decays and threshold, in float64.

Pooling moves into the weights after it, the scale of graded inputs into the first layer. A folded layer fires the
spikes of the layer it came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from base.errors import UserError
from train.network import SpikingNetwork, Stage, SumPool2d


@dataclass(frozen=True, eq=False)
class FoldedLayer:
    """One population in float64: weight [O, I] over the flattened source or [O, C / groups, kh, kw], bias [O].

    alpha, beta: shares of current and voltage that are kept per step. `geometry` holds a convolution's stride, padding,
    dilation and groups, and is empty for a dense layer.
    """

    name: str
    shape: tuple[int, ...]
    weight: np.ndarray
    bias: np.ndarray
    alpha: float
    beta: float
    threshold: float
    reset: str
    floor: bool
    geometry: dict[str, Any] = field(default_factory=dict)


def fold(network: SpikingNetwork) -> tuple[FoldedLayer, ...]:
    """The network's populations, each folded. Raises UserError for weights that are not finite."""
    layers = [_fold_stage(stage) for stage in network.stages]
    unit = 1 / (2**network.payload_bits - 1)
    layers[0].weight[...] *= unit
    return tuple(layers)


def _fold_stage(stage: Stage) -> FoldedLayer:
    synapse, neuron = stage.synapse, stage.neuron
    weight = _float64(stage.name, "weight", synapse.weight)
    bias = np.zeros(len(weight)) if synapse.bias is None else _float64(stage.name, "bias", synapse.bias)
    window, share = _pooling(stage)
    geometry: dict[str, Any] = {}
    if isinstance(synapse, nn.Conv2d):
        weight, geometry = _conv_after_pooling(weight, synapse, window)
    elif window != (1, 1):
        weight = _dense_after_pooling(weight, stage.input_shape, window)
    return FoldedLayer(
        stage.name,
        stage.output_shape,
        weight * share,
        bias,
        neuron.alpha,
        neuron.beta,
        neuron.threshold,
        neuron.reset,
        neuron.floor,
        geometry,
    )


def _pooling(stage: Stage) -> tuple[tuple[int, int], float]:
    """Window of all the stage's poolings together, and the share each pooled spike has in their output."""
    height, width, share = 1, 1, 1.0
    for part in stage.before:
        if isinstance(part, (nn.AvgPool2d, SumPool2d)):
            size = part.kernel_size
            rows, columns = (size, size) if isinstance(size, int) else size
            height, width = height * rows, width * columns
            share /= rows * columns if isinstance(part, nn.AvgPool2d) else 1
    return (height, width), share


def _conv_after_pooling(
    weight: np.ndarray, conv: nn.Conv2d, window: tuple[int, int]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Pooling, then a convolution = one convolution whose kernel repeats each weight over the pooled window.

    Its stride and padding are the window times the old ones; a dilated kernel is spelled out with zeros first. Exact
    where the window divides the map, which the network guarantees.
    """
    (stride, padding, dilation) = (_pair(value) for value in (conv.stride, conv.padding, conv.dilation))
    if window != (1, 1):
        outputs, channels, height, width = weight.shape
        (down, right), dilation = dilation, (1, 1)
        spelled = np.zeros((outputs, channels, down * (height - 1) + 1, right * (width - 1) + 1))
        spelled[:, :, ::down, ::right] = weight
        weight = np.kron(spelled, np.ones(window))
        stride = (stride[0] * window[0], stride[1] * window[1])
        padding = (padding[0] * window[0], padding[1] * window[1])
    return weight, {"stride": stride, "padding": padding, "dilation": dilation, "groups": conv.groups}


def _dense_after_pooling(weight: np.ndarray, source: tuple[int, ...], window: tuple[int, int]) -> np.ndarray:
    """Pooling, then a dense layer = a dense layer over the map before: every weight repeated over its window."""
    channels, height, width = source
    maps = weight.reshape(len(weight), channels, height // window[0], width // window[1])
    return np.kron(maps, np.ones(window)).reshape(len(weight), -1)


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    return int(first), int(second)


def _float64(layer: str, what: str, tensor: torch.Tensor) -> np.ndarray:
    values = tensor.detach().cpu().double().numpy().copy()
    broken = np.argwhere(~np.isfinite(values))
    if len(broken):
        position = tuple(int(i) for i in broken[0])
        raise UserError(
            f"layer '{layer}': {what} at {position} is {values[position]}; only finite weights can be quantized, "
            "train again with a lower learning rate."
        )
    return values
