"""A ReLU network becomes a spiking one: rates are its activations, rounded to the nearest spike."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from base.errors import UserError
from train.architecture import build
from train.conversion import AnalogNetwork, check, convert
from train.datasets import load
from train.encoding import Encoding
from train.neurons import LIF
from train.trainer import evaluate, fit
from train.training import Training

STEPS = 32


def integrate_and_fire(threshold=1.0):
    return lambda: LIF(beta=1.0, reset="soft", threshold=threshold)


def shown(steps=STEPS, samples=20):
    image = torch.randint(0, 16, (samples, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return image.expand(steps, *image.shape)


def with_statistics(network, inputs):
    """The network in evaluation, its norms remembering these inputs."""
    AnalogNetwork(network).train().spikes(inputs)
    return network.eval()


def test_the_analog_network_is_the_parts_with_relu():
    network = build("12-10", (1, 8, 8), neuron=LIF, payload_bits=4, seed=0)
    inputs = shown()
    first, second = (stage.synapse for stage in network.stages)
    hidden = torch.relu(first(inputs[0].flatten(1) / 15))
    found = AnalogNetwork(network).spikes(inputs)
    torch.testing.assert_close(found[network.stages[0].name][0], hidden)
    torch.testing.assert_close(found[network.stages[1].name][0], second(hidden))


@pytest.mark.parametrize("threshold", [1.0, 0.5])
def test_a_first_layer_spikes_as_often_as_its_activation_says_to_the_nearest_spike(threshold):
    network = build("40-10", (1, 8, 8), neuron=integrate_and_fire(threshold), payload_bits=4, seed=0).double()
    inputs = shown()
    activation = AnalogNetwork(network).spikes(inputs)[network.stages[0].name][0]
    most = convert(network, inputs)[network.stages[0].name]
    rate = (activation / most).detach().numpy()
    counts = network.rasters(inputs)[network.stages[0].name].sum(0).numpy()
    assert np.array_equal(counts, np.clip(np.ceil(STEPS * rate + 0.5) - 1, 0, STEPS))
    assert (rate > 0.9).any()
    assert 0.2 < (rate > 0).mean() < 0.8


@pytest.mark.parametrize(
    "architecture", ["8C3-BN-AP2-16C3-tdBN-20-10", "8C3-WS-AP2-16C3-WS-20-10", "8C3-[8C3-BN-8C3-BN]-AP2-10"]
)
def test_rates_through_norms_and_blocks_approach_the_activations(architecture):
    inputs = shown(256)
    network = build(architecture, (1, 8, 8), neuron=integrate_and_fire(), payload_bits=4, seed=0)
    with_statistics(network, inputs)
    activations = AnalogNetwork(network).spikes(inputs)
    most = convert(network, inputs)
    for stage in network.stages:
        wanted = (activations[stage.name][0] / most[stage.name]).clip(0, 1)
        found = network.rasters(inputs)[stage.name].float().mean(0)
        assert (found - wanted).abs().mean() < 0.03
        assert np.corrcoef(found.flatten(), wanted.detach().flatten())[0, 1] > 0.95


def test_a_current_readout_reads_rates_in_units_of_activation():
    inputs = shown(256)
    network = build("30-10", (1, 8, 8), neuron=integrate_and_fire(), payload_bits=4, readout="current", seed=0)
    hidden, readout = (stage.name for stage in network.stages)
    second = copy.deepcopy(network.stages[1].synapse)
    most = convert(network, inputs)
    rasters = network.rasters(inputs)
    activation = rasters[hidden].float().mean(0) * most[hidden]
    torch.testing.assert_close(rasters[readout].mean(0), second(activation))


def test_a_silent_layer_keeps_its_weights():
    network = build("6-4", (5,), neuron=integrate_and_fire(), seed=0)
    with torch.no_grad():
        network.stages[0].synapse.weight.zero_()
        network.stages[0].synapse.bias.fill_(-1)
    assert convert(network, torch.ones(4, 3, 5, dtype=torch.uint8))[network.stages[0].name] == 1.0
    assert all(torch.isfinite(weights).all() for weights in network.parameters())


def test_a_recurrent_layer_has_no_relu_counterpart():
    with pytest.raises(UserError, match="recurrent, and a ReLU network has no steps"):
        check(build("R8-4", (5,), neuron=LIF, seed=0), converted_only=False)


@pytest.mark.parametrize(
    "neuron", [{"reset": "hard"}, {"beta": 0.9}, {"alpha": 0.5}, {"neuron": "klif"}, {"learn_decay": True, "beta": 0.5}]
)
def test_neurons_whose_rates_are_no_activations_need_training_after_conversion(neuron):
    settings = {"reset": "soft", "beta": 1.0} | neuron
    network = build("8-4", (5,), neuron=lambda: LIF(**settings), seed=0)
    check(network, converted_only=False)
    with pytest.raises(UserError, match="needs 'lif' neurons with reset = 'soft', beta = 1 and alpha = 0"):
        check(network, converted_only=True)


def test_training_starts_from_a_relu_network_and_goes_on_where_it_was_stopped(tmp_path):
    digits, encoding = load("digits"), Encoding("direct", steps=16)
    training = Training(epochs=1, relu_epochs=3)

    def network():
        return build("24-10", (1, 8, 8), neuron=integrate_and_fire(), payload_bits=4, seed=0)

    told = []
    whole = network()
    metrics = fit(whole, digits, encoding, training, tmp_path / "whole", told.append)
    assert [line.get("relu", False) for line in metrics] == [True, True, True, False]
    assert [(batch["epoch"], batch["epochs"]) for batch in told[:: len(told) // 4]] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert evaluate(whole, digits.test, encoding) > 0.85

    def stop(batch):
        if batch["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(network(), digits, encoding, training, tmp_path / "stopped", stop)
    resumed = network()
    fit(resumed, digits, encoding, training, tmp_path / "stopped")
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name])


def test_a_converted_network_answers_nearly_as_the_relu_network_does(tmp_path):
    digits, encoding = load("digits"), Encoding("direct", steps=32)
    network = build("24-10", (1, 8, 8), neuron=integrate_and_fire(), payload_bits=4, seed=0)
    metrics = fit(network, digits, encoding, Training(epochs=0, relu_epochs=10), tmp_path)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(metrics) == 10
    assert evaluate(network, digits.test, encoding) > metrics[-1]["train_accuracy"] - 0.06


def test_max_pooling_takes_the_largest_activation():
    network = build("4C3-MP2-10", (1, 8, 8), neuron=integrate_and_fire(), payload_bits=4, seed=0)
    found = AnalogNetwork(network).spikes(shown())
    conv, pooled = (found[stage.name] for stage in network.stages[:2])
    assert torch.equal(pooled[0], nn.functional.max_pool2d(conv[0], 2))
