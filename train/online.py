"""Online training through time: gradients of one step at a time, in memory that does not grow with the steps.

OTTT (Xiao et al., arXiv 2210.04195). At every step the voltage of the step before is a constant, the reset follows no
gradient, and errors go back through the populations of that step alone:

    trace[t] = beta * trace[t - 1] + s[t]         of what a link reads; beta: the leak of the population that it feeds
    error[t] = dL[t] / dv[t]                      v being the membrane before the reset
    dL / dW  = sum over t of error[t] (x) trace[t],   dL / dbias = sum over t of error[t]

Into a current readout, which remembers nothing, the trace is the spike itself. A recurrent population hears spikes of
the step before, so the trace that its recurrent weights learn from is one step old, and no error goes back to them.

For the weights of one layer with soft reset this is the gradient of backpropagation through time whose resets are
detached. In deeper networks it leaves out what an earlier spike of a hidden population does to later steps. Hard reset
and the floor are heuristics: they cut a membrane off from its past, which a trace, shared by all the neurons that its
spikes reach, does not follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from base.errors import UserError
from train.network import SpikingNetwork
from train.neurons import LIF
from train.parts import Readout
from train.surrogates import valued
from train.wiring import INPUT, Link, added, refuse_statistics


@dataclass
class State:
    """What a step needs of the steps before, [1, B, *shape] each and without gradient; empty before the first.

    voltages: by population, after the reset. spikes: of recurrent populations. traces: by source and leak.
    """

    voltages: dict[str, Tensor] = field(default_factory=dict)
    spikes: dict[str, Tensor] = field(default_factory=dict)
    traces: dict[tuple[str, float], Tensor] = field(default_factory=dict)


def check(network: SpikingNetwork) -> None:
    """Raises UserError for what cannot be trained online: batch statistics, late resets, synaptic current and leaks of
    their own."""
    refuse_statistics(network.stages, "do not exist when training online")
    for stage in network.stages:
        if not isinstance(stage.neuron, LIF):
            continue
        if stage.neuron.k is not None:
            raise UserError(f"layer {stage.name} has KLIF neurons, which online training does not know; use 'lif'")
        if stage.neuron.reset.endswith("-late"):
            raise UserError(
                f"layer {stage.name} resets a step late (reset = '{stage.neuron.reset}'), which online training does "
                "not know; use 'hard' or 'soft'"
            )
        if stage.neuron.mask:
            raise UserError(
                f"layer {stage.name} masks its gradients (mask = {stage.neuron.mask}), which online training would do "
                "alike at all steps; set mask = 0"
            )
        if isinstance(stage.neuron.alpha, Tensor) or stage.neuron.alpha != 0:
            raise UserError(
                f"layer {stage.name} keeps a synaptic current (alpha = {stage.neuron.alpha}), a second memory that "
                "the trace of online training does not have; set alpha = 0"
            )
        if isinstance(stage.neuron.beta, Tensor):
            raise UserError(
                f"layer {stage.name} learns its leak or has one for every neuron; the trace of online training needs "
                "one fixed number: give beta as such, with learn_decay = false"
            )


def step(
    network: SpikingNetwork, spikes: Tensor, before: State, input_trace: bool = True
) -> tuple[dict[str, Tensor], State]:
    """One step of input [1, B, *input_shape]: what every population emits, [1, B, *shape], and the state after it.

    The spikes are those of `SpikingNetwork.spikes` at that step; the gradient is that of this module's rule.
    input_trace: whether links that read the input learn from its trace too. The rule says so, and events need it to be
    given credit for later steps; the authors' own code takes the input of the step alone, which an image that is shown
    unchanged at all steps can do with.
    """
    signals, after = {INPUT: network.read(spikes)}, State()

    def trace(source: str, leak: float) -> Tensor:
        if (source, leak) not in after.traces:
            after.traces[source, leak] = leak * before.traces.get((source, leak), 0.0) + signals[source].detach()
        return after.traces[source, leak]

    for stage in network.stages:
        name, neuron = stage.name, stage.neuron
        if neuron is None:
            signals[name], _ = stage.forward(signals)
            continue
        leak = 0.0 if isinstance(neuron, Readout) else float(neuron.beta)
        leaks = [leak if input_trace or link.source != INPUT else 0.0 for link in stage.links]
        current, bias = added(
            _arriving(link, signals[link.source], trace(link.source, leak))
            for link, leak in zip(stage.links, leaks, strict=True)
        )
        if isinstance(neuron, Readout):
            signals[name] = neuron(current, bias)
            continue
        if stage.recurrent is not None:
            silence = torch.zeros_like(current)
            heard, remembered = before.spikes.get(name, silence), before.traces.get((name, leak), silence)
            current = current + valued(F.linear(remembered, stage.recurrent), F.linear(heard, stage.recurrent))
        signals[name], after.voltages[name] = neuron.step(current, bias, before.voltages.get(name, 0.0))
        if stage.recurrent is not None:
            after.spikes[name] = signals[name].detach()
            trace(name, leak)
    del signals[INPUT]
    return signals, after


def _arriving(link: Link, spikes: Tensor, trace: Tensor) -> tuple[Tensor, Tensor | None]:
    """Current and bias of spikes [1, B, ...], whose weights learn from the trace and whose spikes get the error."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # forked, so that dropout takes the same from both
        remembered = link.pooled(trace)
    reached = link.pooled(spikes)
    with torch.no_grad():
        value, _ = link.current(reached)
    current, bias = link.current(valued(reached, remembered))
    return valued(current, value), bias
