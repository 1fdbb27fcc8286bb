"""A step that computes its own steps twice is the step that keeps them all, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from base.errors import UserError
from benchmarks.online_memory import peak_bytes
from train.architecture import build
from train.datasets import Dataset, Samples
from train.encoding import Encoding
from train.network import SpikingNetwork
from train.neurons import LIF
from train.trainer import check, fit
from train.training import Training
from train.updates import Learnt, by_backpropagation, by_recomputation, optimizer_of

SHAPES = {"180-24-10": (40,), "180-R24-10": (40,), "8C3-MP2-16C5S2P0-24-10": (1, 12, 12)}
STEPS, BATCH = 23, 6  # in stretches of 4, the last of 3


def made(architecture: str = "180-24-10", seed: int = 1, **neuron: Any) -> SpikingNetwork:
    return build(architecture, SHAPES[architecture], neuron=lambda: LIF(**neuron), seed=seed).train()


def shown(network: SpikingNetwork, steps: int = STEPS, batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(steps, batch, *network.input_shape, generator=generator) < 0.3).to(torch.uint8)


def learnt(update: Callable[..., Learnt], network: SpikingNetwork, spikes: Tensor) -> tuple[Learnt, dict[str, Tensor]]:
    """What a step of a copy of the network returns, and its gradients."""
    network, training, labels = deepcopy(network), Training(), torch.arange(spikes.shape[1]) % 10
    found = update(network, optimizer_of(network, training), spikes, labels, training, (7,))
    return found, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def assert_same_step(network: SpikingNetwork, spikes: Tensor) -> None:
    """Equal losses and outputs, and gradients equal up to the rounding of sums over time."""
    (loss, output, means), gradients = learnt(by_recomputation, network, spikes)
    (expected_loss, expected_output, expected_means), expected = learnt(by_backpropagation, network, spikes)
    assert torch.equal(output, expected_output)
    assert torch.equal(loss, expected_loss)
    rounding = 1e-12 if output.dtype == torch.float64 else 2e-5
    torch.testing.assert_close(means, expected_means, rtol=1e-5, atol=0)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.any()
        assert (gradients[name] - gradient).abs().max() <= rounding * gradient.abs().max(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["compiled", "plain"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("reset", ["hard", "soft", "hard-late", "soft-late"])
@pytest.mark.parametrize("architecture", SHAPES)
def test_a_recomputed_step_is_the_plain_one(architecture: str, reset: Any, alpha: float, dtype: torch.dtype) -> None:
    network = made(architecture, reset=reset, alpha=alpha).to(dtype)
    assert_same_step(network, shown(network))


@pytest.mark.parametrize(
    "neuron",
    [
        {"floor": True, "reset": "soft"},
        {"detach_reset": True},
        {"beta": torch.linspace(0.3, 0.9, 180), "alpha": torch.linspace(0.0, 0.5, 180)},
        {"neuron": "klif", "scale_reset": True},
    ],
    ids=lambda neuron: next(iter(neuron)),
)
def test_neurons_of_other_kinds_are_recomputed_too(neuron: dict[str, Any]) -> None:
    torch.manual_seed(1)
    layers = [nn.Linear(40, 180), LIF(**neuron), nn.Linear(180, 10), LIF(**neuron | {"alpha": 0.5, "beta": 0.75})]
    network = SpikingNetwork((40,), layers).double()
    assert_same_step(network, shown(network))


@pytest.mark.parametrize("steps", [1, 2, 3, 16])
def test_any_number_of_steps_is_cut(steps: int) -> None:
    network = made(beta=0.9).double()
    assert_same_step(network, shown(network, steps))


def test_dropout_takes_the_same_from_all_steps() -> None:
    network = build("180-DP0.2-24-10", (40,), neuron=LIF, seed=1).train().double()
    assert_same_step(network, shown(network))


@pytest.mark.parametrize("input_is_bias", [False, True])
def test_an_input_that_never_changes_is_recomputed_too(input_is_bias: bool) -> None:
    network = build("8C3-24-10", (1, 12, 12), neuron=lambda: LIF(alpha=0.5), input_is_bias=input_is_bias, seed=1)
    network = network.train().double()
    assert_same_step(network, shown(network, 1).expand(STEPS, -1, -1, -1, -1))


def test_a_current_readout_and_time_weights_take_part() -> None:
    network = build("180-24-10", (40,), readout="current", seed=1).train()
    network.time_weights = torch.linspace(0.5, 1.5, STEPS)
    assert_same_step(network, shown(network))


def test_training_takes_the_same_course(tmp_path: Path) -> None:
    labels = np.arange(40) % 2
    part = Samples(np.stack([labels, 1 - labels], 1).astype(np.float32), labels)
    data, accuracies = Dataset("pixels", (2,), 2, part, part), []
    for recompute in (False, True):
        network, training = build("8-WS-DP0.2-2", (2,), seed=0), Training(epochs=4, recompute=recompute)
        metrics = fit(network, data, Encoding(steps=9), training, tmp_path / str(recompute))
        accuracies.append([line["train_accuracy"] for line in metrics])
    assert accuracies[0] == accuracies[1]


def test_every_population_spikes_as_if_it_had_never_been_stopped() -> None:
    network = made("180-R24-10", alpha=0.5)
    spikes, neurons, found = shown(network), network.at_rest(BATCH), []
    for stretch in spikes.split(5):
        emitted, neurons = network.go_on(stretch, neurons)
        found.append(emitted)
    for name, expected in network.spikes(spikes).items():
        assert torch.equal(torch.cat([emitted[name] for emitted in found]), expected)


@pytest.mark.parametrize("architecture", ["180-24-10", "8C3-MP2-16C5S2P0-24-10"])
def test_memory_is_less_than_half(architecture: str) -> None:
    network, training = made(architecture), Training()
    spikes, optimizer, labels = shown(network, 50, 32), optimizer_of(network, training), torch.arange(32) % 10

    def peak(update: Callable[..., Learnt]) -> int:
        step = partial(update, network, optimizer, spikes, labels, training, (0,))
        step()  # the optimiser's own memory is not the step's
        return peak_bytes(step)

    assert 2 * peak(by_recomputation) < peak(by_backpropagation)


@pytest.mark.parametrize(
    ("architecture", "neuron", "told"),
    [
        ("16-BN-10", {}, "dense1 has a BatchNorm1d"),
        ("16-10", {"mask": 0.5}, r"mask = 0\.5"),
        ("16-10", {"width_by": "psg"}, "width_by = 'psg'"),
        ("16-10", {"learn_decay": True}, "learns its decays"),
        ("16-10", {"neuron": "klif"}, "scale_reset = true"),
    ],
)
def test_what_needs_all_steps_at_once_is_refused(architecture: str, neuron: dict[str, Any], told: str) -> None:
    network = build(architecture, (12,), neuron=lambda: LIF(**neuron), seed=0)
    with pytest.raises(UserError, match=told):
        check(network, Training(recompute=True))


@pytest.mark.parametrize("other", [{"online": "a"}, {"pda": 0.1}, {"aware_epochs": 2}])
def test_other_ways_to_train_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"recompute = true with {next(iter(other))}"):
        Training(recompute=True, **other)
