"""ONNX graphs run as the reference does: spikes, u and v, in onnxruntime and in onnx's own evaluator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from onnx.reference import ReferenceEvaluator
from strategies import networks
from test_engine import assert_equal

from base.errors import UserError
from deploy import backends
from deploy.onnx import backend, integer
from deploy.onnx.graph import scan_model, step_model
from quantize import engine, reference
from quantize.fold import fold
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population
from quantize.recording import Recording
from quantize.scales import quantize
from train.architecture import build
from train.datasets import load
from train.encoding import Encoding, encode
from train.neurons import LIF

OPERATORS = {
    "Scan", "Identity", "MatMulInteger", "ConvInteger", "Flatten", "BitwiseAnd", "Add", "Sub", "Mul", "Div", "Cast",
    "Greater", "LessOrEqual", "Where", "Clip", "Gather", "Unsqueeze", "Concat", "Slice",
}  # fmt: skip


def models(network: IntegerNetwork) -> tuple[Any, onnx.ModelProto, onnx.ModelProto]:
    step = integer.build(network)
    about = integer.about(network, step)
    return step, step_model(step, about), scan_model(step, about, traces=True)


def every_way(network: IntegerNetwork, inputs: np.ndarray) -> list[Recording]:
    """Recorded by both graphs, each in onnxruntime and in onnx's evaluator, u and v of all samples included."""
    step, one, many = models(network)
    ran = [run(step, network.check_inputs(inputs)) for run in (
        lambda step, shown: backend.run_step(backend.executor(one), step, shown),
        lambda step, shown: backend.run_step(ReferenceEvaluator(one).run, step, shown),
        lambda step, shown: backend.run_scan(backend.executor(many), step, shown, traces=True),
        lambda step, shown: backend.run_scan(ReferenceEvaluator(many).run, step, shown, traces=True),
    )]  # fmt: skip
    return [backend.recorded(network, network.check_inputs(inputs), [values]) for values in ran]


@given(networks(cycles=True, readouts=True))
@settings(max_examples=100)
def test_both_graphs_equal_the_reference_on_random_networks(case: Any) -> None:
    network, inputs = case
    expected = reference.run(network, inputs, states=99)
    for ran in every_way(network, inputs):
        assert_equal(expected, ran)


@pytest.mark.smoke
@given(networks(cycles=True, readouts=True))
@settings(max_examples=30)
def test_backend_equals_the_reference_whole_and_cut_into_batches(case: Any) -> None:
    network, inputs = case
    for states in (0, 2):
        expected = reference.run(network, inputs, states)
        assert_equal(expected, backends.run("onnx", network, inputs, states))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend, "WORKSPACE", 1)
            assert_equal(expected, backends.run("onnx", network, inputs, states))


@given(networks(cycles=True, readouts=True))
@settings(max_examples=30)
def test_graphs_are_valid_and_of_standard_operators_with_integer_states(case: Any) -> None:
    step, one, many = models(case[0])
    for model in (one, many):
        onnx.checker.check_model(model, full_check=True)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
        assert not model.functions
    scan = many.graph.node[0]
    body = next(attribute.g for attribute in scan.attribute if attribute.name == "body")
    assert [node.op_type for node in many.graph.node] == ["Scan"]
    assert list(body.node)[: len(one.graph.node)] == list(one.graph.node)
    assert list(body.initializer) == list(one.graph.initializer)
    assert {(node.domain, node.op_type) for node in body.node} <= {("", name) for name in OPERATORS}
    assert {np.dtype(state.dtype) for state in step.states} <= {np.dtype(np.int32), np.dtype(np.uint8)}


@given(networks(cycles=True, readouts=True))
@settings(max_examples=30)
def test_a_sequence_cut_in_two_goes_on_from_the_final_states(case: Any) -> None:
    network, inputs = case
    assume(len(inputs) > 1)
    step, _, many = models(network)
    execute, shown = backend.executor(many), network.check_inputs(inputs)
    whole, half = backend.run_scan(execute, step, shown), len(shown) // 2
    parts = [{f"{name}/final": zeros for name, zeros in step.zeros(shown.shape[1]).items()}]
    names = [f"{value.name}/steps" for value in step.emitted]
    for part in (shown[:half], shown[half:]):
        fed = {f"{state.name}/initial": parts[-1][f"{state.name}/final"] for state in step.states}
        outputs = [*names, *parts[0]]
        parts.append(dict(zip(outputs, execute(outputs, fed | {"input/steps": part}), strict=True)))
    for name in names:
        assert np.array_equal(np.concatenate([part[name] for part in parts[1:]]), whole[name.removesuffix("/steps")])


def lif(name: str, size: int, **changes: int) -> Population:
    return Population(
        name, (size,), **({"decay_u": 4095, "decay_v": 0, "threshold_mant": 131071, "bias_mant": 0} | changes)
    )


def test_wrapping_currents_and_saturating_voltages_are_equal() -> None:
    """All inputs fire. Of the first two neurons, weights of one sign give currents of the other only by wrapping; the
    voltage of the others ends at the last number of either side, from which a soft reset leaves 63 on the upper one."""
    weight = np.array([[254] * 40, [-256] * 40, [20] * 40, [-20] * 40])
    neurons = replace(lif("a", 4, decay_u=2048), reset="soft")
    network = IntegerNetwork((40,), (neurons,), (Connection(INPUT, "a", weight, exponent=4),), "a")
    inputs = np.ones((30, 3, 40), np.uint8)
    expected = reference.run(network, inputs, states=3)
    assert (expected.u["a"][..., 0] < 0).any()
    assert (expected.u["a"][..., 1] > 0).any()
    assert (expected.v["a"][..., 2] == 63).any()
    assert (expected.v["a"][..., 3] == -(2**23 - 1)).any()
    for ran in every_way(network, inputs):
        assert_equal(expected, ran)


