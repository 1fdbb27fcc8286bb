"""A spiking network: a graph of populations made of parts that have an exact integer form.

The stateless parts run on all steps at once; only the neurons scan over time. A synapse is applied without its bias,
and a norm without its offset: both go into the voltage.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from base.errors import UserError
from train.neurons import LIF
from train.parts import with_names
from train.scan import State
from train.shapes import Shape
from train.tracing import trace
from train.wiring import INPUT, Stage, biased_by_input, unchanging, wire


class SpikingNetwork(nn.Module):
    """Populations in the order in which they run, `stages`; the state dict holds `<population>.weight` and `.bias`.

    time_weights: None, or how much each step of the output counts where it is read, float [T]; the output itself is not
    weighted. `train/time_weights.py` says where they come from.

    clips: None, or by population the base-2 logarithm of where aware training clips the weights of each connection into
    it, in their order, as `fold` gives these weights: [connections] or, per channel, [connections, C].

    input_shape: shape of one step of input, (C, H, W) or (N,). layers: parts with names, or plain parts that are then
    named by kind and population ("conv1", "lif1", "pool2", ...), or a module whose own forward() applies parts and adds
    currents (`train/tracing.py`); a population is called like its synapse or block.
    payload_bits: width of one input value; input is multiplied by 1 / (2**payload_bits - 1).
    input_is_bias: whether the first population's current from the input, the same at every step, goes into its voltage
    as a bias, past the synaptic current.
    Raises UserError for a part that has no exact integer form, and for parts that do not fit each other.
    """

    def __init__(
        self,
        input_shape: Shape,
        layers: OrderedDict[str, nn.Module] | Iterable[nn.Module] | nn.Module,
        payload_bits: int = 1,
        input_is_bias: bool = False,
    ) -> None:
        super().__init__()
        self.input_shape: Shape = tuple(input_shape)
        self.payload_bits = payload_bits
        self.input_unit = 1 / (2**payload_bits - 1)
        self.input_is_bias = input_is_bias
        self.time_weights: Tensor | None
        self.register_buffer("time_weights", None)
        self.clips: nn.ParameterDict | None = None
        if isinstance(layers, nn.Module) and not isinstance(layers, (nn.Sequential, nn.ModuleList)):
            named, self.stages = trace(self.input_shape, layers)
        else:
            named = layers if isinstance(layers, OrderedDict) else with_names(layers)
            self.stages = wire(self.input_shape, named)
        if input_is_bias:
            self.stages = biased_by_input(self.stages)
        if payload_bits > 1 and any(s.neuron is None and s.links[0].source == INPUT for s in self.stages):
            raise UserError(
                f"layer {self.stages[0].name} takes the maximum of {payload_bits}-bit values; only spikes have an "
                "exact integer form of it, put it after LIF neurons"
            )
        adapting = [s for s in self.stages if isinstance(s.neuron, LIF) and s.neuron.width_by == "mpd-agl"]
        if adapting and all(stage.current_spread is None for stage in adapting):
            raise UserError(
                "width_by = 'mpd-agl' in a network without norms: it takes widths from what they do to currents; put "
                "BN or tdBN behind a Linear or Conv2d, or set width"
            )
        for name, part in named.items():
            if hasattr(self, name) or "." in name or not name:
                raise UserError(
                    f"layer name '{name}' cannot be used: it is empty, has a dot or is taken; choose another"
                )
            self.add_module(name, part)

    def forward(self, spikes: Tensor) -> Tensor:
        """Spikes of the last population (a readout: its currents), float [T, B, *shape], of input [T, B, *input_shape]
        (uint8 or float)."""
        return self.spikes(spikes)[self.stages[-1].name]

    def spikes(self, spikes: Tensor) -> dict[str, Tensor]:
        """Spikes of every population (a readout: its currents) by name, float [T, B, *shape], with their gradient."""
        return {stage.name: emitted for stage, emitted, _ in self._run(spikes, {})}

    def spikes_and_membranes(self, spikes: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`spikes`, and the membranes of all LIF neurons before floor and reset, likewise."""
        ran = list(self._run(spikes, {}))
        membranes = {stage.name: stage.in_floats(membrane) for stage, _, membrane in ran if membrane is not None}
        return {stage.name: emitted for stage, emitted, _ in ran}, membranes

    def at_rest(self, batch: int) -> dict[str, Tensor]:
        """What LIF neurons go on from at the first step, by population."""
        lifs = [stage for stage in self.stages if isinstance(stage.neuron, LIF)]
        return {stage.name: self._weight.new_zeros(1, batch, *stage.output_shape) for stage in lifs}

    def go_on(self, spikes: Tensor, before: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`spikes` of neurons that go on from what earlier steps left, and what they leave, by population: see
        `train.scan.State`."""
        states = {name: State(neurons) for name, neurons in before.items()}
        emitted = {stage.name: out for stage, out, _ in self._run(spikes, states)}
        return emitted, {name: state.neurons for name, state in states.items()}

    @property
    def neurons(self) -> dict[str, LIF]:
        """The LIF neurons by population; readouts and max pooling have none."""
        return {stage.name: stage.neuron for stage in self.stages if isinstance(stage.neuron, LIF)}

    @property
    def learned_widths(self) -> dict[str, nn.Parameter]:
        """Surrogate widths that are learned, by population."""
        return {name: lif.width for name, lif in self.neurons.items() if isinstance(lif.width, nn.Parameter)}

    @cached_property
    def masks(self) -> bool:
        """Whether training draws masks, of dropout or of surrogate gradients."""
        return any(
            isinstance(part, nn.Dropout) for stage in self.stages for link in stage.links for part in link.before
        ) or any(neuron.mask for neuron in self.neurons.values())

    def keep_in_range(self) -> None:
        """What a trainer calls after each step of its optimiser: neurons' own parameters go back to their ranges."""
        for neuron in self.neurons.values():
            neuron.keep_in_range()

    @torch.no_grad()
    def rasters(self, spikes: Tensor) -> dict[str, Tensor]:
        """Spikes of every population by name, uint8 [T, B, *shape] (a readout: its currents, float), of input
        [T, B, *input_shape]."""
        return {stage.name: out.to(torch.uint8) if stage.spiking else out for stage, out, _ in self._run(spikes, {})}

    def read(self, spikes: Tensor) -> Tensor:
        """Input [T, B, *input_shape] of the weights' kind, and multiplied by the input's unit."""
        signal = self._seen(spikes).to(self._weight.dtype)
        if self.input_unit != 1:
            signal = signal * self.input_unit
        return signal.expand(len(spikes), *signal.shape[1:])

    def _seen(self, spikes: Tensor) -> Tensor:
        """Input [T, B, *input_shape] as it is; one step of it, [1, B, *input_shape], where all are the same."""
        if spikes.shape[2:] != self.input_shape:
            raise UserError(
                f"input of shape {tuple(spikes.shape)} does not fit the network: expected [T, B, "
                f"{', '.join(map(str, self.input_shape))}], time first"
            )
        if self.input_is_bias and not unchanging(spikes) and (spikes != spikes[:1]).any():
            raise UserError("input that changes over time cannot be a bias; show the same values at every step")
        shown = spikes[:1] if unchanging(spikes) or self.input_is_bias else spikes
        return shown.to(self._weight.device)

    @property
    def _weight(self) -> Tensor:
        """Of whose kind and on whose device everything is computed."""
        return self.stages[-1].links[0].weight

    @cached_property
    def _wanted_after(self) -> dict[str, set[str]]:
        """By population, the sources that later ones read."""
        return {
            stage.name: {link.source for later in self.stages[place:] for link in later.links}
            for place, stage in enumerate(self.stages, 1)
        }

    def prepared(self) -> tuple[Stage, ...]:
        """The stages as they run now."""
        return self.stages

    def _run(self, spikes: Tensor, states: Mapping[str, State]) -> Iterator[tuple[Stage, Tensor, Tensor | None]]:
        changing = self.input_unit == 1 and not (self.input_is_bias or unchanging(spikes))
        signals = {INPUT: self._seen(spikes) if changing else self.read(spikes)}  # spikes may stay a byte each
        for stage in self.prepared():
            signals[stage.name], membrane = stage.forward(signals, states.get(stage.name))
            yield stage, signals[stage.name], membrane
            wanted = self._wanted_after[stage.name]
            signals = {name: signal for name, signal in signals.items() if name in wanted}
