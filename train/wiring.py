"""From a list of parts to a graph: populations in order, and the links into each.

population := link, then LIF (the last one: LIF or Readout); or nn.MaxPool2d, which is a population by itself
link       := [pooling, flattening, dropout]*, a synapse, perhaps its norm; or Residual: two chains that end so
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from base.errors import UserError
from train.neurons import LIF
from train.parts import (
    NORMS,
    SPIKE_SCALE,
    Readout,
    Recurrent,
    Residual,
    ScaledWS,
    Skip,
    SumPool2d,
    batch_affine,
    over_channels,
    running_affine,
    spread,
)
from train.scan import State
from train.shapes import Shape, shape_after
from train.sparse import Geometry, Product, conducted

INPUT = "input"  # the name under which links read the network's input

Norm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Link:
    """What one source feeds into one population.

    source: a population's name or INPUT; before: pooling, flattening and dropout, in order, which receive the source's
    `input_shape`; synapse: nn.Linear, Recurrent, nn.Conv2d or Skip, or nn.MaxPool2d alone; norm: of its current, or of
    its weights.
    """

    source: str
    before: tuple[nn.Module, ...]
    synapse: nn.Module
    norm: Norm | ScaledWS | None
    input_shape: Shape

    def forward(self, spikes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Current [T, B, *shape] of spikes [T, B, *input_shape], and the voltage's bias, which broadcasts to [*shape].

        Norm and dropout go by their own training mode. What is the same at every step is computed once.
        """
        current, bias = self.current(self.pooled(spikes[:1] if unchanging(spikes) else spikes))
        return current.expand(len(spikes), *current.shape[1:]), bias

    def pooled(self, spikes: Tensor) -> Tensor:
        """What reaches the synapse, [T, B, ...], of spikes [T, B, *input_shape]: behind the parts before it. What a
        dense one flattens are still maps, which `conducted` takes as they lie in memory."""
        if not self._changing:
            return spikes
        steps, batch = spikes.shape[:2]
        maps = self._floats(spikes.flatten(0, 1))
        for part in self._changing:
            maps = _dropped(part, maps, steps) if isinstance(part, nn.Dropout) else part(maps)
        return maps.unflatten(0, (steps, batch))

    @cached_property
    def _changing(self) -> list[nn.Module]:
        """The parts before the synapse that do something."""
        dense = isinstance(self.synapse, nn.Linear)
        return [part for part in self.before if not (dense and isinstance(part, nn.Flatten))]

    def current(self, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        """Current [T, B, *shape] of what reaches the synapse, and the voltage's bias."""
        current, bias = self.conducted(pooled.flatten(0, 1)), getattr(self.synapse, "bias", None)
        dimensions = current.dim() - 1
        if isinstance(self.norm, Norm):
            gain, offset = batch_affine(self.norm, current) if self.norm.training else running_affine(self.norm)
            current = current * over_channels(gain, dimensions)
            bias = offset if bias is None else offset + gain * bias
        current = current.unflatten(0, pooled.shape[:2])
        return current, None if bias is None else over_channels(bias, dimensions)

    @cached_property
    def geometry(self) -> Geometry | None:
        """Of a convolution."""
        synapse = self.synapse
        if not isinstance(synapse, nn.Conv2d):
            return None
        assert not isinstance(synapse.padding, str)
        (down, right), (above, beside), (tall, wide) = synapse.stride, synapse.padding, synapse.dilation
        return Geometry((down, right), (above, beside), (tall, wide), synapse.groups)

    @property
    def bias(self) -> Tensor | None:
        """The synapse's, as it broadcasts to a sample."""
        bias = getattr(self.synapse, "bias", None)
        return None if bias is None else over_channels(bias, 3 if self.geometry else 1)

    @property
    def multiplies(self) -> bool:
        """Whether its current is a product of what reaches the synapse and weights, and nothing more."""
        return isinstance(self.synapse, (nn.Linear, nn.Conv2d)) and not isinstance(self.norm, Norm)

    @property
    def weight(self) -> Tensor:
        """The synapse's own; max pooling has none."""
        assert isinstance(self.synapse, (nn.Linear, nn.Conv2d, Skip))
        return self.synapse.weight

    def standardised(self, weight: Tensor) -> Tensor:
        """The synapse's weight, in any precision, as spikes meet it."""
        if not isinstance(self.norm, ScaledWS):
            return weight
        return self.norm(weight) * (1.0 if self.source == INPUT else SPIKE_SCALE)

    def conducted(self, maps: Tensor, weight: Tensor | None = None) -> Tensor:
        """What the synapse alone makes of maps [N, ...], perhaps by weights that stand in for its own."""
        synapse = self.synapse
        if isinstance(synapse, nn.MaxPool2d):
            return synapse(self._floats(maps))
        if weight is None:
            weight = self.standardised(self.weight)
        if isinstance(synapse, (nn.Linear, nn.Conv2d)):
            return conducted(maps, weight, self.geometry)
        return self._floats(maps) * over_channels(weight, maps.dim() - 1)

    def _floats(self, maps: Tensor) -> Tensor:
        """Spikes that came as bytes, in the weights' precision; of a maximum any will do."""
        if maps.is_floating_point():
            return maps
        return maps.to(getattr(self.synapse, "weight", torch.empty(0)).dtype)


def unchanging(spikes: Tensor) -> bool:
    """Whether a tensor [T, ...] is one step, shown T times: expanded over time, as direct encoding makes it."""
    return spikes.stride(0) == 0


def _dropped(dropout: nn.Dropout, maps: Tensor, steps: int) -> Tensor:
    """Dropout with one mask for all steps of a sample; drawn on the CPU, so that a seed means the same everywhere."""
    if not dropout.training or dropout.p == 0:
        return maps
    shown = maps.unflatten(0, (steps, -1))
    kept = torch.bernoulli(torch.full(shown.shape[1:], 1 - dropout.p, dtype=maps.dtype)) / (1 - dropout.p)
    return (shown * kept.to(maps.device)).flatten(0, 1)


@dataclass(frozen=True)
class Stage:
    """One population: the links whose currents add up in it, and its neurons.

    neuron: LIF, Readout, or None for max pooling, whose one link yields spikes. output_shape: (C, H, W) or (N,).
    input_is_bias: whether the current of its one link, from the input, is a bias of the voltage.
    """

    name: str
    links: tuple[Link, ...]
    neuron: LIF | Readout | None
    output_shape: Shape
    input_is_bias: bool = False

    @property
    def spiking(self) -> bool:
        return not isinstance(self.neuron, Readout)

    @property
    def synapse(self) -> nn.Module:
        """The first link's, in a chain the only one; so are `before` and `input_shape`."""
        return self.links[0].synapse

    @property
    def before(self) -> tuple[nn.Module, ...]:
        return self.links[0].before

    @property
    def input_shape(self) -> Shape:
        return self.links[0].input_shape

    @property
    def recurrent(self) -> Tensor | None:
        """Weights [N, N] from the population to itself, one step later."""
        found = [link.synapse.recurrent for link in self.links if isinstance(link.synapse, Recurrent)]
        return sum(found[1:], start=found[0]) if found else None

    @property
    def current_spread(self) -> float | None:
        """Standard deviation that the norms give the population's current, variances adding up; None without a norm."""
        spreads = [spread(link.norm) for link in self.links if isinstance(link.norm, Norm)]
        return math.sqrt(sum(max(each, 0.0) ** 2 for each in spreads)) if spreads else None

    def in_floats(self, membrane: Tensor) -> Tensor:
        """Membranes of `forward` in the units of the network's weights."""
        return membrane

    def forward(self, spikes: Mapping[str, Tensor], state: State | None = None) -> tuple[Tensor, Tensor | None]:
        """Spikes (a readout: currents) [T, B, *output_shape] of the spikes [T, B, ...] of every source, and the
        membranes of LIF neurons. state: what these go on from, see `lif_scan`."""
        (link, *others), neuron = self.links, self.neuron
        if isinstance(neuron, LIF) and link.multiplies and not (others or self.input_is_bias):
            arriving = spikes[link.source]
            if not unchanging(arriving):
                synapse = Product(link.standardised(link.weight), link.geometry)
                maps, bias = link.pooled(arriving), link.bias
                return neuron.scan(maps, bias, self.recurrent, self.current_spread, synapse, state)
        current, bias = added(link.forward(spikes[link.source]) for link in self.links)
        if self.neuron is None:
            return current, None
        if isinstance(self.neuron, Readout):
            return self.neuron(current, bias), None
        if self.input_is_bias:
            # A bias belongs to a neuron, so each sample's neurons are neurons of their own: one sample of [B, *shape].
            loaded = current[0] if bias is None else current[0] + bias
            alone = None if state is None else State(state.neurons.unsqueeze(1))
            silence = torch.zeros_like(current).unsqueeze(1)
            found = self.neuron.scan(silence, loaded, None, self.current_spread, state=alone)
            if state is not None and alone is not None:
                state.neurons = alone.neurons.squeeze(1)
            return found[0].squeeze(1), found[1].squeeze(1)
        return self.neuron.scan(current, bias, self.recurrent, self.current_spread, state=state)


def refuse_statistics(stages: Iterable[Stage], why: str) -> None:
    """Raises UserError for a norm of currents, telling why its statistics over all steps cannot be had."""
    for stage in stages:
        for link in stage.links:
            if isinstance(link.norm, Norm):
                raise UserError(
                    f"layer {stage.name} has a {type(link.norm).__name__}, whose statistics over all steps {why}; norm "
                    "its weights instead: ScaledWS, 'WS' in the notation"
                )


def added(arriving: Iterable[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """The sum of the currents of links, and that of their biases if there is one."""
    currents, biases = zip(*arriving, strict=True)
    given = [bias for bias in biases if bias is not None]
    return sum(currents[1:], start=currents[0]), sum(given[1:], start=given[0]) if given else None


def wire(shape: Shape, named: Mapping[str, nn.Module]) -> tuple[Stage, ...]:
    """The populations that the parts make behind an input of that shape, each after those it reads.

    Raises UserError for a part that has no exact integer form, and for parts that do not fit each other.
    """
    stages: list[Stage] = []
    end = read(named.items(), Place(INPUT, shape, shape), "", stages)
    if end.before:
        raise UserError(
            f"the network ends with {next(reversed(list(named)))}; end it with a Linear or Conv2d and LIF neurons"
        )
    return finished(end, stages)


def finished(end: Place, stages: list[Stage]) -> tuple[Stage, ...]:
    """The populations, of which the last must be where reading ended, and have neurons or be a readout."""
    if end.links:
        raise _unfinished(end.name, "nothing")
    if not stages:
        raise UserError("the network has no layers; give it at least one Linear or Conv2d followed by LIF neurons")
    if stages[-1].neuron is None:
        raise UserError(f"the network ends with {stages[-1].name}; end it with a Linear or Conv2d and LIF neurons")
    return tuple(stages)


def biased_by_input(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The populations, the one that reads the input taking it as a bias.

    Raises UserError where that is not one population of LIF neurons behind one Linear or Conv2d.
    """
    way_out = "as a bias input needs one Linear or Conv2d with LIF neurons first; put it there, or take it graded"
    first, *others = (stage for stage in stages if any(link.source == INPUT for link in stage.links))
    if others:
        raise UserError(f"layers {first.name} and {others[0].name} both read the input; {way_out}")
    if len(first.links) > 1:
        raise UserError(f"layer {first.name} adds two currents, and only one is the input's; {way_out}")
    if first.neuron is None:
        raise UserError(f"layer {first.name} takes the maximum of the input; {way_out}")
    if isinstance(first.neuron, Readout):
        raise UserError(f"layer {first.name} is a current readout without a voltage; {way_out}")
    if isinstance(first.synapse, Recurrent):
        raise UserError(f"layer {first.name} is recurrent, and hears its own spikes beside the input; {way_out}")
    return tuple(replace(stage, input_is_bias=stage is first) for stage in stages)


@dataclass(frozen=True)
class Place:
    """Where reading has come to: a source, what stands behind it so far, and links whose neurons are still to come."""

    source: str
    entering: Shape
    shape: Shape
    before: tuple[nn.Module, ...] = ()
    links: tuple[Link, ...] = ()
    name: str = ""


def read(parts: Iterable[tuple[str, nn.Module]], at: Place, prefix: str, stages: list[Stage]) -> Place:
    """Read on from a place; populations on the way join `stages`, links left over belong to who reads on."""
    for name, part in parts:
        name = prefix + name
        if at.links and isinstance(part, (LIF, Readout)):
            at = _population(at, part, stages)
        elif stages and not stages[-1].spiking:
            raise UserError(f"layer {name} follows the current readout {stages[-1].name}; a readout is the last layer")
        elif at.links and isinstance(part, NORMS):
            if len(at.links) > 1 or at.links[0].norm is not None:
                raise UserError(f"layer {name} norms a current for the second time; leave it out")
            shape_after(name, part, at.shape)
            if isinstance(part, ScaledWS) and at.links[0].synapse.get_parameter("weight")[0].numel() == 1:
                raise UserError(
                    f"layer {name} standardises a single weight per channel, which leaves nothing of it; leave it out"
                )
            at = replace(at, links=(replace(at.links[0], norm=part),))
        elif at.links:
            raise _unfinished(at.name, name)
        elif isinstance(part, Residual):
            at = _residual(name, part, at, stages)
        else:
            at = _stateless(name, part, at, stages)
    return at


def _population(at: Place, neuron: LIF | Readout, stages: list[Stage]) -> Place:
    if isinstance(neuron, LIF):
        neuron.spread_over(at.shape)
    elif any(isinstance(link.synapse, Recurrent) for link in at.links):
        raise UserError(f"layer {at.name} feeds spikes back, and a current readout has none; use nn.Linear")
    stages.append(Stage(at.name, at.links, neuron, at.shape))
    return Place(at.name, at.shape, at.shape)


def _stateless(name: str, part: nn.Module, at: Place, stages: list[Stage]) -> Place:
    after = shape_after(name, part, at.shape)
    if isinstance(part, (nn.AvgPool2d, SumPool2d, nn.Flatten, nn.Dropout)):
        return replace(at, shape=after, before=(*at.before, part))
    if isinstance(part, NORMS):
        raise UserError(f"layer {name} norms no current; put it between a Linear or Conv2d and its LIF neurons")
    link = Link(at.source, at.before, part, None, at.entering)
    if isinstance(part, nn.MaxPool2d):
        if not all(isinstance(earlier, nn.Dropout) for earlier in at.before):
            raise UserError(f"layer {name} takes the maximum of what is no spike any more; put it after LIF neurons")
        stages.append(Stage(name, (link,), None, after))
        return Place(name, after, after)
    return replace(at, shape=after, links=(link,), name=name)


def _residual(name: str, block: Residual, at: Place, stages: list[Stage]) -> Place:
    ends = [read(chain.items(), at, f"{name}_", stages) for chain in (block.branch, block.shortcut)]
    for end, what in zip(ends, ("branch", "shortcut"), strict=True):
        if not end.links:
            raise UserError(f"layer {name}: its {what} yields no current; end it with a Linear, Conv2d or Skip")
    return joined(name, *ends)


def joined(name: str, branch: Place, shortcut: Place) -> Place:
    """The place where two currents meet. Raises UserError where their shapes differ."""
    if branch.shape != shortcut.shape:
        raise UserError(
            f"layer {name} adds a branch of shape {list(branch.shape)} and a shortcut of shape {list(shortcut.shape)}; "
            "give both the same channels and strides"
        )
    return replace(branch, links=branch.links + shortcut.links, name=name)


def _unfinished(name: str, follower: str) -> UserError:
    return UserError(
        f"layer {name} is followed by {follower}; put LIF neurons directly after every Linear and Conv2d (or its norm)"
    )