@pytest.mark.parametrize("exponent", range(-8, 8))
def test_every_exponent_floors_as_the_contract_does(exponent: int) -> None:
    """Sums of all sizes and both signs, so that each bit that a right shift drops is set in some of them."""
    weight = 2 * np.random.default_rng(0).integers(-128, 128, (64, 9))
    network = IntegerNetwork((9,), (lif("a", 64),), (Connection(INPUT, "a", weight, exponent),), "a")
    inputs = np.random.default_rng(1).integers(0, 2, (40, 2, 9)).astype(np.uint8)
    expected = reference.run(network, inputs, states=2)
    for ran in every_way(network, inputs):
        assert_equal(expected, ran)


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("conv", [False, True])
def test_products_that_could_saturate_in_16_bits_are_left_to_kernels_that_cannot(bits: int, conv: bool) -> None:
    """Pairs of products of 8-bit payloads with signed weights pass 2^15; those of fewer bits never do."""
    largest = (1 << bits) - 1
    flat = np.where(np.arange(3 * 36).reshape(3, 36) % 5, -256, 254)
    weight, shape = (flat.reshape(3, 4, 3, 3), (4, 6, 6)) if conv else (flat, (36,))
    target = Population("a", (3, 4, 4) if conv else (3,), 4095, 0, 131071, 0)
    network = IntegerNetwork(shape, (target,), (Connection(INPUT, "a", weight, -8),), "a", payload_bits=bits)
    inputs = np.random.default_rng(2).integers(0, largest + 1, (5, 4, *shape)).astype(np.uint8)
    inputs[:, 0] = largest
    expected = reference.run(network, inputs, states=4)
    for ran in every_way(network, inputs):
        assert_equal(expected, ran)
    stored = models(network)[0].initialisers["connection/0/weight"].data_type
    assert stored == (onnx.TensorProto.INT8 if bits == 7 and not conv else onnx.TensorProto.UINT8)
    assert stored == onnx.TensorProto.UINT8 or 2 * largest * 128 < 1 << 15


def test_sums_beyond_32_bits_are_refused() -> None:
    weight = np.full((1, 70_000), -256)
    network = IntegerNetwork(
        (70_000,), (lif("a", 1),), (Connection(INPUT, "a", weight, -8),), "a", payload_bits=8
    )  # fmt: skip
    with pytest.raises(UserError, match="connection input->a could sum to 2284800000, beyond the 32 bits"):
        backends.run("onnx", network, np.zeros((1, 1, 70_000), np.uint8))


TRAINABLE = {
    "dense": ("64-10", {}),
    "convolution and pooling": ("8C3-AP2-8C3S2G2-32-10", {"alpha": 0.4}),
    "recurrent": ("R32-10", {"reset": "soft", "floor": True}),
    "residual": ("4C3-MP2-[4C3-4C3]-R8-10", {}),
}


@pytest.mark.parametrize("readout", ["spikes", "current"])
@pytest.mark.parametrize("name", TRAINABLE)
def test_quantized_networks_on_digits_are_equal(name: str, readout: str) -> None:
    notation, neuron = TRAINABLE[name]
    digits, encoding = load("digits"), Encoding("rate", steps=6, seed=1)
    network = build(notation, (1, 8, 8), neuron=lambda: LIF(**neuron), readout=readout, seed=0)
    integers, _ = quantize(fold(network), (1, 8, 8), encoding.payload_bits)
    inputs = encode(digits.test.values, np.arange(len(digits.test)), encoding).numpy()
    expected = engine.run(integers, inputs, states=8)
    assert_equal(expected, backends.run("onnx", integers, inputs, states=8))
    spiking = [raster for raster in expected.spikes.values() if raster.dtype == np.uint8]
    assert all(0 < raster.mean() < 1 for raster in spiking)
    few = engine.run(integers, inputs[:, :3], states=3)
    for ran in every_way(integers, inputs[:, :3]):
        assert_equal(few, ran)


def test_metadata_names_the_states_in_their_order() -> None:
    lif_a, lif_b = lif("a", 2), lif("b", 3)
    connections = (Connection(INPUT, "a", np.full((2, 4), 2)), Connection("a", "b", np.full((3, 2), 2), delay=2))
    network = IntegerNetwork((4,), (lif_a, replace(lif_b, reset="soft")), connections, "b")
    _, one, _ = models(network)
    about = {entry.key: entry.value for entry in one.metadata_props}
    assert [value.name for value in one.graph.input] == ["a/past", "a/u", "a/v", "b/u", "b/v", "input"]
    assert [value.name for value in one.graph.output] == [
        "a/past/next", "a/u/next", "a/v/next", "b/u/next", "b/v/next", "a/spikes", "b/spikes"]  # fmt: skip
    assert about["states"].startswith('[{"name": "a/past", "type": "uint8", "shape": [2, "B", 2], "initial": 0}')
    assert '"reset": "soft"' in about["network"]
    assert (about["arithmetic"], about["network_sha256"], about["graph"]) == ("loihi-lif-v1", network.hash, "step")
