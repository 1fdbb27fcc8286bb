"""NIR graphs: what another reader sees in them, and what this program reads back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from euler import Euler
from hypothesis import assume, given, settings
from strategies import networks
from test_fold import shown
from test_onnx_floats import DYADIC, rounded

from base.errors import UserError
from deploy.nir import files, floats, foreign, integer
from deploy.nir.graph import grouped, ungrouped
from quantize import arithmetic, engine
from quantize.fold import fold
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population, readout
from quantize.scales import quantize
from train.architecture import build
from train.datasets import load
from train.neurons import LIF

NO_MEMORY = arithmetic.DECAY_UNITY - 1


def written(network: IntegerNetwork, path: Path) -> nir.NIRGraph:
    """The network's graph, through a file and NIR's own reader."""
    files.save(integer.graph_of(network)[0], path)
    return nir.read(path, type_check=False)


@given(networks(cycles=True, readouts=True))
@settings(max_examples=150)
def test_what_was_written_is_read_back_with_the_same_hash(tmp_path_factory: Any, case: Any) -> None:
    path = tmp_path_factory.mktemp("nir") / "network.nir"
    files.save(integer.graph_of(case[0])[0], path)
    assert files.load(path).hash == case[0].hash


@pytest.mark.smoke
def test_all_fields_of_a_network_survive(tmp_path: Path) -> None:
    first = Population("a", (3,), np.array([4095, 0, 7]), 9, 40, np.array([1, 2, 3]), 2, reset="soft-late")
    second = Population("output", (2,), 5, 0, 90, 0, floor=True)
    connections = (
        Connection(INPUT, "a", 2 * np.arange(-6, 6).reshape(3, 4), exponent=3),
        Connection("a", "output", np.full((2, 3), -256), exponent=-8),
        Connection("output", "a", np.full((3, 2), 254), delay=2),
    )
    network = IntegerNetwork((4,), (first, second), connections, "output", time_weights=np.array([1, 5]))
    for changed in (network, replace(network, time_weights=None, payload_bits=8)):
        written(changed, tmp_path / "network.nir")
        assert files.load(tmp_path / "network.nir").hash == changed.hash


ARCHITECTURES = {
    "dense": ("64-10", {}),
    "convolutions": ("6C3-AP2-20-10", {"alpha": 0.3}),
    "recurrent": ("R12-10", {"reset": "soft", "floor": True}),
    "residual": ("4C3-[4C3-4C3]-AP2-10", {"beta": 1.0}),
    "maxima": ("4C3-MP2-6C3G2-10", {"alpha": 0.5}),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_networks_for_digits_are_read_back_with_the_same_hash_and_by_nirs_own_reader(name: str, tmp_path: Path) -> None:
    notation, neuron = ARCHITECTURES[name]
    network = build(notation, load("digits").shape, neuron=lambda: LIF(**neuron), seed=0)
    integers, _ = quantize(fold(network), network.input_shape, 1)
    files.save(integer.graph_of(integers)[0], tmp_path / "network.nir")
    assert files.load(tmp_path / "network.nir").hash == integers.hash
    nir.read(tmp_path / "network.nir", type_check=True)


@given(networks(cycles=True, readouts=True))
@settings(max_examples=50)
def test_nirs_own_reader_checks_all_shapes_but_those_behind_kernels_that_are_not_square(
    tmp_path_factory: Any, case: Any
) -> None:
    assume(all(not c.is_conv or c.weight.shape[2] == c.weight.shape[3] for c in case[0].connections))
    path = tmp_path_factory.mktemp("nir") / "network.nir"
    files.save(integer.graph_of(case[0])[0], path)
    nir.read(path, type_check=True)


@given(networks(readouts=True))
@settings(max_examples=50)
def test_weights_thresholds_and_biases_are_the_integers(tmp_path_factory: Any, case: Any) -> None:
    network, _ = case
    graph = written(network, tmp_path_factory.mktemp("nir") / "network.nir")
    seen = dict.fromkeys((population.name for population in network.populations), 0)
    for connection in network.connections:
        node = graph.nodes[f"{connection.target}.from{seen[connection.target]}"]
        seen[connection.target] += 1
        weight = grouped(node.weight, connection.groups) if connection.is_conv else node.weight
        assert np.array_equal(weight, connection.weight * 2.0**connection.exponent)
    for population in network.populations:
        if population.spiking:
            threshold = graph.nodes[population.name].v_threshold
            assert np.array_equal(threshold, np.broadcast_to(population.threshold_mant, population.shape))
            assert not graph.nodes[population.name].v_reset.any()


@given(networks(cycles=True, readouts=True))
@settings(max_examples=60)
def test_without_decays_and_wide_sums_another_reader_sees_the_engines_spikes(tmp_path_factory: Any, case: Any) -> None:
    """There nothing rounds, wraps or saturates, so that real numbers are the integers."""
    network, inputs = case
    populations = tuple(
        replace(p, decay_u=NO_MEMORY, decay_v=0, reset="hard", floor=False, bias_mant=p.bias_mant // 16)
        for p in network.populations
    )
    connections = tuple(replace(c, exponent=min(max(0, c.exponent), 2)) for c in network.connections)
    sums = [
        sum(c.row_sums.max() * network.payload_max(c.source) * 4 for c in network.into(p.name)) for p in populations
    ]
    assume(max(sums) << arithmetic.STATE_SHIFT < arithmetic.STATE_LIMIT)
    network = replace(network, populations=populations, connections=connections)
    expected = engine.run(network, inputs, states=99)
    assume(all(np.abs(v).max() < arithmetic.STATE_LIMIT - 1 for v in expected.v.values()))
    graph = written(network, tmp_path_factory.mktemp("nir") / "network.nir")
    ran = Euler(graph).run(inputs)
    for population in network.populations:
        name = population.name
        if population.spiking:
            assert np.array_equal(ran[name], expected.spikes[name]), name


def test_readouts_and_inputs_as_biases_are_seen_in_units_of_activation(tmp_path: Path) -> None:
    lif = Population("a", (2,), NO_MEMORY, 0, 3, 0, bias_exp=6)
    out = readout("b", (1,), np.array([32]), 1)
    network = IntegerNetwork(
        (2,), (lif, out), (Connection("a", "b", np.array([[2, 4]]), 1),), "b", input_is_bias_of="a"
    )
    inputs = np.array([[[2, 1]]] * 3, np.int16)
    ran = Euler(written(network, tmp_path / "network.nir")).run(inputs)
    assert np.array_equal(ran["a"], engine.run(network, inputs).spikes["a"])
    assert np.array_equal(ran["output"] * 64, engine.run(network, inputs).spikes["b"])


def test_metadata_hold_the_contract(tmp_path: Path) -> None:
    lif = Population("a", (2,), 5, 7, 9, 11, 3, reset="soft", floor=True)
    network = IntegerNetwork((2,), (lif,), (Connection(INPUT, "a", np.full((2, 2), 2), 4),), "a", payload_bits=4)
    graph = written(network, tmp_path / "network.nir")
    assert graph.metadata["arithmetic"] == arithmetic.ARITHMETIC_ID
    assert graph.metadata["network_sha256"] == network.hash
    registers = graph.metadata["registers"]["a"]
    assert registers == {"decay_u": 5, "decay_v": 7, "threshold_mant": 9, "bias_mant": 11}
    header = json.loads(graph.metadata["network"])
    assert header["payload_bits"] == 4
    assert header["populations"][0]["reset"] == "soft"
    unsaid = {(row["population"], row["what"]) for row in json.loads(graph.metadata["unsaid"])}
    assert unsaid >= {("a", "reset"), ("a", "floor"), (INPUT, "payload"), ("all", "dt"), ("all", "arithmetic")}


def test_kernels_in_groups_are_spelled_out_and_found_again() -> None:
    weight = np.random.default_rng(0).integers(1, 9, (6, 2, 3, 2))
    assert ungrouped(weight, 3).shape == (6, 6, 3, 2)
    assert np.array_equal(grouped(ungrouped(weight, 3), 3), weight)


@pytest.mark.parametrize("name", ["a.from0", ".", "a\0"])
def test_names_that_have_no_place_are_refused(name: str) -> None:
    populations = (Population("a", (2,), 0, 0, 1, 0), Population(name, (2,), 0, 0, 1, 0))
    connections = (Connection(INPUT, "a", np.full((2, 2), 2)), Connection("a", name, np.full((2, 2), 2)))
    with pytest.raises(UserError, match="a node cannot be called"):
        integer.graph_of(IntegerNetwork((2,), populations, connections, "a"))


EXACT = {name: case for name, case in DYADIC.items() if not {"reset", "floor"} & set(case[1])}


@pytest.mark.parametrize("readout", ["spikes", "current"])
@pytest.mark.parametrize("name", EXACT)
def test_another_reader_of_the_float_graph_sees_the_spikes_of_torch(name: str, readout: str, tmp_path: Path) -> None:
    notation, neuron = EXACT[name]
    network = build(notation, (1, 8, 8), neuron=lambda: LIF(**neuron), readout=readout, seed=3)
    network = rounded(network).eval()
    inputs = shown(1)[:5]
    expected = network.rasters(inputs)
    assert all(raster.any() for raster in expected.values()), [*expected]
    files.save(floats.graph_of(fold(network), network.input_shape)[0], tmp_path / "float.nir")
    ran = Euler(nir.read(tmp_path / "float.nir")).run(inputs.numpy())
    *hidden, output = expected
    for population in hidden:
        assert np.array_equal(ran[population], expected[population].numpy()), population
    assert np.array_equal(ran["output"], expected[output].numpy())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_float_graph_is_read_back_into_its_layers(name: str, tmp_path: Path) -> None:
    notation, neuron = ARCHITECTURES[name]
    network = build(notation, (1, 8, 8), neuron=lambda: LIF(**neuron), seed=0)
    layers = fold(network)
    graph, _ = floats.graph_of(layers, network.input_shape)
    files.save(graph, tmp_path / "float.nir")
    found = foreign.read(tmp_path / "float.nir")
    assert found.input_shape == network.input_shape
    for ours, theirs in zip(layers, found.layers, strict=True):
        assert (ours.name, ours.shape, ours.threshold) == (theirs.name, theirs.shape, theirs.threshold)
        if ours.name in graph.nodes and ours.neuron == "lif":
            assert (ours.reset, ours.floor) == (theirs.reset, theirs.floor)
        for one, other in zip(ours.connections, theirs.connections, strict=True):
            weight = ungrouped(one.weight, one.geometry["groups"]) if one.geometry else one.weight
            assert np.array_equal(weight.astype(np.float32), other.weight)
            assert (one.source, one.delay) == (other.source, other.delay)
        np.testing.assert_allclose(theirs.bias, ours.bias, rtol=1e-6)
        np.testing.assert_allclose([theirs.alpha, theirs.beta], [ours.alpha, ours.beta], rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["dense", "convolutions", "recurrent"])
def test_quantizing_what_was_read_gives_the_integers_of_the_network_itself(name: str, tmp_path: Path) -> None:
    notation, neuron = ARCHITECTURES[name]
    network = build(notation, (1, 8, 8), neuron=lambda: LIF(**neuron), seed=0)
    files.save(floats.graph_of(fold(network), network.input_shape)[0], tmp_path / "float.nir")
    found = foreign.read(tmp_path / "float.nir")
    theirs, _ = quantize(found.layers, found.input_shape, 1)
    ours, _ = quantize(fold(network), network.input_shape, 1)
    assert theirs.hash == ours.hash


def test_the_export_tells_what_nir_cannot_say() -> None:
    network = build("R8-4", (6,), neuron=lambda: LIF(alpha=0.5, reset="soft", floor=True), payload_bits=4, seed=0)
    layers = [replace(layer, bias=layer.bias + 1) for layer in fold(network)]
    _, rows = floats.graph_of(layers, network.input_shape, 15)
    told = {(row.population, row.what) for row in rows}
    each = {(name, what) for name in ("recurrent1", "dense2") for what in ("reset", "floor", "order", "bias")}
    assert told == each | {("all", "dt"), (INPUT, "payload")}
    plain = build("8-4", (6,), seed=0)
    assert [row.what for row in floats.graph_of(fold(plain), plain.input_shape)[1]] == ["dt"]
