"""How one batch changes the weights: by backpropagation through time, or online, step by step.

Every way returns the loss, what the output emitted, [T, B, C] (online the mean over time, [1, B, C]), and by population
the mean of what it emitted, a scalar: what the populations emitted is gone before the backward pass asks for memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from train import online, recompute
from train.modes import dropping_out
from train.network import SpikingNetwork
from train.objectives import loss, loss_of_step, pda
from train.time_weights import weighted
from train.training import Training

WIDTH_RATE = 0.1  # of the learning rate, for learned widths

Learnt = tuple[Tensor, Tensor, dict[str, Tensor]]


def optimizer_of(network: SpikingNetwork, training: Training) -> torch.optim.AdamW:
    """Parameters in groups of the same settings: of all, synapses alone decay, and learned widths move slowly."""
    links = [link for stage in network.stages for link in stage.links]
    synapses = {p for link in links for name, p in link.synapse.named_parameters() if name != "bias"}
    widths = set(network.learned_widths.values())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        rate = training.learning_rate * (WIDTH_RATE if parameter in widths else 1)
        decay = training.weight_decay if parameter in synapses else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    each = [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(each, fused=True)


def by_backpropagation(
    network: SpikingNetwork,
    optimizer: torch.optim.AdamW,
    spikes: Tensor,
    labels: Tensor,
    training: Training,
    masks: tuple[int, ...],
) -> Learnt:
    """Learn one batch by backpropagation through time."""
    with dropping_out(network, *masks):
        emitted, membranes = network.spikes_and_membranes(spikes) if training.pda else (network.spikes(spikes), {})
    output, means = emitted[network.stages[-1].name], _means(emitted)
    del emitted
    objective = _loss(network, labels, output)
    if training.pda:
        objective = objective + training.pda * _shift(network, membranes)
    _forget(optimizer)
    objective.backward()
    _step(network, optimizer)
    return objective.detach(), output.detach(), means


def by_recomputation(
    network: SpikingNetwork,
    optimizer: torch.optim.AdamW,
    spikes: Tensor,
    labels: Tensor,
    training: Training,
    masks: tuple[int, ...],
) -> Learnt:
    """`by_backpropagation` in less memory, see `train/recompute.py`."""
    _forget(optimizer)
    learnt = recompute.backpropagate(network, spikes, partial(_loss, network, labels), masks)
    _step(network, optimizer)
    return learnt


def step_by_step(
    network: SpikingNetwork,
    optimizer: torch.optim.AdamW,
    spikes: Tensor,
    labels: Tensor,
    training: Training,
    masks: tuple[int, ...],
) -> Learnt:
    """The same by OTTT, with only the mean over time of what was emitted, [1, B, *shape], kept."""
    steps, output, state = len(spikes), network.stages[-1], online.State()
    objective = torch.zeros(())
    emitted: dict[str, Tensor] = {}
    _forget(optimizer)
    for frame in spikes.split(1):
        with dropping_out(network, *masks):  # at every step anew, and so the same ones
            shown, state = online.step(network, frame, state, training.input_trace)
        of_step = loss_of_step(shown[output.name], labels, output.spiking, training.mse_share) / steps
        of_step.backward()
        if training.online == "o":
            _step(network, optimizer)
            _forget(optimizer)
        objective = objective + of_step.detach().cpu()
        emitted = {name: emitted.get(name, 0.0) + out.detach() / steps for name, out in shown.items()}
    if training.online == "a":
        _step(network, optimizer)
    return objective, emitted[output.name], _means(emitted)


def update_of(training: Training) -> Callable[..., Learnt]:
    """The way in which that training learns a batch."""
    if training.online:
        return step_by_step
    return by_recomputation if training.recompute else by_backpropagation


def _forget(optimizer: torch.optim.AdamW) -> None:
    """The gradients of all parameters, in a tenth of the time that `zero_grad` takes to find them."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _step(network: SpikingNetwork, optimizer: torch.optim.AdamW) -> None:
    """Move the parameters by their gradients, and bring the neurons' own back to their ranges."""
    optimizer.step()
    network.keep_in_range()


def _loss(network: SpikingNetwork, labels: Tensor, output: Tensor) -> Tensor:
    """Of what the output emitted, [T, B, C]."""
    return loss(weighted(output, network.time_weights), labels, network.stages[-1].spiking)


def _means(emitted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: out.detach().mean() for name, out in emitted.items()}


def _shift(network: SpikingNetwork, membranes: dict[str, Tensor]) -> Tensor:
    """The mean over populations of how far their membranes are from where a normed input would bring them."""
    spreads = {name: neuron.threshold * neuron.spread_gain for name, neuron in network.neurons.items()}
    return torch.stack([pda(membranes[name], spread) for name, spread in spreads.items()]).mean()
