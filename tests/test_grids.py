"""Few bits: the levels a width allows, where weights are clipped, and integers that stay the same on every backend."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UserError
from deploy.lava import models
from quantize import engine, reference
from quantize.fold import FoldedConnection, FoldedLayer, fold
from quantize.grids import Step, clip_of, rounded
from quantize.integer_network import INPUT
from quantize.precision import BITS, Bits, Precision
from quantize.scales import quantize
from train.architecture import build
from train.neurons import LIF

ALLOWED: dict[Bits, list[int]] = {
    8: list(range(-128, 128)),
    7: list(range(-64, 64)),
    6: list(range(-32, 32)),
    5: list(range(-16, 16)),
    4: list(range(-8, 8)),
    3: [-4, -3, -2, -1, 0, 1, 2, 3],
    2: [-2, -1, 0, 1],
    "ternary": [-1, 0, 1],
    1: [-1, 1],
}
OF_WEIGHTS = ("error", "percentile", "max")
MANTISSA: dict[Bits, int] = {8: 2, 7: 4, 6: 8, 5: 16, 4: 32, 3: 64, 2: 128, "ternary": 128, 1: 128}

widths = pytest.mark.parametrize("bits", BITS)


def layer(*weights: np.ndarray, name: str = "a", **changes: object) -> FoldedLayer:
    joined = tuple(FoldedConnection(INPUT, weight) for weight in weights)
    outputs = len(weights[0])
    return replace(FoldedLayer(name, (outputs,), joined, np.zeros(outputs), 0.0, 0.9, 1.0), **changes)  # type: ignore[arg-type]


@widths
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.sampled_from(OF_WEIGHTS))
@settings(max_examples=20)
def test_every_weight_becomes_the_nearest_of_the_levels(bits: Bits, seed: int, size: float, calibration: str) -> None:
    weight = np.random.default_rng(seed).normal(size=(6, 20)) * size
    network, (row,) = quantize([layer(weight, threshold=size)], (20,), 1, Precision(bits, {}, calibration))
    allowed, mantissas = np.array(ALLOWED[bits]), network.connections[0].weight
    levels, left = np.divmod(mantissas, MANTISSA[bits])
    assert not left.any()
    assert set(levels.ravel()) <= set(allowed)
    step = clip_of(weight, bits, calibration) / allowed.max()
    nearest = np.abs(weight[..., None] - step * allowed).min(axis=-1)
    assert np.abs(weight - step * levels) == pytest.approx(nearest, abs=1e-9 * size)
    assert (row["bits"], row["levels"]) == (bits, len(np.unique(mantissas)))


@pytest.mark.parametrize(
    ("bits", "clip"),
    [
        (1, 0.7979),  # the mean magnitude (XNOR-Net, 1603.05279)
        ("ternary", 1.2240),  # three evenly spaced levels (Max, "Quantizing for minimum distortion", 1960, table II)
    ],
)
def test_the_least_squared_error_of_gaussian_weights_is_that_of_the_books(bits: Bits, clip: float) -> None:
    weight = np.random.default_rng(0).normal(size=(400, 500))
    assert clip_of(weight, bits, "error") == pytest.approx(clip, rel=2 ** (1 / 16) - 1)


@widths
def test_least_squared_error_is_what_a_scan_over_every_clip_finds(bits: Bits) -> None:
    weight = np.random.default_rng(1).laplace(size=(30, 40))
    allowed = np.array(ALLOWED[bits])

    def error(clip: float) -> float:
        return float((np.abs(weight[..., None] - clip / allowed.max() * allowed).min(axis=-1) ** 2).sum())

    found = error(clip_of(weight, bits, "error"))
    assert found <= 1.05 * min(error(clip) for clip in np.abs(weight).max() * np.arange(1, 201) / 200)
    assert found <= error(clip_of(weight, bits, "max"))


@widths
@pytest.mark.parametrize("calibration", OF_WEIGHTS)
@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_layers_of_one_sign_or_of_zeros_keep_it(bits: Bits, calibration: str, sign: int) -> None:
    weight = sign * np.random.default_rng(2).uniform(0.1, 1, (5, 7))
    network, _ = quantize([layer(weight)], (7,), 1, Precision(bits, {}, calibration))
    integers = network.connections[0].weight
    assert set(np.sign(integers).ravel()) <= {0, sign}
    assert integers.any() == bool(sign)


def test_one_bit_leaves_what_is_no_synapse_none() -> None:
    network, _ = quantize([layer(np.diag([0.5, -0.25, 0.75]))], (3,), 1, Precision(1, calibration="error"))
    assert np.array_equal(network.connections[0].weight, 128 * np.diag([1, -1, 1]))


def test_few_bits_lose_no_level_where_the_exponent_is_at_its_least() -> None:
    weight = np.random.default_rng(0).normal(size=(40, 64)) / 255
    network, (row,) = quantize([layer(weight, alpha=0.99)], (64,), 8, Precision(4, calibration="error"))
    assert network.connections[0].exponent == -8
    assert abs(network.connections[0].weight).max() == 8 * 8  # a level is 8, no longer 32
    assert row["levels"] == 16


@widths
def test_connections_of_different_strength_stand_in_the_proportion_of_their_weights(bits: Bits) -> None:
    rng = np.random.default_rng(3)
    both = rng.normal(size=(8, 60)), rng.normal(size=(8, 60)) / 11
    network, rows = quantize([layer(*both)], (60,), 1, Precision(bits, calibration="error"))
    strengths = [
        np.abs(connection.weight).mean() * 2.0**connection.exponent / row["scale"]
        for connection, row in zip(network.connections, rows, strict=True)
    ]
    # At one bit only powers of two between the strengths are possible; at more, rounding leaves a part.
    assert np.log2(strengths[0] / strengths[1]) == pytest.approx(np.log2(11), abs=0.55)


def test_a_layer_may_have_bits_of_its_own() -> None:
    rng = np.random.default_rng(0)
    first = layer(rng.normal(size=(30, 40)))
    second = replace(first, name="b", connections=(FoldedConnection("a", rng.normal(size=(30, 30))),))
    network, rows = quantize([first, second], (40,), 1, Precision(4, {"b": "ternary"}, "error"))
    assert [row["bits"] for row in rows] == [4, "ternary"]
    assert [len(np.unique(connection.weight)) for connection in network.connections] == [16, 3]


@widths
def test_every_backend_runs_every_width_alike(bits: Bits) -> None:
    for notation, changes in (
        ("4C3-MP2-[4C3]-R9-4", {"alpha": 0.3, "threshold": 0.1}),
        ("6C3S2-AP2-12-4", {"reset": "soft", "floor": True, "threshold": 0.1}),
    ):
        layers = fold(build(notation, (1, 8, 8), neuron=partial(LIF, **changes), payload_bits=4, seed=2))
        network, _ = quantize(layers, (1, 8, 8), 4, Precision(bits, calibration="error"))
        inputs = np.random.default_rng(0).integers(0, 16, (8, 3, 1, 8, 8)).astype(np.uint8)
        expected = reference.run(network, inputs, 3)
        assert all(raster.any() for raster in expected.spikes.values())
        assert expected.hash == engine.run(network, inputs, 3).hash == models.run(network, inputs, 3).hash


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"bits": 9}, "quantize.bits: 9 is no width of weights; give 8 to 1, or 'ternary'."),
        ({"bits": "two"}, "quantize.bits: 'two' is no width"),
        ({"per_layer": {"a": 0}}, "quantize.per_layer.a: 0 is no width"),
        ({"calibration": "mean"}, "quantize.calibration: 'mean' is none"),
        ({"per_layer": {"conv1": 4}}, "quantize.per_layer: 'conv1' is no layer with weights; Valid: a."),
    ],
)
def test_widths_layers_and_calibrations_that_are_none_are_refused(given: dict, says: str) -> None:
    with pytest.raises(UserError) as refusal:
        quantize([layer(np.eye(2))], (2,), 1, Precision(**given))
    assert says in str(refusal.value)


def test_an_input_that_is_the_bias_has_no_bits() -> None:
    with pytest.raises(UserError, match="'a' is no layer with weights"):
        quantize([layer(np.eye(2), input_is_bias=True)], (2,), 1, Precision(per_layer={"a": 4}))


def test_sums_of_a_row_may_leave_32_bits() -> None:
    made = rounded(np.ones((1, 9_000_000)), Step(np.asarray(254.0), 0), 8, 0)
    assert made.sums.tolist() == [[0], [9_000_000 * 254]]
