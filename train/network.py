"""A spiking network as a chain of populations, each made of parts that have an exact integer form.

A population is [pooling or flattening]*, then one Linear or Conv2d, then LIF neurons. The stateless parts run on all
steps at once; only the neurons scan over time. A synapse is applied without its bias: the bias goes into the voltage.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.errors import UserError
from train.neurons import LIF

Shape = tuple[int, ...]

ALLOWED = "allowed are nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.Flatten, and SumPool2d and LIF of this package"
KINDS: dict[type[nn.Module], str] = {nn.Linear: "dense", nn.Conv2d: "conv", LIF: "lif", nn.Flatten: "flatten"}


class SumPool2d(nn.Module):
    """Sum over non-overlapping windows of size by size neurons: [N, C, H, W] -> [N, C, H / size, W / size]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.kernel_size = self.stride = size

    def forward(self, maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, self.kernel_size, divisor_override=1)

    def extra_repr(self) -> str:
        return str(self.kernel_size)


@dataclass(frozen=True)
class Stage:
    """One population: what feeds it and what it is.

    before: pooling and flattening, in order; input_shape: what they receive, the shape of the population (or input)
    before; output_shape: the shape of this population's neurons, (C, H, W) after a Conv2d and (N,) after a Linear.
    """

    name: str
    before: tuple[nn.Module, ...]
    synapse: nn.Linear | nn.Conv2d
    neuron: LIF
    input_shape: Shape
    output_shape: Shape

    def forward(self, spikes: Tensor) -> Tensor:
        """Spikes [T, B, *output_shape] of spikes [T, B, *input_shape]."""
        steps, batch = spikes.shape[:2]
        maps = spikes.flatten(0, 1)
        for part in self.before:
            maps = part(maps)
        synapse, bias = self.synapse, self.synapse.bias
        if isinstance(synapse, nn.Linear):
            current = F.linear(maps, synapse.weight)
        else:
            current = F.conv2d(
                maps, synapse.weight, None, synapse.stride, synapse.padding, synapse.dilation, synapse.groups
            )
            bias = None if bias is None else bias.view(-1, 1, 1)
        return self.neuron(current.unflatten(0, (steps, batch)), bias)


class SpikingNetwork(nn.Module):
    """Populations one after the other; `stages` is the chain, the state dict holds `<population>.weight` and `.bias`.

    input_shape: shape of one step of input, (C, H, W) or (N,). layers: parts with names, or a plain list whose parts
    are then named by kind and population ("conv1", "lif1", "pool2", ...); a population is called like its synapse.
    payload_bits: width of one input value; input is multiplied by 1 / (2**payload_bits - 1).
    Raises UserError for a part that has no exact integer form, and for parts that do not fit each other.
    """

    def __init__(
        self, input_shape: Shape, layers: OrderedDict[str, nn.Module] | Sequence[nn.Module], payload_bits: int = 1
    ) -> None:
        super().__init__()
        self.input_shape: Shape = tuple(input_shape)
        self.payload_bits = payload_bits
        named = layers if isinstance(layers, OrderedDict) else _with_names(layers)
        self.stages = _chain(self.input_shape, named)
        for name, part in named.items():
            if hasattr(self, name) or "." in name or not name:
                raise UserError(
                    f"layer name '{name}' cannot be used: it is empty, has a dot or is taken; choose another"
                )
            self.add_module(name, part)

    def forward(self, spikes: Tensor) -> Tensor:
        """Spikes of the last population, float [T, B, *shape], of input [T, B, *input_shape] (uint8 or float)."""
        return self.spikes(spikes)[self.stages[-1].name]

    def spikes(self, spikes: Tensor) -> dict[str, Tensor]:
        """Spikes of every population by name, float [T, B, *output_shape], with their gradient."""
        return dict(self._run(spikes))

    @torch.no_grad()
    def rasters(self, spikes: Tensor) -> dict[str, Tensor]:
        """Spikes of every population by name, uint8 [T, B, *output_shape], of input [T, B, *input_shape]."""
        return {name: out.to(torch.uint8) for name, out in self._run(spikes)}

    def _run(self, spikes: Tensor) -> Iterator[tuple[str, Tensor]]:
        if spikes.shape[2:] != self.input_shape:
            raise UserError(
                f"input of shape {tuple(spikes.shape)} does not fit the network: expected [T, B, "
                f"{', '.join(map(str, self.input_shape))}], time first"
            )
        weight = self.stages[0].synapse.weight
        signal = spikes.to(weight.device, weight.dtype)
        if self.payload_bits > 1:
            signal = signal * (1 / (2**self.payload_bits - 1))
        for stage in self.stages:
            signal = stage.forward(signal)
            yield stage.name, signal


def _with_names(parts: Sequence[nn.Module]) -> OrderedDict[str, nn.Module]:
    named: OrderedDict[str, nn.Module] = OrderedDict()
    population = 1
    for part in parts:
        name = f"{KINDS.get(type(part), 'pool')}{population}"
        while name in named:
            name += "_"
        named[name] = part
        population += isinstance(part, LIF)
    return named


