"""What was folded becomes a network again, which folds to the same layers and fires the same spikes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_aware import architectures, learn, neurons
from test_fold import BIASED, NETWORKS, biased, shown, trained_a_little
from torch import nn

from base.errors import UserError
from deploy.nir import files, floats, foreign
from quantize.fold import fold
from quantize.folded import FoldedConnection, FoldedLayer
from quantize.integer_network import INPUT
from quantize.unfold import network_of
from train.architecture import build
from train.network import SpikingNetwork
from train.neurons import LIF
from train.parts import Readout, Recurrent, Residual, Skip

SHAPE = (1, 8, 8)


def assert_same(layers: Sequence[FoldedLayer], expected: Sequence[FoldedLayer]) -> None:
    assert [layer.name for layer in layers] == [layer.name for layer in expected]
    for ours, theirs in zip(layers, expected, strict=True):
        assert len(ours.connections) == len(theirs.connections)
        pairs = [
            (ours, theirs, "connections"),
            *((*both, "clip") for both in zip(ours.connections, theirs.connections, strict=True)),
        ]
        for one, other, left_out in pairs:
            for field in fields(one):
                if field.name != left_out:
                    values = getattr(one, field.name), getattr(other, field.name)
                    assert np.array_equal(*values), (ours.name, field.name)


def in_float32(layers: Sequence[FoldedLayer], payload_bits: int) -> list[FoldedLayer]:
    """Layers with the numbers that a network in float32 holds of them."""
    unit = 2**payload_bits - 1

    def near(values: Any) -> Any:
        return np.float64(np.float32(values)) if np.ndim(values) else values

    def of(connection: FoldedConnection) -> FoldedConnection:
        if connection.source != INPUT:
            return replace(connection, weight=near(connection.weight))
        return replace(connection, weight=near(connection.weight * unit) * (1 / unit))

    return [
        replace(
            layer,
            connections=tuple(of(connection) for connection in layer.connections),
            bias=near(layer.bias),
            alpha=near(layer.alpha),
            beta=near(layer.beta),
        )
        for layer in layers
    ]


@pytest.mark.parametrize("readout", ["spikes", "current"])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_unfolded_network_fires_the_spikes_of_the_one_that_was_folded(name: str, readout: str) -> None:
    payload_bits = 4 if "norms" in name else 1
    network = trained_a_little(NETWORKS[name][0], readout, NETWORKS[name][1], payload_bits)
    unfolded = network_of(fold(network), SHAPE, payload_bits)
    assert_same(fold(unfolded), in_float32(fold(network), payload_bits))
    theirs = network.rasters(shown(payload_bits))
    ours = unfolded.double().rasters(shown(payload_bits))
    assert list(ours) == list(theirs)
    for stage in network.stages:
        if stage.spiking:
            assert torch.equal(ours[stage.name], theirs[stage.name]), stage.name


@pytest.mark.parametrize("name", BIASED)
def test_input_stays_a_bias(name: str) -> None:
    network, inputs = biased(name)
    unfolded = network_of(fold(network), SHAPE, 4)
    assert unfolded.input_is_bias
    assert_same(fold(unfolded), in_float32(fold(network), 4))
    theirs, ours = network.rasters(inputs), unfolded.double().rasters(inputs)
    assert all(torch.equal(ours[name], raster) for name, raster in theirs.items())


@given(architectures(), neurons(), st.sampled_from(["spikes", "current"]), st.sampled_from([1, 4]), st.integers(0, 99))
@settings(max_examples=40)
def test_folding_and_unfolding_rounds_to_float32_and_changes_nothing_else(
    notation: str, neuron: dict[str, Any], readout: str, payload_bits: int, seed: int
) -> None:
    try:
        network = build(
            notation, SHAPE, neuron=lambda: LIF(**neuron), readout=readout, payload_bits=payload_bits, seed=seed
        )
    except UserError:  # pooling that does not divide the map, or of graded input
        assume(False)
    learn(network, torch.randint(0, 2**payload_bits, (5, 4, *SHAPE), dtype=torch.uint8), 1)
    layers = fold(network)
    assume(all(np.all(np.asarray(layer.beta) >= 1 / 4096) for layer in layers))  # KLIF's k can bring it lower
    rounded = fold(network_of(layers, SHAPE, payload_bits))
    assert_same(rounded, in_float32(layers, payload_bits))
    assert_same(fold(network_of(rounded, SHAPE, payload_bits)), rounded)


def test_a_network_without_norms_is_unfolded_to_the_bit() -> None:
    neuron = {"alpha": 0.2, "beta": 0.7, "learn_decay": True, "per_neuron": True}
    network = build("4C3D2P2G1-MP2-6C3S2G2-R8-4", SHAPE, neuron=lambda: LIF(**neuron), payload_bits=4, seed=0)
    inputs = shown(4)
    learn(network, inputs, 2)
    network.time_weights = torch.linspace(0, 2, len(inputs))
    unfolded = network_of(fold(network), SHAPE, 4)
    assert_same(fold(unfolded), fold(network))
    assert torch.equal(unfolded.time_weights, network.time_weights)
    assert [type(stage.synapse) for stage in unfolded.stages] == [type(stage.synapse) for stage in network.stages]
    assert torch.equal(unfolded(inputs), network(inputs))


def test_currents_of_several_sources_meet_and_a_skipped_source_is_heard() -> None:
    block = Residual([nn.Linear(6, 5), LIF(), Recurrent(5, 6)], shortcut=[Skip(6)])
    layers = fold(SpikingNetwork((6,), [block, LIF(), nn.Linear(6, 2), Readout()], payload_bits=4))
    assert_same(fold(network_of(layers, (6,), 4)), in_float32(layers, 4))


@pytest.mark.parametrize("notation", ["AP2-12-4", "4C3S2-[4C3-4C3]-R12-4", "4C3-MP2-6C3G2-4"])
def test_a_network_from_a_file_fires_the_spikes_of_the_one_that_wrote_it(notation: str, tmp_path: Path) -> None:
    """Weights are multiples of powers of two, and no sum of such meets the threshold."""
    network = build(notation, SHAPE, neuron=lambda: LIF(0.75, threshold=0.7123, reset="soft", floor=True), seed=0)
    with torch.no_grad():
        for weights in network.parameters():
            weights.copy_((weights + 0.02).mul(64).round() / 64)
    files.save(floats.graph_of(fold(network), SHAPE)[0], tmp_path / "float.nir")
    found = foreign.read(tmp_path / "float.nir")
    unfolded = network_of(found.layers, found.input_shape, 1)
    theirs, ours = network.rasters(shown(1)), unfolded.rasters(shown(1))
    assert list(ours) == list(theirs)
    for name, raster in theirs.items():
        assert 0 < raster.float().mean() < 1, name
        assert torch.equal(ours[name], raster), name
    if "MP" in notation:
        assert isinstance(unfolded.stages[1].synapse, nn.MaxPool2d)


def dense(name: str, source: str, *, delay: int = 0, **changes: Any) -> FoldedLayer:
    connection = FoldedConnection(source, np.eye(3), delay=delay)
    return replace(FoldedLayer(name, (3,), (connection,), np.zeros(3), 0.0, 0.5, 1.0), **changes)


def test_an_unfolded_network_learns() -> None:
    network = network_of([dense("a", INPUT, bias=np.full(3, 0.1)), dense("b", "a")], (3,), 1)
    before = fold(network)
    learn(network, torch.ones(5, 3, 3), 2)
    assert not np.array_equal(fold(network)[0].connections[0].weight, before[0].connections[0].weight)


def test_names_that_a_network_cannot_have_are_changed_and_tell_each_other_apart() -> None:
    evil = 'a", x)\n    import os'
    names = ["fc.lif", "fc_lif", "train", "lambda", "0", "graph", "names", "flatten", "a_neurons", "a", "é", evil]
    layers = [dense(name, source) for name, source in zip(names, [INPUT, *names], strict=False)]
    network = network_of(layers, (3,), 1)
    assert [stage.name for stage in network.stages] == [
        *("fc_lif", "fc_lif_", "train_", "lambda_", "0", "graph_", "names_", "flatten", "a_neurons", "a", "_"),
        "a___x______import_os",
    ]
    assert [stage.links[0].source for stage in network.stages] == [INPUT, *(s.name for s in network.stages[:-1])]


def test_the_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    network_of([dense("a", INPUT)], (3,), 1)
    assert torch.equal(torch.get_rng_state(), before)


CONVOLVED = FoldedConnection(
    "a", np.ones((1, 1, 1, 1)), {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}, delay=1
)
FROM_INPUT = FoldedConnection(INPUT, np.ones((1, 1, 1, 1)), CONVOLVED.geometry)
MAPS = FoldedLayer("a", (1, 2, 2), (FROM_INPUT,), np.zeros(1), 0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("layer", "shape", "says"),
    [
        (dense("a", INPUT, delay=2), (3,), r"layer 'a' hears 'input' after a delay of 2"),
        (dense("a", "a", delay=1), (3,), r"layer 'a' hears no other"),
        (
            replace(
                dense("a", INPUT), connections=(*dense("a", INPUT).connections, *dense("a", "a", delay=3).connections)
            ),
            (3,),
            r"layer 'a' of shape \(3,\) hears itself through dense weights after a delay of 3",
        ),
        (
            replace(MAPS, connections=(FROM_INPUT, CONVOLVED)),
            (1, 2, 2),
            r"layer 'a' of shape \(1, 2, 2\) hears itself through a convolution after a delay of 1",
        ),
        (
            replace(MAPS, bias=np.ones((1, 2, 2))),
            (1, 2, 2),
            r"layer 'a' .* biases of shape \(1, 2, 2\), where only one",
        ),
        (dense("a", INPUT, beta=0.0), (3,), r"layer 'a': beta = 0.0: .* between 1/4096 and 1"),
    ],
)
def test_what_no_spiking_network_can_say_is_refused(layer: FoldedLayer, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(UserError, match=f"{says}.*quantize the folded layers as they are"):
        network_of([layer], shape, 1)
