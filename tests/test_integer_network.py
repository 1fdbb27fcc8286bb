"""The artefact: what it refuses, and that what is saved comes back, or is refused when it was touched."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import networks

from base.errors import UserError
from quantize import archive, engine, integer_network, recording, reference
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population, readout

PLAIN: dict[str, Any] = {"decay_u": 4095, "decay_v": 400, "threshold_mant": 100, "bias_mant": 0}


def population(name: str = "a", shape: tuple[int, ...] = (2,), **changes: Any) -> Population:
    return Population(name, shape, **(PLAIN | changes))


def small(**changes: Any) -> IntegerNetwork:
    parts: dict[str, Any] = {
        "input_shape": (3,),
        "populations": (population(),),
        "connections": (Connection(INPUT, "a", np.full((2, 3), 10)),),
        "output": "a",
    }
    return IntegerNetwork(**(parts | changes))


@pytest.mark.smoke
@given(networks(cycles=True, readouts=True))
@settings(max_examples=60)
def test_a_network_and_its_recording_come_back_from_disk_as_they_were(tmp_path_factory: Any, case: Any) -> None:
    folder = tmp_path_factory.mktemp("saved")
    network, inputs = case
    integer_network.save(network, folder / "network.npz")
    loaded = integer_network.load(folder / "network.npz")
    assert loaded.hash == network.hash
    ran = reference.run(network, inputs, states=1)
    assert reference.run(loaded, inputs, states=1).hash == ran.hash
    recording.save(ran, folder / "recording.npz")
    assert recording.load(folder / "recording.npz").hash == ran.hash


def test_numpy_alone_reads_the_file(tmp_path: Path) -> None:
    integer_network.save(small(), tmp_path / "network.npz")
    stored = np.load(tmp_path / "network.npz", allow_pickle=False)
    header = json.loads(stored["header"].tobytes())
    assert (header["arithmetic"], header["version"]) == ("loihi-lif-v1", 1)
    assert np.array_equal(stored["connection/0/weight"], np.full((2, 3), 10))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("decay_u", 4096, "4096 lies outside 0..4095"),
        ("decay_v", -1, "-1 lies outside 0..4095"),
        ("threshold_mant", 1 << 17, "131072 lies outside 0..131071"),
        ("threshold_mant", np.array([5, -3]), "-3 at (1,) lies outside"),
        ("bias_mant", 4096, "4096 lies outside -4096..4095"),
        ("bias_exp", 8, "8 lies outside 0..7"),
        ("decay_v", 0.5, "is of type float64, not integer"),
        ("bias_mant", np.zeros(3, int), "shape (3,) does not broadcast to (2,)"),
        ("reset", "none", "reset is 'none'; it is one of hard, soft, hard-late, soft-late"),
        ("neuron", "relu", "neuron is 'relu'; it is 'lif' or 'none'"),
    ],
)
def test_a_population_refuses_what_no_register_holds(field: str, value: Any, says: str) -> None:
    with pytest.raises(UserError) as refusal:
        population(**{field: value})
    assert says in str(refusal.value)
    assert "population 'a'" in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weight": np.array([[1, 2, 2]] * 2)}, "weight 1 is odd"),
        ({"weight": np.array([[256, 2, 2]] * 2)}, "256 at (0, 0) lies outside -256..254"),
        ({"weight": np.zeros((2, 3, 4), int)}, "shape (2, 3, 4)"),
        ({"exponent": 8}, "8 lies outside -8..7"),
        ({"delay": 63}, "63 lies outside 0..62"),
        ({"weight": np.zeros((2, 4), int)}, "the weights read 4 inputs"),
        ({"weight": np.zeros((3, 3), int)}, "yields shape (3,)"),
        ({"source": "nobody"}, "'nobody' is no population"),
        ({"weight": np.zeros((2, 1, 2, 2), int)}, "cannot read a source of shape (3,)"),
    ],
)
def test_a_connection_that_does_not_fit_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refusal:
        small(connections=(replace(small().connections[0], **changes),))
    assert says in str(refusal.value)


def test_a_convolution_with_an_empty_output_is_refused() -> None:
    with pytest.raises(UserError, match="output would be empty"):
        Connection(INPUT, "a", np.zeros((1, 1, 3, 3), int)).output_shape((1, 2, 2))


def test_a_cycle_without_delay_is_refused_and_with_delay_is_not() -> None:
    back = Connection("a", "a", np.full((2, 2), 4))
    with pytest.raises(UserError, match="cycle through \\['a'\\] has no delay"):
        small(connections=(*small().connections, back))
    small(connections=(*small().connections, replace(back, delay=1)))


def test_a_current_that_could_grow_beyond_32_bits_is_refused() -> None:
    def wide(decay_u: int, exponent: int) -> IntegerNetwork:
        connection = Connection(INPUT, "a", np.full((2, 600), 254), exponent=exponent)
        return small(input_shape=(600,), populations=(population(decay_u=decay_u),), connections=(connection,))

    with pytest.raises(UserError, match=r"'a': its activation could reach 1219200 and its current then leave 32 bits"):
        wide(100, 3)
    wide(4095, 3)  # without memory it cannot add up
    wide(0, 0)  # and one wrap brings this one back


def test_a_readout_yields_its_current_at_every_step_and_feeds_nobody() -> None:
    weight = np.array([[10, 20, -30], [2, 2, 2]])
    connection = Connection(INPUT, "a", weight, exponent=1)
    network = small(populations=(readout("a", (2,), np.array([3, -1]), 2),), connections=(connection,))
    inputs = np.array([[[1, 1, 0]], [[0, 0, 1]]], np.uint8)
    ran = reference.run(network, inputs, states=1)
    expected = np.array([[[60 * 64 + 12, 8 * 64 - 4]], [[-60 * 64 + 12, 4 * 64 - 4]]])
    assert np.array_equal(ran.spikes["a"], expected)
    assert (ran.spikes["a"].dtype, ran.u, ran.v, ran.spiking) == (np.int32, {}, {}, [])
    assert np.array_equal(recording.predictions(ran, network), [1])
    behind = Connection("a", "b", np.full((1, 2), 2))
    with pytest.raises(UserError, match="'a' is a readout without neurons"):
        replace(network, populations=(*network.populations, population("b", (1,))), connections=(connection, behind))


def test_weights_of_one_predict_like_none_and_others_by_what_each_step_counts() -> None:
    output = np.random.default_rng(0).integers(-3, 4, (4, 500, 6)).astype(np.int32)
    ran, plain = recording.Recording("host", "", "", {"a": output}), small()
    sums = output.sum(axis=0)
    assert np.array_equal(recording.predictions(ran, plain), sums.argmax(-1))
    assert ((sums == sums.max(1, keepdims=True)).sum(1) > 1).any()
    ones, last = (replace(plain, time_weights=np.array(w) << 16) for w in ([1, 1, 1, 1], [0, 0, 0, 4]))
    assert np.array_equal(recording.predictions(ran, ones), recording.predictions(ran, plain))
    assert np.array_equal(recording.predictions(ran, last), output[3].argmax(-1))


@pytest.mark.parametrize("current", [(1 << 31) - 2, -(1 << 31)])
def test_the_largest_weights_and_currents_stay_inside_64_bits(current: int) -> None:
    network = small(time_weights=np.array([(1 << 31) - 1, (1 << 31) - 1, 1]))
    output = np.full((3, 1, 10), current, np.int32)
    output[2, 0, 7] += 1
    assert recording.predictions(recording.Recording("host", "", "", {"a": output}), network).tolist() == [7]


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1 << 31], "2147483648 at (0,) lies outside 0..2147483647"),
        ([1, -1], "-1 at (1,) lies outside"),
        ([1.0], "is of type float64, not integer"),
        ([[1]], "have shape (1, 1); they are [steps]"),
        (np.zeros(0, int), "have shape (0,)"),
        ([(1 << 31) - 1] * 3, "sum to 6442450941, with which a sum of currents could leave 64 bits"),
    ],
)
def test_time_weights_that_no_host_could_use_exactly_are_refused(weights: Any, says: str) -> None:
    with pytest.raises(UserError) as refusal:
        small(time_weights=weights)
    assert says in str(refusal.value)
    assert "network: time_weights" in str(refusal.value)


@pytest.mark.parametrize("run", [reference.run, engine.run])
def test_an_input_of_another_number_of_steps_than_the_weights_is_refused(run: Any) -> None:
    weighing = small(time_weights=np.full(4, 1 << 16))
    with pytest.raises(UserError, match="it has 5 steps, but the network weighs 4 steps of its output; encode it in 4"):
        run(weighing, np.zeros((5, 2, 3), np.uint8))


def test_time_weights_belong_to_the_file_and_the_hash(tmp_path: Path) -> None:
    network = small(time_weights=np.array([65000, 66072]))
    integer_network.save(network, tmp_path / "network.npz")
    loaded = integer_network.load(tmp_path / "network.npz")
    assert loaded.time_weights is not None
    assert (loaded.time_weights.tolist(), loaded.time_weights.dtype) == ([65000, 66072], np.int32)
    assert loaded.hash == network.hash != small().hash
    with np.load(tmp_path / "network.npz") as stored:
        assert np.array_equal(stored["time_weights"], [65000, 66072])


def test_parts_that_nobody_reaches_or_that_share_a_name_are_refused() -> None:
    with pytest.raises(UserError, match="no connection leads to it"):
        small(populations=(population(), population("b")))
    with pytest.raises(UserError, match="share a name"):
        small(populations=(population(), population()))
    with pytest.raises(UserError, match="the output 'z' is no population"):
        small(output="z")


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (np.zeros((0, 1, 3), np.uint8), "holds nothing"),
        (np.zeros((2, 1, 4), np.uint8), r"is not \[steps, samples"),
        (np.full((2, 1, 3), 2, np.uint8), "lies outside 0..1"),
        (np.zeros((2, 1, 3)), "is of type float64"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: np.ndarray, says: str) -> None:
    with pytest.raises(UserError, match=says):
        reference.run(small(), inputs)


def biased(**changes: Any) -> IntegerNetwork:
    """A network whose input is the bias of its first population."""
    parts: dict[str, Any] = {
        "input_shape": (2,),
        "populations": (population(), population("b", (1,))),
        "connections": (Connection("a", "b", np.full((1, 2), 10)),),
        "output": "b",
        "input_is_bias_of": "a",
    }
    return IntegerNetwork(**(parts | changes))


def test_input_as_a_bias_is_the_bias_of_every_sample_by_itself() -> None:
    network = biased(populations=(population(bias_exp=2), population("b", (1,))))
    mantissas = np.array([[4095, -4096], [700, 1601]], np.int16)
    ran = reference.run(network, np.repeat(mantissas[None], 5, axis=0), states=2)
    for sample, own in enumerate(mantissas):
        fixed = small(
            populations=(population(bias_mant=own, bias_exp=2),),
            connections=(Connection(INPUT, "a", np.zeros((2, 3), int)),),
        )
        expected = reference.run(fixed, np.zeros((5, 1, 3), np.uint8), states=1)
        for kind in ("spikes", "u", "v"):
            assert np.array_equal(getattr(ran, kind)["a"][:, sample : sample + 1], getattr(expected, kind)["a"])
    assert ran.spikes["a"].any()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input_is_bias_of": "z"}, "the input is the bias of 'z', which is no population; there are ['a', 'b']"),
        ({"input_shape": (3,)}, "the bias of 'a' of shape (2,), but has shape (3,)"),
        ({"input_is_bias_of": "b", "input_shape": (1,)}, "population 'a': no connection leads to it"),
        ({"populations": (population(bias_mant=3), population("b", (1,)))}, "which has one of its own"),
        ({"populations": (readout("a", (2,)),), "connections": (), "output": "a"}, "a readout without neurons"),
        (
            {"connections": (Connection("a", "b", np.full((1, 2), 10)), Connection(INPUT, "b", np.full((1, 2), 2)))},
            "connection input->b reads it as spikes",
        ),
    ],
)
def test_input_as_a_bias_that_does_not_fit_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refusal:
        biased(**changes)
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (np.full((2, 1, 2), 4096), "bias mantissa: 4096 at .* lies outside -4096..4095"),
        (np.zeros((2, 1, 3), np.int16), r"is not \[steps, samples"),
        (np.zeros((2, 1, 2)), "is of type float64"),
        (np.array([[[1, 2]], [[1, 3]]]), "changes over time, but a bias is loaded once a sample"),
    ],
)
def test_biases_that_do_not_fit_are_refused(inputs: np.ndarray, says: str) -> None:
    with pytest.raises(UserError, match=says):
        reference.run(biased(), inputs)


def test_without_input_as_a_bias_nothing_is_stored_about_it() -> None:
    # So a network made before there was such a thing keeps its hash, and its recordings.
    header, _ = integer_network.pack(small())
    assert "input_is_bias_of" not in header
    assert biased().hash != small().hash


class TestBrokenFiles:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        integer_network.save(small(), tmp_path / "network.npz")
        return tmp_path / "network.npz"

    def refused(self, path: Path) -> str:
        with pytest.raises(UserError) as refusal:
            integer_network.load(path)
        assert str(path) in str(refusal.value)
        return str(refusal.value)

    def test_missing(self, tmp_path: Path) -> None:
        assert "there is no such file" in self.refused(tmp_path / "network.npz")

    @pytest.mark.parametrize("kept", [0, 1, 10, 200, -1])
    def test_truncated(self, saved: Path, kept: int) -> None:
        saved.write_bytes(saved.read_bytes()[:kept])
        assert "is no whole spikeproof-network file" in self.refused(saved)

    def test_every_flipped_byte_is_noticed_or_harmless(self, saved: Path) -> None:
        whole, truth = saved.read_bytes(), small().hash
        for position in range(len(whole)):
            touched = bytearray(whole)
            touched[position] ^= 0xFF
            saved.write_bytes(bytes(touched))
            try:
                assert integer_network.load(saved).hash == truth
            except UserError:
                continue

    def test_foreign(self, saved: Path) -> None:
        np.savez(saved, weights=np.zeros(3))
        assert "is no whole spikeproof-network file (KeyError)" in self.refused(saved)

    def test_pickled_objects_are_not_unpickled(self, saved: Path) -> None:
        np.savez(saved, header=np.array([{"format": "x"}], dtype=object))
        assert "is no whole spikeproof-network file (ValueError)" in self.refused(saved)

    def test_another_kind_or_version(self, saved: Path) -> None:
        archive.write(saved, {"format": "spikeproof-network", "version": 2}, {})
        assert "version 2; this program reads spikeproof-network version 1" in self.refused(saved)

    def test_another_arithmetic(self, saved: Path) -> None:
        archive.write(saved, {"format": "spikeproof-network", "version": 1, "arithmetic": "other-v1"}, {})
        assert "written for the arithmetic 'other-v1'" in self.refused(saved)

    def test_a_header_that_describes_no_network(self, saved: Path) -> None:
        archive.write(saved, {"format": "spikeproof-network", "version": 1, "arithmetic": "loihi-lif-v1"}, {})
        assert "its header describes no spikeproof-network" in self.refused(saved)

    def test_a_file_that_unpacks_to_more_than_any_memory(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with zipfile.ZipFile(saved, "a", zipfile.ZIP_DEFLATED) as bomb:
            bomb.writestr("connection/9/weight.npy", bytes(10_000_000))
        assert saved.stat().st_size < 100_000
        monkeypatch.setattr(archive, "MEMORY", 10_000_000)
        monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("was unpacked"))
        assert re.search(r"unpacks to 10,\d{3},\d{3} bytes, more than the 10,000,000", self.refused(saved))

    def test_tampered(self, saved: Path) -> None:
        with np.load(saved) as stored:
            arrays = dict(stored)
        arrays["connection/0/weight"] = arrays["connection/0/weight"] + np.int16(2)
        np.savez(saved, **arrays)
        assert "does not match the hash inside" in self.refused(saved)

    def test_a_directory_of_that_name(self, tmp_path: Path) -> None:
        (tmp_path / "network.npz").mkdir()
        assert "cannot be read" in self.refused(tmp_path / "network.npz")

    def test_a_zip_whose_parts_are_missing(self, saved: Path) -> None:
        with zipfile.ZipFile(saved) as source:
            header = source.read("header.npy")
        with zipfile.ZipFile(saved, "w") as target:
            target.writestr("header.npy", header)
        assert "does not match the hash inside" in self.refused(saved)
