"""Folding is exact before any rounding: pooled and folded layers give the same currents in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from base.errors import UserError
from quantize import engine, reference
from quantize.fold import FoldedConnection, FoldedLayer, check_alive, fold
from quantize.integer_network import INPUT
from quantize.scales import input_biases, quantize
from train.architecture import build
from train.network import SpikingNetwork
from train.neurons import LIF
from train.parts import Readout, Recurrent, Residual, Skip, SumPool2d


def current(network: SpikingNetwork, maps: torch.Tensor) -> torch.Tensor:
    """What the network's own parts feed into its first population, bias included: [N, *shape]."""
    stage = network.stages[0]
    for part in stage.before:
        maps = part(maps)
    return stage.synapse(maps / (2**network.payload_bits - 1))


@given(st.data())
@settings(max_examples=80)
def test_pooled_convolution_equals_one_strided_convolution(data: st.DataObject) -> None:
    draw = data.draw
    window, channels, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    conv = nn.Conv2d(
        channels * groups,
        2 * groups,
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 2)),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
    )
    pool = draw(st.sampled_from([nn.AvgPool2d, SumPool2d]))(window)
    shape = (channels * groups, 5 * window, 6 * window)
    network = SpikingNetwork(shape, [pool, conv, LIF()], payload_bits=draw(st.sampled_from([1, 4]))).double()
    (layer,) = fold(network)
    (only,) = layer.connections
    maps = torch.rand((2, *shape), dtype=torch.float64)
    folded = nn.functional.conv2d(maps, torch.from_numpy(only.weight), torch.from_numpy(layer.bias), **only.geometry)
    torch.testing.assert_close(folded, current(network, maps), rtol=1e-12, atol=1e-12)
    assert layer.shape == tuple(folded.shape[1:])


def test_pooled_dense_layer_equals_one_dense_layer() -> None:
    shape = (3, 8, 12)
    parts = [nn.AvgPool2d(2), SumPool2d(2), nn.Flatten(), nn.Linear(3 * 2 * 3, 7), LIF()]
    network = SpikingNetwork(shape, parts).double()
    (layer,) = fold(network)
    maps = torch.rand((4, *shape), dtype=torch.float64)
    folded = maps.flatten(1) @ torch.from_numpy(layer.connections[0].weight).T + torch.from_numpy(layer.bias)
    torch.testing.assert_close(folded, current(network, maps), rtol=1e-12, atol=1e-12)


def test_folding_copies_the_neuron_and_leaves_the_network_alone() -> None:
    network = SpikingNetwork((4,), [nn.Linear(4, 2), LIF(0.5, 0.25, 2.0, reset="soft", floor=True)], payload_bits=4)
    before = network.stages[0].synapse.weight.detach().clone()
    (layer,) = fold(network)
    assert (layer.beta, layer.alpha, layer.threshold, layer.reset, layer.floor) == (0.5, 0.25, 2.0, "soft", True)
    assert torch.equal(network.stages[0].synapse.weight, before)
    assert np.array_equal(layer.connections[0].weight, before.double().numpy() * (1 / 15))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    network = SpikingNetwork((4,), [nn.Linear(4, 2), LIF()])
    with torch.no_grad():
        network.stages[0].synapse.weight[1, 2] = value
    with pytest.raises(UserError, match=r"layer 'dense1': weight at \(1, 2\) is (nan|inf)"):
        fold(network)


def run_folded(layers: tuple[FoldedLayer, ...], inputs: np.ndarray) -> dict[str, np.ndarray]:
    """What folded populations emit in float64, [T, B, *shape]: the oracle, population by population, step by step."""
    emitted = {"input": torch.from_numpy(inputs).double()}
    steps, samples = inputs.shape[:2]
    for layer in layers:
        out = emitted[layer.name] = torch.zeros(steps, samples, *layer.shape, dtype=torch.float64)
        alpha, beta = (torch.as_tensor(share, dtype=torch.float64) for share in (layer.alpha, layer.beta))
        bias = torch.from_numpy(layer.bias).view(-1, *[1] * (len(layer.shape) - 1))
        u = v = torch.zeros_like(out[0])
        for t in range(steps):
            current, loaded = torch.zeros_like(out[0]), bias
            for connection in layer.connections:
                if t >= connection.delay:
                    weight, spikes = (
                        torch.from_numpy(connection.weight),
                        emitted[connection.source][t - connection.delay],
                    )
                    if connection.geometry:
                        current += nn.functional.conv2d(spikes, weight, **connection.geometry)
                    else:
                        current += spikes.flatten(1) @ weight.T
            if layer.neuron == "none":
                out[t] = current + bias
                continue
            if layer.input_is_bias:
                current, loaded = torch.zeros_like(current), current + bias
            u = alpha * u + current
            fired = v > layer.threshold
            v = beta * v + u + loaded
            if layer.reset.endswith("late"):
                v = torch.where(fired, v - layer.threshold if layer.reset == "soft-late" else 0.0, v)
            out[t] = v > layer.threshold
            v = v.clamp(min=0) if layer.floor else v
            if not layer.reset.endswith("late"):
                v = torch.where(out[t] > 0, v - layer.threshold if layer.reset == "soft" else 0.0, v)
    return {name: values.numpy() for name, values in emitted.items()}


