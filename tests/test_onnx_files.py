"""An ONNX file becomes the network it was written from, or is refused in one sentence before anything of it runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from strategies import networks, small_cycle

from base.errors import UserError
from deploy.onnx import files, floats, integer
from deploy.onnx.graph import scan_model, step_model
from quantize.fold import fold
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population
from train.architecture import build

FORMS = {"step": step_model, "scan": scan_model}


def model_of(network: IntegerNetwork, form: str = "step") -> ModelProto:
    step = integer.build(network)
    return FORMS[form](step, integer.about(network, step))


@given(networks(cycles=True, readouts=True), st.sampled_from(list(FORMS)))
@settings(max_examples=100)
def test_what_was_written_is_read_back_with_the_same_hash(tmp_path_factory: Any, case: Any, form: str) -> None:
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    files.save(model_of(case[0], form), path)
    assert files.load(path).hash == case[0].hash


@pytest.mark.smoke
@pytest.mark.parametrize("form", FORMS)
def test_all_fields_of_a_network_survive(tmp_path: Path, form: str) -> None:
    network = small_cycle()
    for changed in (network, replace(network, time_weights=None, payload_bits=8)):
        files.save(model_of(changed, form), tmp_path / "network.onnx")
        assert files.load(tmp_path / "network.onnx").hash == changed.hash


def refusal(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The sentence that refuses the file, no session having been made for it."""

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a session was made")

    monkeypatch.setattr(onnxruntime, "InferenceSession", forbidden)
    with pytest.raises(UserError) as caught:
        files.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without_initialiser(model: ModelProto) -> None:
    del model.graph.initializer[[tensor.name for tensor in model.graph.initializer].index("connection/1/weight")]


def with_initialiser(name: str, values: np.ndarray) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return change


def with_claim(**changes: Any) -> Callable[[ModelProto], None]:
    """Another header in the metadata."""

    def change(model: ModelProto) -> None:
        entry = next(entry for entry in model.metadata_props if entry.key == "network")
        entry.value = json.dumps(json.loads(entry.value) | changes)

    return change


