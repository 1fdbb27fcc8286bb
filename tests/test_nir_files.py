"""A NIR or HDF5 file becomes the network it was written from, or is refused in one sentence, nothing else opened or
run."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import small_cycle

from base.errors import UserError
from deploy import hdf5
from deploy.nir import files, floats, foreign, integer
from quantize.fold import fold
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population, pack
from train.architecture import build

Harm = Callable[[h5py.File], None]


def plain() -> IntegerNetwork:
    """What a file from elsewhere could hold too."""
    lif = Population("a", (3,), 4095, 9, 40, 0)
    return IntegerNetwork((4,), (lif,), (Connection(INPUT, "a", 2 * np.arange(-6, 6).reshape(3, 4)),), "a")


def file_of(path: Path, harm: Harm | None = None, network: IntegerNetwork | None = None) -> Path:
    files.save(integer.graph_of(network or small_cycle())[0], path)
    if harm is not None:
        with h5py.File(path, "a") as file:
            harm(file)
    return path


def refusal(path: Path, read: Callable[[Path], Any] = files.load) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def replaced(where: str, value: Any, **options: Any) -> Harm:
    def harm(file: h5py.File) -> None:
        if where in file:
            del file[where]
        file.create_dataset(where, **({"data": value} | options))

    return harm


def removed(where: str) -> Harm:
    def harm(file: h5py.File) -> None:
        del file[where]

    return harm


def link(value: Any, where: str = "node/nodes/b/metadata") -> Harm:
    def harm(file: h5py.File) -> None:
        file[where] = value(file) if callable(value) else value

    return harm


def deep(file: h5py.File) -> None:
    file.create_group("node/" + "/".join("x" * 40))


def with_reference(file: h5py.File) -> None:
    file.create_dataset("node/x", data=file["node"].ref, dtype=h5py.ref_dtype)


def with_region(file: h5py.File) -> None:
    weight = file["node/nodes/a.from0/weight"]
    file.create_dataset("node/x", data=weight.regionref[0], dtype=h5py.regionref_dtype)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("node/x", layout)


def external(file: h5py.File) -> None:
    file.create_dataset("node/x", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def packed_zeros(file: h5py.File) -> None:
    """Kilobytes that unpack to gigabytes."""
    file.create_dataset("node/x", (1 << 31,), "f4", compression="gzip", chunks=(1 << 20,))


def named_type(file: h5py.File) -> None:
    file["node/x"] = np.dtype("f4")


def empty(file: h5py.File) -> None:
    file.create_dataset("node/x", data=h5py.Empty("f4"))


UNSAFE: dict[str, tuple[Harm, str]] = {
    "a link into another file": (link(h5py.ExternalLink("/etc/passwd", "/")), "is a link to another place"),
    "a soft link": (link(h5py.SoftLink("/node/nodes/a")), "is a link to another place"),
    "a dangling link": (link(h5py.SoftLink("/nowhere")), "is a link to another place"),
    "a group within itself": (link(lambda file: file["node"]), "is linked to twice"),
    "a dataset twice": (link(lambda file: file["version"]), "is linked to twice"),
    "a deep nest": (deep, "lies 13 groups deep, above the 12"),
    "an object reference": (with_reference, "is of type object, neither numbers nor text"),
    "a region reference": (with_region, "is of type object, neither numbers nor text"),
    "a virtual dataset": (virtual, "keeps its data in other files"),
    "data in another file": (external, "keeps its data in other files"),
    "a type by itself": (named_type, "is neither a group nor a dataset"),
    "nothing": (empty, "neither numbers nor text"),
    "bytes of any kind": (replaced("node/x", np.void(b"\x80\x04.")), "neither numbers nor text"),
    "a record": (replaced("node/x", np.zeros(2, "i4,f4")), "neither numbers nor text"),
    "complex numbers": (replaced("node/x", np.zeros(2, complex)), "neither numbers nor text"),
    "a huge shape without data": (replaced("node/x", None, shape=(1 << 40, 1 << 10), dtype="f4"), "above the"),
    "gigabytes once unpacked": (packed_zeros, "above the 536,870,912 bytes"),
}


@pytest.mark.parametrize("read", [files.load, foreign.read])
@pytest.mark.parametrize("name", UNSAFE)
def test_what_is_not_plain_data_of_the_file_is_refused_unread(name: str, read: Any, tmp_path: Path) -> None:
    harm, says = UNSAFE[name]
    assert says in refusal(file_of(tmp_path / "network.nir", harm), read)


def test_filters_that_a_plugin_would_bring_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(tmp_path / "network.nir")
    monkeypatch.setattr(hdf5, "FILTERS", ())
    assert "behind a filter of somebody's own" in refusal(path)


def test_every_text_of_a_dataset_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(tmp_path / "network.nir", replaced("node/x", ["x" * 5000] * 10, dtype=h5py.string_dtype()))
    monkeypatch.setattr(hdf5, "DATA_MAX", 40_000)
    assert "'/node/x' brings the data above the 40,000 bytes" in refusal(path)


def test_no_more_objects_are_read_than_a_network_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(tmp_path / "network.nir")
    monkeypatch.setattr(hdf5, "OBJECTS_MAX", 9)
    assert "is one object more than the 9 that are read" in refusal(path)


def of_huge_maps() -> IntegerNetwork:
    """A kernel of one weight over a map that no memory holds."""
    huge = (1, 1 << 20, 1 << 20)
    lif = Population("a", huge, 0, 0, 1, 0)
    return IntegerNetwork(huge, (lif,), (Connection(INPUT, "a", np.full((1, 1, 1, 1), 2)),), "a")


def claims_huge_maps(file: h5py.File) -> None:
    replaced("node/metadata/network", json.dumps(pack(of_huge_maps())[0]))(file)
    replaced("node/nodes/a.from0/weight", np.full((1, 1, 1, 1), 2.0, np.float32))(file)
    for register in ("decay_u", "bias_mant"):
        replaced(f"node/metadata/registers/a/{register}", 0)(file)


def group_for_weights(file: h5py.File) -> None:
    removed(f"{NODES}/b.from0/weight")(file)
    file.create_group(f"{NODES}/b.from0/weight")


NODES = "node/nodes"
HARMED: dict[str, tuple[Harm, str]] = {
    "no graph": (removed("node"), "is a NIR graph from elsewhere"),
    "no nodes": (removed(NODES), "describes no whole network (KeyError: 'nodes')"),
    "no edges": (removed("node/edges"), "'edges' is different"),
    "a missing node": (removed(f"{NODES}/b.from0"), "describes no whole network (KeyError: 'b.from0')"),
    "a missing population": (removed(f"{NODES}/b"), "'nodes/b' is different"),
    "another node": (replaced(f"{NODES}/c/type", "IF"), "'nodes/c' is different"),
    "another type": (replaced(f"{NODES}/b/type", "IF"), "'nodes/b/type' is different"),
    "another threshold": (replaced(f"{NODES}/b/v_threshold", np.full(2, 91, np.float32)), "'nodes/b/v_threshold'"),
    "a threshold of another type": (replaced(f"{NODES}/b/v_threshold", np.full(2, 90.0)), "'nodes/b/v_threshold'"),
    "text for weights": (replaced(f"{NODES}/b.from0/weight", "x"), "describes no whole network (ValueError"),
    "a group for weights": (group_for_weights, "describes no whole network (TypeError"),
    "a weight between": (replaced(f"{NODES}/b.from0/weight", np.full((2, 3), -0.1)), "are no integers"),
    "a weight too large": (replaced(f"{NODES}/b.from0/weight", np.full((2, 3), 2.0)), "512 at (0, 0) lies outside"),
    "a weight that the hash does not know": (
        replaced(f"{NODES}/b.from0/weight", np.full((2, 3), -0.5, np.float32)),
        "'metadata/network_sha256' is different",
    ),
    "edges to nowhere": (replaced("node/edges", [["a", "x"]], dtype=h5py.string_dtype()), "'edges' is different"),
    "edges of numbers": (replaced("node/edges", np.ones((2, 2))), "'edges' is different"),
    "a decay out of range": (replaced("node/metadata/registers/b/decay_v", 5000), "5000 lies outside 0..4095"),
    "a decay of another type": (replaced("node/metadata/registers/b/decay_v", 5.0), "is of type float64"),
    "no registers": (removed("node/metadata/registers/b"), "describes no whole network (KeyError"),
    "maps that no memory holds": (claims_huge_maps, "it claims more neurons and weights than it holds"),
    "a header that is no JSON": (replaced("node/metadata/network", "{" * 99), "describes no whole network (JSON"),
    "nested without end": (replaced("node/metadata/network", "[" * 100_000), "describes no whole network (Recursion"),
    "another arithmetic": (replaced("node/metadata/arithmetic", "x"), "of arithmetic x; this program reads loihi-lif"),
    "another version": (replaced("node/metadata/version", 2), "of version 2; this program reads 1"),
    "a version of many": (replaced("node/metadata/version", np.ones(3)), "of version [1. 1. 1.]; this program reads 1"),
    "from elsewhere": (replaced("node/metadata/format", "x"), "is a NIR graph from elsewhere"),
}


@pytest.mark.parametrize("name", HARMED)
def test_a_file_that_was_harmed_is_refused(name: str, tmp_path: Path) -> None:
    harm, says = HARMED[name]
    assert says in refusal(file_of(tmp_path / "network.nir", harm))


def test_a_float_network_is_no_integer_network(tmp_path: Path) -> None:
    files.save(floats.graph_of(fold(build("8-4", (6,), seed=0)), (6,))[0], tmp_path / "float.nir")
    assert "holds a float network" in refusal(tmp_path / "float.nir")


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path / "network.nir")
    whole = path.read_bytes()
    for data in (b"", b"PK\x03\x04" + bytes(99), b"\x80\x04cos\nsystem\n.", whole[: len(whole) // 2]):
        path.write_bytes(data)
        assert "is no whole NIR file" in refusal(path)
    assert "No such file" in refusal(tmp_path / "nowhere.nir")
    assert "Is a directory" in refusal(tmp_path)
    graph = nir.NIRGraph(
        {"input": nir.Input(np.array([2])), "output": nir.Output(np.array([2]))}, [("input", "output")]
    )
    files.save(graph, path)
    assert "is a NIR graph from elsewhere" in refusal(path)


def test_a_file_too_large_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "network.nir", "wb") as file:
        file.truncate(hdf5.FILE_MAX + 1)
    monkeypatch.setattr(Path, "read_bytes", None)
    assert "has 268,435,457 bytes, above the 268,435,456" in refusal(tmp_path / "network.nir")


def test_a_heap_that_would_be_read_for_ever_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.nir"
    nir.write(path, integer.graph_of(plain())[0])
    data = bytearray(path.read_bytes())
    at = data.index(b"GCOL") + 16
    while data[at : at + 2] != b"\0\0":  # to the free space, which index 0 marks
        at += 16 + -(-int.from_bytes(data[at + 8 : at + 16], "little") // 8) * 8
    data[at + 8 : at + 16] = bytes(8)
    path.write_bytes(data)
    assert "is no whole NIR file" in refusal(path)


@given(st.data())
@settings(max_examples=150)
def test_harmed_bytes_give_the_same_network_or_one_sentence(tmp_path_factory: Any, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("nir") / "network.nir"
    file = io.BytesIO()
    network = data.draw(st.sampled_from([small_cycle(), plain()]))
    nir.write(file, integer.graph_of(network)[0])
    harmed = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        harmed[data.draw(st.integers(0, len(harmed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(harmed)
    try:
        found = files.load(path).hash
    except UserError as error:
        found = str(error)
    assert found == network.hash or re.fullmatch(rf"{re.escape(str(path))}: .*\.", found), found
    try:
        read = [layer.name for layer in foreign.read(path).layers]
    except UserError as error:
        read = str(error)
    assert isinstance(read, list) or re.fullmatch(rf"{re.escape(str(path))}: .*\.", read), read
