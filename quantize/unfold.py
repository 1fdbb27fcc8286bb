"""Folded layers as a SpikingNetwork, to be trained further or run in floats: the way back from `quantize/fold.py`.

Every connection becomes a Linear or Conv2d of its own, with what was folded into its weights, but for max pooling,
which is found again. Weights, biases and decays per neuron are rounded to float32, by 2**-24 of their size at most;
thresholds and decays that a population shares stay as they are.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from base.errors import UserError
from quantize.folded import FoldedConnection, FoldedLayer
from train.network import SpikingNetwork
from train.neurons import LIF
from train.parts import Readout, Recurrent
from train.wiring import INPUT

WAY_OUT = "no SpikingNetwork can say that; quantize the folded layers as they are"


def network_of(layers: Sequence[FoldedLayer], input_shape: Sequence[int], payload_bits: int) -> SpikingNetwork:
    """The network of these layers, in float32, of inputs of that shape and width.

    `fold` makes the same layers of it, rounded as above; a connection of a population to itself comes last there, and
    clips are left to be found again. Populations keep their order, and their names where an attribute of a network
    could be called so; else other characters become "_", and a name that is taken gets one more. A surrogate is as
    wide as its threshold.
    Raises UserError for what a SpikingNetwork cannot say, and for populations called like a field of its.
    """
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and overwritten
        step = _Step(layers, tuple(input_shape), payload_bits)
    biased = any(layer.input_is_bias for layer in layers)
    network = SpikingNetwork(tuple(input_shape), step, payload_bits, input_is_bias=biased)
    if layers[-1].time_weights is not None:
        network.time_weights = _float32(layers[-1].time_weights)
    return network


class _Step(nn.Module):
    """One step through all populations: of each its name, the source and parts of its links, its neurons."""

    def __init__(self, layers: Sequence[FoldedLayer], input_shape: tuple[int, ...], payload_bits: int) -> None:
        super().__init__()
        self.populations: list[tuple[str, list[tuple[str, list[nn.Module]]], list[nn.Module]]] = []
        self.shapes = {INPUT: input_shape} | {layer.name: layer.shape for layer in layers}
        self.names = {INPUT: INPUT}
        for layer in layers:
            self.names[layer.name] = self.free(layer.name)
        for layer in layers:
            _check(layer)
            pooling = None if layer is layers[-1] else _max_pooling(layer, payload_bits)
            links: list[tuple[str, list[nn.Module]]] = []
            for connection in layer.connections:
                if connection.source == layer.name:  # the first synapse has these weights too
                    continue
                gain = 2**payload_bits - 1 if connection.source == INPUT else 1
                synapse = pooling or _synapse(layer, connection, gain, first=not links)
                links.append((connection.source, self.link(layer.name, connection, synapse, first=not links)))
            neurons = [] if pooling else [self.part(f"{self.names[layer.name]}_neurons", _neurons(layer))]
            self.populations.append((layer.name, links, neurons))

    def forward(self, image: Tensor) -> Tensor:
        emitted = {INPUT: image}
        for name, links, neurons in self.populations:
            first, *others = (_through(parts, emitted[source]) for source, parts in links)
            emitted[name] = _through(neurons, sum(others, start=first))
        return emitted[self.populations[-1][0]]

    def link(self, layer: str, connection: FoldedConnection, synapse: nn.Module, first: bool) -> list[nn.Module]:
        """The synapse, and what has to be in front of it; a population is called like the first one into it."""
        name = self.names[layer]
        flattening = not connection.geometry and len(self.shapes[connection.source]) > 1
        before = [self.part(f"{name}_flatten", nn.Flatten())] if flattening else []
        if not first:
            return [*before, self.part(f"{name}_from_{self.names[connection.source]}", synapse)]
        self.add_module(name, synapse)
        return [*before, synapse]

    def part(self, name: str, module: nn.Module) -> nn.Module:
        self.add_module(self.free(name), module)
        return module

    def free(self, name: str) -> str:
        """The name, as a part can have it. Tracing writes it into code, so nothing but a word may be in it."""
        own = re.sub(r"\W", "_", name, flags=re.ASCII)
        taken = (self, SpikingNetwork, fx.GraphModule)
        while own in self.names.values() or any(hasattr(one, own) for one in taken) or keyword.iskeyword(own):
            own += "_"
        return own


def _through(parts: Sequence[nn.Module], signal: Tensor) -> Tensor:
    for part in parts:
        signal = part(signal)
    return signal


def _check(layer: FoldedLayer) -> None:
    """Raises UserError for what of the layer's connections and bias a SpikingNetwork cannot say."""
    if all(connection.source == layer.name for connection in layer.connections):
        raise UserError(f"layer '{layer.name}' hears no other; {WAY_OUT}.")
    for connection in layer.connections:
        if connection.source != layer.name:
            if connection.delay:
                raise UserError(
                    f"layer '{layer.name}' hears '{connection.source}' after a delay of {connection.delay}, where only "
                    f"itself could be, after one of 1; {WAY_OUT}."
                )
        elif connection.delay != 1 or connection.geometry or len(layer.shape) != 1:
            how = "a convolution" if connection.geometry else "dense weights"
            raise UserError(
                f"layer '{layer.name}' of shape {layer.shape} hears itself through {how} after a delay of "
                f"{connection.delay}, where only a vector could, through dense weights, after one of 1; {WAY_OUT}."
            )
    if layer.bias.shape != layer.shape[:1]:
        raise UserError(
            f"layer '{layer.name}' of shape {layer.shape} has biases of shape {layer.bias.shape}, where only one for "
            f"each of {layer.shape[0]} neurons or channels could be; {WAY_OUT}."
        )


