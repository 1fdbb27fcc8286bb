"""Backpropagation through time in less memory: the steps between a few borders are computed twice.

A first pass goes over the steps in stretches and keeps what the neurons are like at the borders alone. A second one
goes back over the stretches, computes each again from its border, now with what its gradients need, and hands the
gradients of that border to the stretch before (Chen et al., arXiv 1604.06174). With stretches of sqrt(T) steps memory
grows with sqrt(T) in place of T, for one more forward pass and products of fewer rows each.

Gradients are those of backpropagation up to the order in which float sums over time are taken, here stretch by stretch.
Spikes are the same as long as a product of fewer rows rounds its sums alike; both passes compute the same products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from base.errors import UserError
from train.modes import dropping_out
from train.network import SpikingNetwork
from train.neurons import LIF
from train.wiring import refuse_statistics


def check(network: SpikingNetwork) -> None:
    """Raises UserError for what a stretch of time does not have: statistics and means over all steps, and masks that
    differ at every step; and for decays that are learned."""
    refuse_statistics(network.stages, "are not those of the few that recompute = true goes over at once")
    for stage in network.stages:
        neuron = stage.neuron
        if not isinstance(neuron, LIF):
            continue
        if neuron.mask:
            raise UserError(
                f"layer {stage.name} masks its gradients (mask = {neuron.mask}) at every step anew, which recompute = "
                "true would repeat every few steps; set mask = 0 or recompute = false"
            )
        if neuron.width_by == "psg":
            raise UserError(
                f"layer {stage.name} learns its surrogate's width from a mean over all steps (width_by = 'psg'), which "
                "recompute = true never has together; set width_by = 'fixed' or recompute = false"
            )
        if any(isinstance(share, Tensor) and share.requires_grad for share in (neuron.alpha, neuron.beta)):
            raise UserError(
                f"layer {stage.name} learns its decays, whose gradients need all steps at once; set learn_decay = "
                "false, of KLIF neurons scale_reset = true as well, or recompute = false"
            )


def backpropagate(
    network: SpikingNetwork, spikes: Tensor, loss_of: Callable[[Tensor], Tensor], masks: tuple[int, ...]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Add the gradients of the loss of the output [T, B, C] to those of the parameters.

    Returns the loss, the output, and by population the mean of what it emitted. masks: the key of dropout's, which are
    those of all steps.
    """
    stretches = spikes.split(math.isqrt(len(spikes)))
    output, means, borders = _first_pass(network, stretches, masks)
    objective = loss_of(output.requires_grad_())
    (errors,) = torch.autograd.grad(objective, output)
    handed: dict[str, Tensor] = {}
    for stretch, error in zip(reversed(stretches), reversed(errors.split(len(stretches[0]))), strict=True):
        before = borders.pop()
        if borders:  # nothing is handed on to what was before the first step
            before = {name: neurons.requires_grad_() for name, neurons in before.items()}
        handed = _second_pass(network, stretch, before, error, handed, masks)
    return objective.detach(), output.detach(), means


@torch.no_grad()
def _first_pass(
    network: SpikingNetwork, stretches: Sequence[Tensor], masks: tuple[int, ...]
) -> tuple[Tensor, dict[str, Tensor], list[dict[str, Tensor]]]:
    """The output, the means, and what neurons are like before each stretch."""
    neurons = network.at_rest(stretches[0].shape[1])
    borders, outputs, sums = [], [], dict.fromkeys((stage.name for stage in network.stages), torch.zeros(()))
    for stretch in stretches:
        borders.append(neurons)
        with dropping_out(network, *masks):
            emitted, neurons = network.go_on(stretch, neurons)
        outputs.append(emitted[network.stages[-1].name])
        sums = {name: total + len(stretch) * emitted[name].mean() for name, total in sums.items()}
    output = torch.cat(outputs)
    return output, {name: total / len(output) for name, total in sums.items()}, borders


def _second_pass(
    network: SpikingNetwork,
    stretch: Tensor,
    before: dict[str, Tensor],
    error: Tensor,
    handed: dict[str, Tensor],
    masks: tuple[int, ...],
) -> dict[str, Tensor]:
    """Add the gradients of a stretch, from those of its output and what later ones hand on; returns what it does."""
    with dropping_out(network, *masks):
        emitted, after = network.go_on(stretch, before)
    ends = [emitted[network.stages[-1].name], *(after[name] for name in handed)]
    del emitted, after
    torch.autograd.backward(ends, [error, *handed.values()])
    return {name: neurons.grad for name, neurons in before.items() if neurons.grad is not None}
