"""The file for lava-dl's netx: what it holds, as lava-dl itself writes it, and every network that it cannot hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UserError
from deploy import netx
from quantize import engine, reference
from quantize.fold import fold
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population, readout
from quantize.precision import Precision
from quantize.scales import quantize
from train.architecture import build
from train.neurons import LIF


def lif(name: str, *shape: int, **fields: Any) -> Population:
    registers = {"decay_u": 4095, "decay_v": 100, "threshold_mant": 300, "bias_mant": 0}
    return Population(name, shape, **{field: np.asarray(value) for field, value in registers.items()} | fields)


def joined(source: str, target: str, *shape: int, **options: Any) -> Connection:
    weight = 2 * np.random.default_rng(5).integers(-128, 128, shape)
    return Connection(source, target, weight, **options)


def image_network() -> IntegerNetwork:
    """Two convolutions and a dense layer."""
    populations = (
        lif("a", 4, 4, 3, bias_mant=np.array([1, -2, 3, 4]).reshape(4, 1, 1) << 5, bias_exp=1),
        lif("b", 6, 3, 3, bias_mant=np.arange(54).reshape(6, 3, 3), bias_exp=6),
        lif("c", 5, decay_u=np.asarray(7), bias_mant=np.arange(5), bias_exp=7),
    )
    connections = (
        joined(INPUT, "a", 4, 1, 3, 2, stride=(2, 2), padding=(1, 1), groups=2),
        joined("a", "b", 6, 4, 2, 1),
        joined("b", "c", 5, 54),
    )
    return IntegerNetwork((2, 7, 5), populations, connections, "c")


def vector_network() -> IntegerNetwork:
    return IntegerNetwork((6,), (lif("a", 8), lif("b", 3)), (joined(INPUT, "a", 8, 6), joined("a", "b", 3, 8)), "b")


@pytest.mark.smoke
def test_layers_lie_in_the_file_as_netx_looks_for_them(tmp_path: Path) -> None:
    network = image_network()
    netx.save(network, tmp_path / "network.net")
    with h5py.File(tmp_path / "network.net") as file:
        layers = [file["layer"][str(index)] for index in range(len(file["layer"]))]
        assert [layer["type"][0] for layer in layers] == [b"input", b"conv", b"conv", b"flatten", b"dense"]
        shapes = [layer["shape"][()].tolist() for layer in layers]
        assert shapes == [[2, 7, 5], [4, 4, 3], [6, 3, 3], [54], [5]]
        first, second, dense = layers[1], layers[2], layers[4]
        for layer, connection in zip((first, second, dense), network.connections, strict=True):
            assert np.array_equal(layer["weight"], connection.weight)
            assert layer["weight"].dtype == np.int32
        assert [first[name][()].tolist() for name in ("stride", "padding", "dilation", "groups")] == [
            [2, 2], [1, 1], [1, 1], 2,
        ]  # fmt: skip
        assert np.array_equal(first["bias"], [1, -2, 3, 4])
        assert np.array_equal(second["bias"], np.arange(54).reshape(6, 3, 3).T)
        assert np.array_equal(dense["bias"], 2 * np.arange(5))
        neuron = {name: value[()] for name, value in dense["neuron"].items()}
        assert neuron.pop("type")[0] == b"CUBA"
        assert neuron == {"iDecay": 8, "vDecay": 100, "vThMant": 300, "refDelay": 1, "gradedSpike": False}
        assert file.attrs["network_sha256"] == network.hash


def test_exponents_go_into_the_weights_where_they_fit(tmp_path: Path) -> None:
    network = vector_network()
    weight = np.array([[2, -4, 6, 8, -10, 12]] * 8)
    for exponent, expected in ((3, 8 * weight), (-1, weight // 2), (0, weight)):
        first = Connection(INPUT, "a", weight, exponent)
        netx.save(replace(network, connections=(first, network.connections[1])), tmp_path / "network.net")
        with h5py.File(tmp_path / "network.net") as file:
            assert np.array_equal(file["layer/1/weight"], expected)


VECTOR = vector_network()
ONE, TWO = VECTOR.populations
IN, OUT = VECTOR.connections


def with_weights(*weights: int, exponent: int = 0) -> IntegerNetwork:
    weight = np.resize(np.array(weights), (8, 6))
    return replace(VECTOR, connections=(Connection(INPUT, "a", weight, exponent), OUT))


REFUSED = {
    "soft reset": (replace(VECTOR, populations=(replace(ONE, reset="soft"), TWO)), "population 'a' has a soft reset"),
    "late reset": (replace(VECTOR, populations=(replace(ONE, reset="hard-late"), TWO)), "has a hard-late reset"),
    "floor": (replace(VECTOR, populations=(replace(ONE, floor=True), TWO)), "has a hard reset and a floor"),
    "readout": (replace(VECTOR, populations=(ONE, readout("b", (3,)))), "population 'b' is a readout"),
    "many thresholds": (
        replace(VECTOR, populations=(replace(ONE, threshold_mant=np.arange(8)), TWO)),
        "has threshold_mant from 0 to 7",
    ),
    "many decays": (replace(VECTOR, populations=(replace(ONE, decay_u=np.arange(8)), TWO)), "has decay_u from 0 to 7"),
    "recurrence": (
        replace(VECTOR, connections=(IN, OUT, joined("a", "a", 8, 8, delay=1))),
        "population 'a' hears input->a, a->a",
    ),
    "a skip": (replace(VECTOR, connections=(IN, OUT, joined(INPUT, "b", 3, 6))), "population 'b' hears a->b, input->b"),
    "a fork": (
        replace(VECTOR, connections=(IN, joined(INPUT, "b", 3, 6))),
        "population 'b' hears input->b, but netx joins each layer to the one before alone",
    ),
    "an output in the middle": (replace(VECTOR, output="a"), "population 'b' lies behind the output 'a'"),
    "a delay": (replace(VECTOR, connections=(replace(IN, delay=2), OUT)), "connection input->a has a delay of 2"),
    "payload": (replace(VECTOR, payload_bits=4), "the input has values of 4 bits"),
    "time weights": (replace(VECTOR, time_weights=np.array([1, 2])), "the output has time weights"),
    "input as bias": (
        replace(VECTOR, input_shape=(8,), connections=(OUT,), input_is_bias_of="a"),
        "the input is the bias of 'a'",
    ),
    "a bias between": (
        replace(VECTOR, populations=(replace(ONE, bias_mant=np.arange(8), bias_exp=5), TWO)),
        "population 'a' has a bias of 32, but netx has multiples of 64 alone",
    ),
    "a wide bias": (
        replace(VECTOR, populations=(replace(ONE, bias_mant=np.asarray(4000), bias_exp=7), TWO)),
        "beyond the mantissas -4096..4095",
    ),
    "wide weights": (with_weights(-2, 128, exponent=1), "has weights from -4 to 256 with its exponent 1"),
    "rounded weights": (with_weights(2, -4, exponent=-2), "has the weight exponent -2, which rounds"),
    "odd weights": (with_weights(2, 254, -4, exponent=-1), None),
    "no weights": (with_weights(0), "has no weight but 0"),
    "none above zero": (with_weights(-4, -8, 0), "from -8 to 0, none above 0, and netx and Lava turn -8 into another"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_netx_cannot_hold_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    network, says = REFUSED[name]
    if says is None:  # halved weights are so small that netx doubles them again
        netx.save(network, tmp_path / "network.net")
        return
    with pytest.raises(UserError) as caught:
        netx.save(network, tmp_path / "network.net")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@given(st.data())
@settings(max_examples=200)
def test_weights_that_are_written_survive_netx_and_lava(data: st.DataObject) -> None:
    """netx doubles weights while they fit and tells Lava their bits; Lava guesses the sign mode, clips, and drops all
    bits below."""
    low, high = data.draw(st.sampled_from([(-256, 254), (0, 254), (-256, 0), (-9, 9), (-256, -1)]))
    weight = np.array(data.draw(st.lists(st.integers(low, high), min_size=1, max_size=6)))
    try:
        netx._check_optimised("weights", weight)
    except UserError:
        return
    mixed = weight.min() < 0 < weight.max()
    signed = weight.min() < 0 <= weight.max()  # as netx sees it
    low, high = (-128, 127) if signed else (-256, 255)
    doublings = signed + max(d for d in range(-1, 9) if all(low <= w * 2.0**d <= high for w in weight))
    stored = weight << doublings
    trailing = min((int(w) & -int(w)).bit_length() - 1 for w in weight if w)
    bits = 8 - doublings - (trailing - signed)
    step = 1 << (8 - bits + mixed)
    clipped = stored.clip(-256 if mixed else -255, 254 if mixed else 255)
    assert np.array_equal(np.sign(clipped) * (np.abs(clipped) // step * step) >> doublings, weight)


@pytest.mark.parametrize(("notation", "bits"), [("16-10", 8), ("16-10", 4), ("4C3-BN-AP2-12-BN-10", 8), ("4C3-10", 2)])
def test_what_was_quantized_for_netx_lies_in_its_file_as_it_is(notation: str, bits: int, tmp_path: Path) -> None:
    network = build(notation, (1, 8, 8), neuron=lambda: LIF(alpha=0.3), seed=1).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter += 0.3 * name.endswith("bias")
    precision = Precision(bits, calibration="error", netx=True)
    integers, _ = quantize(fold(network), (1, 8, 8), 1, precision)
    assert {connection.exponent for connection in integers.connections} == {0}
    assert all(not (population.bias % 64).any() for population in integers.populations)
    netx.save(integers, tmp_path / "network.net")
    with h5py.File(tmp_path / "network.net") as file:
        weights = [layer["weight"][()] for _, layer in sorted(file["layer"].items()) if "weight" in layer]
    for connection, weight in zip(integers.connections, weights, strict=True):
        assert np.array_equal(connection.weight, weight)


def test_strong_inputs_cost_bits_where_there_is_no_exponent() -> None:
    network = build("8-4", (300,), neuron=lambda: LIF(alpha=0.99), payload_bits=1, seed=1).eval()
    integers, _ = quantize(fold(network), (300,), 1, Precision(calibration="error", netx=True))
    plain, _ = quantize(fold(network), (300,), 1, Precision(calibration="error"))
    assert plain.connections[0].exponent < 0 == integers.connections[0].exponent
    assert abs(integers.connections[0].weight).max() < abs(plain.connections[0].weight).max()
    inputs = np.ones((40, 2, 300), np.uint8)
    assert np.array_equal(
        reference.run(integers, inputs).spikes["dense2"], engine.run(integers, inputs).spikes["dense2"]
    )