NETWORKS = {
    "norms": ("6C3-BN-AP2-5C3S2-tdBN-SP2-12-BN-4", {}),
    "norms and synaptic current": ("6C3-BN-8-tdBN-4", {"alpha": 0.4, "reset": "soft", "floor": True}),
    "standardised weights": ("6C3-WS-AP2-4C3G2-WS-MP2-R12-WS-[12-WS]-4", {"threshold": 0.6}),
    "max pooling": ("4C3-MP2-DP0.3-6C3-BN-MP2-4", {}),
    "recurrence": ("R12-BN-DP0.2-R9-4", {"alpha": 0.3}),
    "residual": ("4C3-BN-[4C3-BN-4C3-BN]-[8C3S2-tdBN-8C3-tdBN]-AP2-[6-6]-[5]-4", {"threshold": 0.4}),
    "residual around pooling": ("4C3-AP2-[4C3-MP2-6C3]-4", {}),
    "residual around a residual and recurrence": ("24-[24-[24-24]-R24-BN]-4", {"threshold": 0.4}),
    "learned decays": ("4C3-R8-4", {"alpha": 0.2, "beta": 0.7, "learn_decay": True, "per_neuron": True}),
    "soft late resets": ("6C3-BN-AP2-R12-BN-4", {"alpha": 0.3, "reset": "soft-late"}),
    "hard late resets": ("6C3-BN-R12-BN-4", {"reset": "hard-late", "floor": True, "learn_decay": True}),
    "norms and KLIF": ("6C3-BN-AP2-12-tdBN-4", {"neuron": "klif", "alpha": 0.3, "threshold": 0.4}),
    "norms and KLIF that scales back": ("6C3-BN-12-4", {"neuron": "klif", "scale_reset": True, "reset": "soft"}),
    "recurrence and KLIF": ("R12-BN-R9-4", {"neuron": "klif", "learn_decay": True, "reset": "soft"}),
}


def trained_a_little(notation: str, readout: str, settings: dict[str, object], payload_bits: int) -> SpikingNetwork:
    """A network whose norms, biases, decays and recurrent weights are none of their initial values."""
    network = build(
        notation, (1, 8, 8), neuron=lambda: LIF(**settings), readout=readout, payload_bits=payload_bits, seed=3
    )
    return trained(network, shown(payload_bits))


def trained(network: SpikingNetwork, inputs: torch.Tensor) -> SpikingNetwork:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    torch.manual_seed(4)
    for _ in range(3):
        output = network(inputs)
        nn.functional.cross_entropy(output.mean(0) * 5, torch.arange(6) % 4).backward()
        optimizer.step()
        optimizer.zero_grad()
        network.keep_in_range()
    return network.double().eval()