def with_metadata(key: str, value: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        next(entry for entry in model.metadata_props if entry.key == key).value = value

    return change


def with_cycle(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if node.name == "a/u/driven")
    node.input[0] = "a/u/next"


def with_another_operator(model: ModelProto) -> None:
    next(node for node in model.graph.node if node.name == "b/fires").op_type = "GreaterOrEqual"


def with_own_domain(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def with_function(model: ModelProto) -> None:
    model.functions.append(helper.make_function("f", "g", ["x"], ["y"], [helper.make_node("Abs", ["x"], ["y"])], []))


def with_data_elsewhere(model: ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "connection/0/weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../../../etc/passwd"), ("offset", "0"), ("length", "12")):
        tensor.external_data.add(key=key, value=value)


def with_huge_dimensions(model: ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "connection/0/weight")
    tensor.dims[:] = [1 << 40, 1 << 20]


def with_a_weight_changed(model: ModelProto) -> None:
    with_initialiser("connection/1/weight", np.full((3, 2), 3, np.int8))(model)


def of_huge_maps(model: ModelProto) -> None:
    """A kernel of one weight over a map that no memory holds."""
    huge = (1, 1 << 20, 1 << 20)
    lif = Population("a", huge, 0, 0, 1, 0)
    network = IntegerNetwork(huge, (lif,), (Connection(INPUT, "a", np.full((1, 1, 1, 1), 2)),), "a")
    model.CopyFrom(model_of(network))


POPULATIONS = [{"name": "a"}]
HARMED = {
    "a missing initialiser": (without_initialiser, "describes no whole network (KeyError: 'connection/1/weight')"),
    "weights of another type": (
        with_initialiser("connection/1/weight", np.ones((3, 2), np.float32)),
        "weights are float32, not int8 or uint8",
    ),
    "a decay of another type": (
        with_initialiser("population/b/decay_u", np.array(5.0)),
        "population 'b': decay_u: is of type float64",
    ),
    "a decay out of range": (
        with_initialiser("population/b/decay_u", np.array(5000, np.int32)),
        "population 'b': decay_u: 5000 lies outside 0..4095",
    ),
    "a weight that the hash does not know": (with_a_weight_changed, "metadata 'network_sha256' is different"),
    "a cycle": (with_cycle, "node 'a/u/driven' is different"),
    "another operator": (with_another_operator, "node 'b/fires' is different"),
    "a domain of its own": (with_own_domain, "what surrounds its nodes is different"),
    "a function": (with_function, "what surrounds its nodes is different"),
    "data in another file": (with_data_elsewhere, "keeps 'connection/0/weight' in another file, which is not followed"),
    "dimensions without data": (with_huge_dimensions, "describes no whole network (ValueError"),
    "maps that no memory holds": (of_huge_maps, "claims 2,199,023,255,552 inputs and neurons, above the 4,194,304"),
    "no populations": (with_claim(populations=[]), "the output 'b' is no population"),
    "half a population": (with_claim(populations=POPULATIONS), "describes no whole network (TypeError"),
    "a claim of another type": (with_claim(connections=3), "describes no whole network (TypeError"),
    "another claim than the graph": (with_claim(payload_bits=4), "metadata 'network_sha256' is different"),
    "another arithmetic": (with_claim(arithmetic="other"), "is for the arithmetic 'other', not loihi-lif-v1"),
    "a header that is no JSON": (with_metadata("network", "{" * 100_000), "describes no whole network"),
    "nested without end": (with_metadata("network", "[" * 100_000), "describes no whole network"),
    "another version": (with_metadata("version", "2"), "is spikeproof-onnx version 2; this program reads 1"),
    "a scan that is none": (with_metadata("graph", "scan"), "describes no whole network"),
    "from elsewhere": (with_metadata("format", "other"), "is an ONNX graph from elsewhere"),
}


@pytest.mark.parametrize("name", HARMED)
def test_a_file_that_was_harmed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    change, says = HARMED[name]
    model = model_of(small_cycle())
    change(model)
    (tmp_path / "network.onnx").write_bytes(model.SerializeToString())
    assert says in refusal(tmp_path / "network.onnx", monkeypatch)


@pytest.mark.parametrize("form", FORMS)
def test_a_float_network_is_no_integer_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    layers = fold(build("8-4", (6,), seed=0))
    files.save(FORMS[form](floats.build(layers, (6,)), floats.about(layers)), tmp_path / "float.onnx")
    assert "holds a float network" in refusal(tmp_path / "float.onnx", monkeypatch)


def test_foreign_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "network.onnx"
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
    whole = model_of(small_cycle()).SerializeToString()
    foreign = helper.make_model(graph).SerializeToString()
    for data, says in (
        (foreign, "is an ONNX graph from elsewhere"),
        (b"", "is an ONNX graph from elsewhere"),
        (b"PK\x03\x04" + bytes(99), "is no whole ONNX file"),
        (whole[: len(whole) // 2], "is no whole ONNX file"),
    ):
        path.write_bytes(data)
        assert says in refusal(path, monkeypatch)
    assert "No such file" in refusal(tmp_path / "nowhere.onnx", monkeypatch)
    assert "Is a directory" in refusal(tmp_path, monkeypatch)


def test_a_file_too_large_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "network.onnx", "wb") as file:
        file.truncate(files.FILE_MAX + 1)
    monkeypatch.setattr(Path, "read_bytes", None)
    assert "has 268,435,457 bytes, above the 268,435,456" in refusal(tmp_path / "network.onnx", monkeypatch)


@given(st.data())
@settings(max_examples=150)
def test_harmed_bytes_give_the_same_network_or_one_sentence(tmp_path_factory: Any, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    harmed = bytearray(model_of(small_cycle(), data.draw(st.sampled_from(list(FORMS)))).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        harmed[data.draw(st.integers(0, len(harmed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(harmed)
    try:
        found = files.load(path).hash
    except UserError as error:
        found = str(error)
    assert found == small_cycle().hash or re.fullmatch(rf"{re.escape(str(path))}: .*\.", found), found


def test_a_graph_that_runs_otherwise_here_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that drops every spike stands in for one whose kernels saturate."""
    files.save(model_of(small_cycle(), "scan"), tmp_path / "network.onnx")
    run = onnxruntime.InferenceSession.run

    def silent(*arguments: Any) -> list[np.ndarray]:
        return [values * (values.dtype != np.uint8) for values in run(*arguments)]

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", silent)
    with pytest.raises(UserError, match="this onnxruntime computes 'a/spikes' otherwise than the engine"):
        files.load(tmp_path / "network.onnx")


def test_weights_take_one_byte_each(tmp_path: Path) -> None:
    lif = Population("a", (256,), 0, 0, 1, 0)
    network = IntegerNetwork((784,), (lif,), (Connection(INPUT, "a", np.full((256, 784), 2)),), "a")
    files.save(model_of(network), tmp_path / "network.onnx")
    assert (tmp_path / "network.onnx").stat().st_size < 256 * 784 + 8192
    assert onnx.load(tmp_path / "network.onnx").graph.name == "step"
