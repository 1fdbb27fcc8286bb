"""From a ReLU network to spikes: the same parts trained without neurons, then scaled so that firing rates stand for
activations.

A ReLU's activation a, at most `most` on calibration data, becomes the rate a / most of a neuron: weights from a source
are multiplied by the source's `most`, currents divided by the neuron's own and multiplied by its threshold (Diehl et
al. 2015, data-based normalisation; Rueckauer et al. 2017 for the percentile in place of the maximum). Neurons that
integrate, fire and subtract their threshold then have that rate, up to one spike in T; half a threshold more, spread
over the T steps, makes the rate round to the nearest instead of down.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.errors import UserError
from train.modes import evaluating
from train.network import SpikingNetwork
from train.neurons import LIF
from train.parts import Readout, Recurrent, ScaledWS
from train.wiring import INPUT, Link, Norm, Stage

PERCENTILE = 0.999


def check(network: SpikingNetwork, converted_only: bool) -> None:
    """Raises UserError for what has no ReLU counterpart, and, where the converted network is not trained further, for
    neurons whose rates are no activations."""
    for stage in network.stages:
        if any(isinstance(link.synapse, Recurrent) for link in stage.links):
            raise UserError(f"layer {stage.name} is recurrent, and a ReLU network has no steps; use a dense layer")
        neuron = stage.neuron
        if not (converted_only and isinstance(neuron, LIF)):
            continue
        if (neuron.reset, neuron.beta, neuron.alpha, neuron.k) != ("soft", 1.0, 0.0, None):
            raise UserError(
                f"layer {stage.name} has neurons with reset = '{neuron.reset}', beta = {neuron.beta}, alpha = "
                f"{neuron.alpha}: a converted ReLU network needs 'lif' neurons with reset = 'soft', beta = 1 and "
                "alpha = 0; set these, or epochs to train it further"
            )


class Rectifier(Readout):
    """In place of a LIF: max(current + bias, 0)."""

    def forward(self, current: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.relu(super().forward(current, bias))


class AnalogNetwork(SpikingNetwork):
    """The parts of a spiking network, the same modules, with ReLU for its neurons and the last layer read as current.

    It sees the mean of its input over time, and has one step.
    """

    def __init__(self, network: SpikingNetwork) -> None:
        nn.Module.__init__(self)
        self.input_shape, self.payload_bits = network.input_shape, network.payload_bits
        self.input_unit = network.input_unit
        self.input_is_bias = False
        self.parts, self.time_weights = network, None
        *hidden, last = network.stages
        self.stages = (
            *(replace(stage, neuron=stage.neuron and Rectifier()) for stage in hidden),
            replace(last, neuron=Readout()),
        )

    def spikes(self, spikes: Tensor) -> dict[str, Tensor]:
        """Activations of every population by name, float [1, B, *shape], of input [T, B, *input_shape]."""
        return super().spikes(spikes.float().mean(0, keepdim=True))


@torch.no_grad()
def convert(network: SpikingNetwork, inputs: Tensor) -> dict[str, float]:
    """Scale the weights of a network, trained as AnalogNetwork, in place; inputs [T, B, *input_shape] calibrate.

    Returns the activation that became one spike a step, by population. Norms stay, their gains and offsets scaled; the
    structure is that from before. A readout is only freed of its sources' scales.
    """
    with evaluating(network):
        activations = AnalogNetwork(network).spikes(inputs)
    most = {INPUT: 1.0}
    for stage in network.stages:
        if isinstance(stage.neuron, LIF):
            most[stage.name] = _percentile(activations[stage.name])
            _scale(stage, most, stage.neuron.threshold / most[stage.name])
            _raise(stage, stage.neuron.threshold / (2 * len(inputs)))
        elif stage.neuron is None:
            most[stage.name] = most[stage.links[0].source]
        else:
            _scale(stage, most, 1.0)
    return {name: value for name, value in most.items() if name != INPUT}


def _percentile(activation: Tensor) -> float:
    """The 99.9th percentile of what is above 0 at all; 1 for a population that never is."""
    active = activation[activation > 0].sort().values
    return active[int(PERCENTILE * (len(active) - 1))].item() if len(active) else 1.0


def _scale(stage: Stage, most: dict[str, float], gain: float) -> None:
    for link in stage.links:
        weight = link.norm.gain if isinstance(link.norm, ScaledWS) else link.synapse.get_parameter("weight")
        weight.mul_(most[link.source])
        if isinstance(link.norm, Norm):
            # The norm remembers the currents it was trained on, which the weights now make from the source's rates.
            link.norm.weight.mul_(gain)
            link.norm.bias.mul_(gain)
        else:
            weight.mul_(gain)
            bias = getattr(link.synapse, "bias", None)
            if bias is not None:
                bias.mul_(gain)


def _raise(stage: Stage, current: float) -> None:
    for bias in map(_offset, stage.links):
        if bias is not None:
            bias.add_(current)
            return


def _offset(link: Link) -> Tensor | None:
    return link.norm.bias if isinstance(link.norm, Norm) else getattr(link.synapse, "bias", None)