def _chain(shape: Shape, named: OrderedDict[str, nn.Module]) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    parts = iter(named.items())
    while (item := next(parts, None)) is not None:
        entering, before = shape, []
        while item is not None and isinstance(item[1], (nn.AvgPool2d, SumPool2d, nn.Flatten)):
            shape = shape_after(*item, shape)
            before.append(item[1])
            item = next(parts, None)
        if item is None:
            raise UserError(
                f"the network ends with {next(reversed(named))}; end it with a Linear or Conv2d and LIF neurons"
            )
        name, synapse = item
        shape = shape_after(name, synapse, shape)
        follower, neuron = next(parts, ("nothing", None))
        if not isinstance(neuron, LIF):
            raise UserError(
                f"layer {name} is followed by {follower}; put LIF neurons directly after every Linear and Conv2d"
            )
        assert isinstance(synapse, (nn.Linear, nn.Conv2d))
        stages.append(Stage(name, tuple(before), synapse, neuron, entering, shape))
    if not stages:
        raise UserError("the network has no layers; give it at least one Linear or Conv2d followed by LIF neurons")
    return tuple(stages)


def shape_after(name: str, part: nn.Module, shape: Shape) -> Shape:
    """Shape of one sample behind layer `name` that receives `shape`; UserError if the layer cannot stand there."""
    if type(part) is nn.Linear:
        return _after_linear(name, part, shape)
    if type(part) is nn.Conv2d:
        return _after_convolution(name, part, shape)
    if isinstance(part, (nn.AvgPool2d, SumPool2d)):
        return _after_pooling(name, part, shape)
    if isinstance(part, nn.Flatten):
        if (part.start_dim, part.end_dim) != (1, -1):
            raise UserError(f"layer {name}: {part} flattens only some axes; use nn.Flatten() as it is")
        return (torch.Size(shape).numel(),)
    raise UserError(f"layer {name}: {type(part).__name__} cannot stand here or has no exact integer form; {ALLOWED}")


def _after_pooling(name: str, part: nn.AvgPool2d | SumPool2d, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise UserError(
            f"layer {name} pools maps [C, H, W] but receives shape {list(shape)}; put it before the flattening"
        )
    size, stride = _pair(part.kernel_size), _pair(part.stride)
    if isinstance(part, nn.AvgPool2d) and (
        size != stride or _pair(part.padding) != (0, 0) or part.ceil_mode or part.divisor_override is not None
    ):
        raise UserError(
            f"layer {name}: {part} has no exact integer form; use nn.AvgPool2d(size) with stride = size, without "
            "padding, ceil_mode or divisor_override"
        )
    channels, *sides = shape
    for side, window in zip(sides, size, strict=True):
        if side % window:
            raise UserError(
                f"layer {name} pools windows of {size[0]} x {size[1]} over maps of {sides[0]} x {sides[1]}, which "
                "they do not divide; choose a size that divides the map"
            )
    return (channels, sides[0] // size[0], sides[1] // size[1])


def _after_linear(name: str, dense: nn.Linear, shape: Shape) -> Shape:
    if len(shape) != 1:
        raise UserError(f"layer {name} is dense but receives maps of shape {list(shape)}; put nn.Flatten() before it")
    if dense.in_features != shape[0]:
        raise UserError(
            f"layer {name} takes {dense.in_features} inputs but receives {shape[0]}; give it in_features={shape[0]}"
        )
    return (dense.out_features,)


def _after_convolution(name: str, conv: nn.Conv2d, shape: Shape) -> Shape:
    if conv.padding_mode != "zeros":
        raise UserError(f"layer {name}: padding_mode '{conv.padding_mode}' has no integer form; use 'zeros'")
    if len(shape) != 3:
        raise UserError(
            f"layer {name} convolves maps [C, H, W] but receives shape {list(shape)}; put it before the flattening"
        )
    if conv.in_channels != shape[0]:
        raise UserError(
            f"layer {name} takes {conv.in_channels} channels but receives {shape[0]}; give it in_channels={shape[0]}"
        )
    reach = [dilation * (kernel - 1) for dilation, kernel in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.padding == "same" and any(total % 2 for total in reach):
        raise UserError(
            f"layer {name}: padding 'same' is lopsided for kernel {conv.kernel_size}; give the padding as a number"
        )
    if isinstance(conv.padding, str):
        conv.padding = (0, 0) if conv.padding == "valid" else (reach[0] // 2, reach[1] // 2)
    height, width = (
        (side + 2 * padding - total - 1) // stride + 1
        for side, padding, total, stride in zip(shape[1:], conv.padding, reach, conv.stride, strict=True)
    )
    if height < 1 or width < 1:
        raise UserError(
            f"layer {name}: a kernel of {reach[0] + 1} x {reach[1] + 1} does not fit into maps of {shape[1]} x "
            f"{shape[2]} padded by {conv.padding[0]} x {conv.padding[1]}; choose a smaller kernel or more padding"
        )
    return (conv.out_channels, height, width)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