def _synapse(layer: FoldedLayer, connection: FoldedConnection, gain: int, first: bool) -> nn.Module:
    """The connection, its weights times `gain`; the first of a layer has the bias, and what it hears of itself."""
    weight = _float32(connection.weight * gain)
    biased = first and bool(layer.bias.any())
    feedback = [own.weight for own in layer.connections if own.source == layer.name] if first else []
    synapse: nn.Linear | nn.Conv2d
    if connection.geometry:
        outputs, channels, *kernel = weight.shape
        inputs = channels * connection.geometry["groups"]
        synapse = nn.Conv2d(inputs, outputs, tuple(kernel), **connection.geometry, bias=biased)  # type: ignore[arg-type]
    else:
        outputs, inputs = weight.shape
        synapse = (Recurrent if feedback else nn.Linear)(inputs, outputs, bias=biased)
    synapse.weight = nn.Parameter(weight)
    if biased:
        synapse.bias = nn.Parameter(_float32(layer.bias))
    if isinstance(synapse, Recurrent):
        synapse.recurrent = nn.Parameter(_float32(np.sum(feedback, axis=0)))
    return synapse


def _neurons(layer: FoldedLayer) -> LIF | Readout:
    if layer.neuron == "none":
        return Readout()
    alpha, beta = (_float32(share) if isinstance(share, np.ndarray) else share for share in (layer.alpha, layer.beta))
    reset: Any = layer.reset
    try:
        return LIF(beta, alpha, layer.threshold, reset, layer.floor, width=layer.threshold)
    except UserError as error:
        raise UserError(f"layer '{layer.name}': {error}; or quantize the folded layers as they are.") from error


def _max_pooling(layer: FoldedLayer, payload_bits: int) -> nn.MaxPool2d | None:
    """The pooling that the layer is if it fires at any spike of a window of its own channel."""
    first, *others = layer.connections
    shares = (layer.alpha, layer.beta)
    if any(isinstance(share, np.ndarray) for share in shares) or shares != (0.0, 1.0):
        return None
    if (layer.neuron, layer.threshold, layer.reset, layer.floor) != ("lif", 0.5, "hard", False) or layer.bias.any():
        return None
    if others or not first.geometry or (first.source == INPUT and payload_bits > 1):
        return None
    channels, heard, *kernel = first.weight.shape
    # In one group, as a NIR file has it, every channel hears the others through zeros.
    own = np.eye(channels) if first.geometry["groups"] == 1 else np.ones((channels, 1))
    if heard != own.shape[1] or not np.array_equal(first.weight, own[:, :, None, None] * np.ones(kernel)):
        return None
    stride, padding, dilation = (first.geometry[name] for name in ("stride", "padding", "dilation"))
    if any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):  # torch pools over no more
        return None
    return nn.MaxPool2d(tuple(kernel), stride, padding, dilation)


def _float32(values: np.ndarray) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)