def shown(payload_bits: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 2**payload_bits, (7, 6, 1, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("readout", ["spikes", "current"])
@pytest.mark.parametrize("name", NETWORKS)
def test_folded_networks_fire_the_spikes_of_the_networks_they_came_from(name: str, readout: str) -> None:
    notation, settings = NETWORKS[name]
    payload_bits = 4 if "norms" in name else 1
    network = trained_a_little(notation, readout, settings, payload_bits)
    inputs = shown(payload_bits)
    folded, emitted = run_folded(fold(network), inputs.numpy()), network.spikes(inputs)
    for stage in network.stages:
        if stage.spiking:
            assert np.array_equal(folded[stage.name], emitted[stage.name].detach().numpy()), stage.name
            assert 0 < folded[stage.name].mean() < 1, stage.name
        else:
            np.testing.assert_allclose(folded[stage.name], emitted[stage.name].detach().numpy(), rtol=1e-9, atol=1e-9)


BIASED = {
    "dense": ("12-4", {"alpha": 0.5}),
    "norms around pooling": ("AP2-6C3-BN-AP2-12-tdBN-4", {"alpha": 0.3, "reset": "soft", "floor": True}),
    "strides": ("4C3S2-8-4", {"threshold": 0.4}),
    "learned decays": ("4C3-R8-4", {"alpha": 0.2, "beta": 0.7, "learn_decay": True, "per_neuron": True}),
}


def biased(name: str) -> tuple[SpikingNetwork, torch.Tensor]:
    """A network that takes 4-bit values as a bias, none of its parameters as they were, and input for it."""
    notation, settings = BIASED[name]
    inputs = shown(4)[:1].expand(7, *shown(4).shape[1:])
    network = build(notation, (1, 8, 8), neuron=lambda: LIF(**settings), payload_bits=4, input_is_bias=True, seed=3)
    return trained(network, inputs), inputs


@pytest.mark.parametrize("name", BIASED)
def test_input_as_bias_folds_to_the_same_spikes(name: str) -> None:
    network, inputs = biased(name)
    folded, emitted = run_folded(fold(network), inputs.numpy()), network.spikes(inputs)
    for stage in network.stages:
        assert np.array_equal(folded[stage.name], emitted[stage.name].detach().numpy()), stage.name
        assert 0 < folded[stage.name].mean() < 1, stage.name


@pytest.mark.parametrize("name", BIASED)
def test_input_as_bias_runs_as_integers_near_its_floats(name: str) -> None:
    network, inputs = biased(name)
    layers = fold(network)
    integers, _ = quantize(layers, (1, 8, 8), 4)
    biases = input_biases(layers, integers, inputs.numpy())
    recording, rasters = reference.run(integers, biases), network.rasters(inputs)
    assert list(recording.spikes) == list(rasters)
    first = network.stages[0].name
    assert (recording.spikes[first] != rasters[first].numpy()).mean() < 0.02
    assert engine.run(integers, biases).hash == recording.hash


@pytest.mark.parametrize("readout", ["spikes", "current"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_runs_as_integers_near_its_floats(name: str, readout: str) -> None:
    notation, settings = NETWORKS[name]
    network = trained_a_little(notation, readout, settings, 1)
    integers, rows = quantize(fold(network), (1, 8, 8), 1)
    inputs = shown(1)
    recording = reference.run(integers, inputs.numpy())
    rasters = network.rasters(inputs)
    assert list(recording.spikes) == list(rasters)
    assert len(rows) == len(integers.connections)
    first = network.stages[0].name  # before rounding has added up
    assert (recording.spikes[first] != rasters[first].numpy()).mean() < 0.02
    assert engine.run(integers, inputs.numpy()).hash == recording.hash
    assert recording.spiking == [stage.name for stage in network.stages if stage.spiking]


def test_max_pooling_is_exact_in_integers() -> None:
    network = SpikingNetwork((2, 7, 7), [nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(32, 2), LIF()])
    integers, _ = quantize(fold(network), (2, 7, 7), 1)
    inputs = (np.random.default_rng(0).random((6, 4, 2, 7, 7)) < 0.2).astype(np.uint8)
    spikes = reference.run(integers, inputs).spikes["pool1"]
    assert np.array_equal(spikes, network.rasters(torch.from_numpy(inputs))["pool1"].numpy())


def test_a_network_from_modules_folds_like_one_from_notation() -> None:
    block = Residual([nn.Linear(6, 5), LIF(), Recurrent(5, 6)], shortcut=[Skip(6)])
    network = SpikingNetwork((6,), nn.Sequential(block, LIF(), nn.Linear(6, 2), Readout())).double()
    inputs = (np.random.default_rng(0).random((9, 4, 6)) < 0.6).astype(np.uint8)
    layers = fold(network)
    assert [(c.source, c.delay) for c in layers[1].connections] == [
        ("residual1_dense1", 0),
        ("input", 0),
        ("residual1", 1),
    ]
    assert np.array_equal(
        run_folded(layers, inputs)["residual1"], network.rasters(torch.from_numpy(inputs))["residual1"]
    )


@pytest.mark.parametrize(
    ("weight", "bias", "neuron", "alive"),
    [
        (0.3, 0.0, {"beta": 0.0}, False),  # 3 inputs: 0.9 at most
        (0.4, 0.0, {"beta": 0.0}, True),
        (0.3, 0.2, {"beta": 0.0}, True),
        (0.03, 0.0, {"beta": 0.9}, False),  # 0.09 / (1 - 0.9) = 0.9
        (0.03, 0.0, {"beta": 0.9, "alpha": 0.2}, True),
        (0.03, 0.0, {"beta": 1.0}, True),
        (-5.0, 0.0, {"beta": 1.0}, False),
        (0.0, 0.0, {"beta": 0.0}, True),  # zeros are what they are
    ],
)
def test_a_layer_that_no_input_can_make_spike_is_refused(
    weight: float, bias: float, neuron: dict[str, Any], alive: bool
) -> None:
    plain = FoldedLayer(
        "a", (2,), (FoldedConnection(INPUT, np.full((2, 3), weight / 15)),), np.full(2, bias), 0.0, 0.5, 1.0
    )
    layer = replace(plain, **neuron)
    if alive:
        check_alive((layer,), payload_bits=4)
    else:
        with pytest.raises(UserError, match=r"layer 'a': no input brings its voltage above .* threshold 1 .*lower the"):
            check_alive((layer,), payload_bits=4)
