"""Training online through time: the spikes of the network, the gradients of its rule, no memory for more steps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from base.errors import UserError
from train import online
from train.architecture import build
from train.datasets import Dataset, Samples, load
from train.encoding import Encoding
from train.modes import dropping_out
from train.network import SpikingNetwork
from train.neurons import LIF
from train.objectives import loss_of_step
from train.parts import Readout, Recurrent, Residual, ScaledWS, Skip
from train.surrogates import sigmoid
from train.trainer import evaluate, fit
from train.training import Training

SOFT = partial(LIF, beta=0.6, reset="soft", surrogate="sigmoid")


def binary(*shape: int) -> Tensor:
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def drawn(network: SpikingNetwork) -> SpikingNetwork:
    """The network in float64, with weights from a fixed seed."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.double().parameters():
            parameter.uniform_(-0.7, 1.0, generator=generator)
    return network


def objective(output: Tensor, labels: Tensor, spiking: bool) -> Tensor:
    return loss_of_step(output, labels, spiking, 0.2)


def online_gradients(
    network: SpikingNetwork, spikes: Tensor, labels: Tensor, input_trace: bool = True
) -> dict[str, Tensor]:
    network.zero_grad()
    state, output = online.State(), network.stages[-1]
    for frame in spikes.split(1):
        emitted, state = online.step(network, frame, state, input_trace)
        objective(emitted[output.name], labels, output.spiking).backward()
    return gradients(network)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    assert all(grad.abs().sum() > 0 for grad in found.values())
    return found


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, above: Tensor) -> Tensor:
        ctx.save_for_backward(above)
        return (above > 0).to(above.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * sigmoid(ctx.saved_tensors[0], 1.0)


def backpropagated(network: SpikingNetwork, spikes: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Gradients of one population of SOFT neurons, and perhaps a readout, by plain autograd through all steps.

    Resets are detached, and so are the spikes that a recurrent population hears. The bias of a step acts on that step
    alone: OTTT has no trace of it.
    """
    network.zero_grad()
    first, *readout = network.stages
    arriving = [link.forward(network.read(spikes)) for link in first.links]
    bias = sum(bias for _, bias in arriving if bias is not None)
    voltage = heard = torch.zeros_like(arriving[0][0][0])
    total = torch.zeros(())
    for current in sum(current for current, _ in arriving):
        if first.recurrent is not None:
            current = current + heard @ first.recurrent.T
        kept = 0.6 * voltage + current
        out = Spike.apply(kept + bias - 1.0)
        heard = out.detach()
        voltage = kept + bias.detach() - heard
        if readout:
            out = readout[0].forward({first.name: out[None]})[0][0]
        total = total + objective(out[None], labels, not readout)
    total.backward()
    return gradients(network)


ONE_POPULATION = {
    "dense": ((6,), [nn.Linear(6, 5), SOFT()]),
    "recurrent": ((6,), [Recurrent(6, 5), SOFT()]),
    "standardised": ((6,), [nn.Linear(6, 5), ScaledWS(5), SOFT()]),
    "under a readout": ((6,), [nn.Linear(6, 7), SOFT(), nn.Linear(7, 5), Readout()]),
    "behind pooling": ((2, 4, 4), [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 5), SOFT()]),
    "convolution": ((2, 6, 6), [nn.Conv2d(2, 3, 3), ScaledWS(3), SOFT(), nn.Flatten(), nn.Linear(48, 5), Readout()]),
    "residual": ((5,), [Residual([nn.Linear(5, 5)], [Skip(5)]), SOFT()]),
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", ONE_POPULATION)
def test_one_population_learns_as_by_backpropagation_through_time_with_resets_detached(name: str) -> None:
    shape, layers = ONE_POPULATION[name]
    network, spikes, labels = drawn(SpikingNetwork(shape, layers)), binary(12, 4, *shape), torch.arange(4)
    expected, found = backpropagated(network, spikes, labels), online_gradients(network, spikes, labels)
    assert found.keys() == expected.keys()
    for parameter in found:
        torch.testing.assert_close(found[parameter], expected[parameter], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("input_trace", [True, False])
def test_deeper_networks_learn_by_the_rule_written_out(input_trace: bool) -> None:
    layers = [nn.Linear(6, 8), SOFT(), nn.Linear(8, 7), SOFT(), nn.Linear(7, 5), SOFT()]
    network, spikes, labels = drawn(SpikingNetwork((6,), layers)), binary(12, 4, 6), torch.arange(4)
    found = online_gradients(network, spikes, labels, input_trace)

    weights, biases = (
        [p.detach() for n, p in network.named_parameters() if n.endswith(kind)] for kind in ("weight", "bias")
    )
    expected = {name: torch.zeros_like(grad) for name, grad in found.items()}
    voltages, traces = [0.0] * 3, [0.0] * 3
    for shown in spikes.double():
        out, slopes = shown, []
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            traces[layer] = out if layer == 0 and not input_trace else 0.6 * traces[layer] + out
            membrane = 0.6 * voltages[layer] + out @ weight.T + bias
            out = (membrane > 1).double()
            slopes.append(sigmoid(membrane - 1, 1.0))
            voltages[layer] = membrane - out
        out = out.requires_grad_()
        (error,) = torch.autograd.grad(objective(out[None], labels, True), out)
        for layer in (2, 1, 0):
            error = error * slopes[layer]
            expected[f"dense{layer + 1}.weight"] += error.T @ traces[layer]
            expected[f"dense{layer + 1}.bias"] += error.sum(0)
            error = error @ weights[layer]
    for name in found:
        torch.testing.assert_close(found[name], expected[name])


def test_only_links_from_the_input_learn_otherwise_without_an_input_trace() -> None:
    network, spikes, labels = drawn(build("8-7-5", (6,), neuron=SOFT, seed=0)), binary(12, 4, 6), torch.arange(4)
    traced, instantaneous = (online_gradients(network, spikes, labels, input_trace) for input_trace in (True, False))
    differing = {name for name in traced if not torch.equal(traced[name], instantaneous[name])}
    assert differing == {"dense1.weight"}


@pytest.mark.parametrize("readout", ["spikes", "current"])
@pytest.mark.parametrize("neuron", [{}, {"reset": "soft"}, {"reset": "soft", "floor": True}, {"floor": True}])
def test_online_steps_fire_the_spikes_of_the_network(neuron: dict[str, Any], readout: str) -> None:
    notation = "4C3-WS-DP0.2-[4C3-WS-4C3]-MP2-[6C3S2-WS]-AP2-DP0.3-R9-WS-[8-WS-9]-5-WS"
    neurons = partial(LIF, beta=0.9, threshold=0.3, **neuron)
    network = build(notation, (1, 8, 8), neuron=neurons, payload_bits=2, readout=readout, seed=0).double()
    online.check(network)
    spikes = torch.randint(0, 4, (9, 5, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with dropping_out(network, 3):
        expected = network.spikes(spikes)
    state, steps = online.State(), []
    for frame in spikes.split(1):
        with dropping_out(network, 3):
            emitted, state = online.step(network, frame, state)
        steps.append(emitted)
    for name, raster in expected.items():
        found = torch.cat([emitted[name] for emitted in steps])
        if name == network.stages[-1].name and readout == "current":
            torch.testing.assert_close(found, raster)
        else:
            assert torch.equal(found, raster), name
            assert 0 < raster.mean() < 1, name
    sum(out.sum() for out in emitted.values()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_the_loss_of_a_step_weighs_cross_entropy_and_squared_error() -> None:
    output, labels = torch.tensor([[[0.0, 2.0, 1.0], [1.0, 0.0, 0.0]]]), torch.tensor([1, 2])
    entropy = nn.functional.cross_entropy(output[0], labels)
    squared = torch.tensor([0, 1, 1, 1, 0, 1.0]).mean()
    torch.testing.assert_close(loss_of_step(output, labels, False, 0.25), 0.75 * entropy + 0.25 * squared)


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([nn.Linear(4, 5), nn.BatchNorm1d(5), LIF(), nn.Linear(5, 2), LIF()], "layer dense1 has a BatchNorm1d.*'WS'"),
        ([nn.Linear(4, 5), LIF(), nn.Linear(5, 2), LIF(alpha=0.5)], r"dense2 keeps .* \(alpha = 0.5\).*alpha = 0"),
        ([nn.Linear(4, 2), LIF(alpha=torch.full((2,), 0.5))], "layer dense1 keeps a synaptic current"),
        ([nn.Linear(4, 2), LIF(learn_decay=True)], "layer dense1 learns its leak .*learn_decay = false"),
        ([nn.Linear(4, 2), LIF(beta=torch.full((2,), 0.5))], "layer dense1 .* one for every neuron"),
        ([nn.Linear(4, 2), LIF(reset="soft-late")], "layer dense1 resets a step late .*use 'hard' or 'soft'"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_online_is_refused_by_name(layers: list[nn.Module], text: str, tmp_path: Any) -> None:
    part = Samples(np.zeros((4, 4), np.float32), np.arange(4) % 2)
    with pytest.raises(UserError, match=text):
        fit(
            SpikingNetwork((4,), layers),
            Dataset("few", (4,), 2, part, part),
            Encoding(),
            Training(online="a"),
            tmp_path,
        )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"online": "b"}, "online = 'b'"),
        ({"online": "a", "mse_share": 1.5}, "mse_share = 1.5"),
        ({"mse_share": 0.05}, "belong to training online"),
        ({"input_trace": False}, "belong to training online"),
        ({"online": "a", "time_weights": True}, "set one of online and time_weights"),
    ],
)
def test_impossible_training_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        Training(**settings)


@pytest.fixture(scope="module")
def few() -> Dataset:
    digits = load("digits")
    return replace(digits, train=Samples(digits.train.values[:40], digits.train.labels[:40]))


class Held:
    """A tensor that a graph keeps for its backward pass, and the bytes kept at the same time, now and at most."""

    now = most = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Held.now += tensor.nbytes
        Held.most = max(Held.most, Held.now)

    def __del__(self) -> None:
        Held.now -= self.tensor.nbytes


def most_bytes_held(few: Dataset, tmp_path: Any, how: str, steps: int) -> int:
    Held.now = Held.most = 0
    network = build("6C3-WS-DP0.2-R12-WS-10", few.shape, readout="current", seed=0)
    training = Training(epochs=1, batch_size=20, online=how, learning_rate=0.001)
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        fit(network, few, Encoding(steps=steps), training, tmp_path / f"{how}{steps}")
    return Held.most


@pytest.mark.parametrize("how", ["a", "o"])
def test_a_graph_of_a_hundred_steps_holds_no_more_than_one_of_ten(few: Dataset, tmp_path: Any, how: str) -> None:
    assert most_bytes_held(few, tmp_path, how, 100) == most_bytes_held(few, tmp_path, how, 10) > 0


def test_backpropagation_through_time_holds_all_steps(few: Dataset, tmp_path: Any) -> None:
    assert most_bytes_held(few, tmp_path, "", 100) > 5 * most_bytes_held(few, tmp_path, "", 10)


class Killed(Exception):
    pass


@pytest.mark.parametrize(("how", "updates"), [("a", 1), ("o", 5)])
def test_training_repeats_resumes_and_updates_once_a_batch_or_once_a_step(few, tmp_path, how, updates) -> None:
    training = Training(epochs=3, batch_size=16, online=how, mse_share=0.05, learning_rate=0.005)

    def run(folder: str, progress: Any = None) -> list[dict[str, Any]]:
        network = build("4C3-WS-DP0.3-R8-10", few.shape, readout="current", seed=0)
        metrics = fit(
            network, replace(few, validation=few.test), Encoding(steps=5), training, tmp_path / folder, progress
        )
        return [{key: value for key, value in line.items() if key != "seconds"} for line in metrics]

    def killer(at: dict[str, Any]) -> None:
        if (at["epoch"], at["batch"]) == (2, 2):
            raise Killed

    whole = run("whole")
    with pytest.raises(Killed):
        run("killed", killer)
    assert run("killed") == whole
    for file in ("weights.safetensors", "state.safetensors"):
        a, b = (load_file(tmp_path / folder / file) for folder in ("whole", "killed"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert a["step.conv1.weight"] == 3 * 3 * updates
    assert set(whole[0]) == {"epoch", "loss", "train_accuracy", "firing_rate", "validation_accuracy"}
    assert set(whole[0]["firing_rate"]) == {"conv1", "recurrent2"}


@pytest.mark.parametrize("how", ["a", "o"])
def test_a_problem_of_two_pixels_is_solved(how: str, tmp_path: Any) -> None:
    labels = np.arange(64) % 2
    part = Samples(np.stack([labels, 1 - labels], 1).astype(np.float32), labels)
    network, encoding = build("8-WS-2", (2,), seed=0), Encoding(steps=8)
    fit(network, Dataset("pixels", (2,), 2, part, part), encoding, Training(epochs=20, online=how), tmp_path)
    assert evaluate(network, part, encoding) == 1.0
