"""From floats to integers: registers are used, never overrun, and what they cannot hold is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UserError
from quantize import reference
from quantize.arithmetic import LOIHI_LIF_V1, RESETS
from quantize.bounds.certificate import PROVEN, REFUTED
from quantize.bounds.proof import prove
from quantize.fold import FoldedConnection, FoldedLayer
from quantize.integer_network import INPUT
from quantize.precision import Precision
from quantize.scales import input_biases, quantize

UNCLIPPED = Precision(calibration="max")


def layer(weight: np.ndarray, bias: float = 0.0, **changes: object) -> FoldedLayer:
    joined = (FoldedConnection(INPUT, weight),)
    plain = FoldedLayer("a", (len(weight),), joined, np.full(len(weight), bias), 0.0, 0.9, 1.0, "hard", False)
    return replace(plain, **changes)  # type: ignore[arg-type]


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.floats(0, 0.99), st.sampled_from([1, 4, 8]))
@settings(max_examples=100)
def test_no_input_overflows_what_was_quantized(seed: int, size: float, alpha: float, bits: int) -> None:
    """The strongest constant input into every neuron, either way: activations keep 16 bits, no current wraps."""
    top = (1 << bits) - 1
    weight = np.random.default_rng(seed).normal(size=(5, 12)) * size / top
    network, _ = quantize([layer(weight, alpha=alpha, threshold=size)], (12,), bits)
    signs = network.connections[0].weight
    inputs = np.concatenate([(signs > 0) * top, (signs < 0) * top]).astype(np.uint8)[None].repeat(200, axis=0)
    assert abs(reference.activation(network.connections[0], inputs[0])).max() < 1 << 15
    unwrapped = replace(LOIHI_LIF_V1, wrap=lambda u: u)
    wrapped, free = (reference.run(network, inputs, 10, rules=rules) for rules in (LOIHI_LIF_V1, unwrapped))
    assert np.array_equal(wrapped.u["a"], free.u["a"])


def test_where_no_exponent_is_low_enough_the_weights_give_up_bits() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 64)) / 255
    network, (row,) = quantize([layer(weight, alpha=0.99)], (64,), 8)
    assert network.connections[0].exponent == -8
    assert 30 < abs(network.connections[0].weight).max() < 254
    assert row["threshold_error"] < 0.01


def test_the_largest_weight_uses_all_eight_bits_and_all_weights_are_even() -> None:
    weight = np.random.default_rng(0).normal(size=(6, 50))
    network, (row,) = quantize([layer(weight)], (50,), 1, UNCLIPPED)
    integers = network.connections[0].weight
    assert abs(integers).max() == 254
    assert not (integers % 2).any()
    assert row["weight_error"] <= abs(weight).max() / 254 * 1.0000001


def test_weights_threshold_and_bias_share_one_grid() -> None:
    weight = np.array([[0.5, -0.25], [0.125, 0.5]])
    network, (row,) = quantize([layer(weight, bias=0.125, threshold=0.75)], (2,), 1)
    lif = network["a"]
    scale = 2.0 ** network.connections[0].exponent * 508
    assert row["scale"] == scale
    assert lif.threshold_mant == round(0.75 * scale)
    assert np.array_equal(lif.bias, [round(64 * 0.125 * scale)] * 2)
    assert (int(lif.decay_u), int(lif.decay_v)) == (4095, round(0.1 * 4096))


def test_a_layer_of_zeros_is_handled() -> None:
    network, _ = quantize([layer(np.zeros((2, 3)), bias=0.4)], (3,), 1)
    spikes = reference.run(network, np.ones((6, 1, 3), np.uint8)).spikes["a"][:, 0, 0]
    assert np.array_equal(spikes, [0, 0, 1, 0, 0, 1])  # 0.4, 0.76, 1.084


def test_a_bias_too_fine_for_its_mantissa_takes_an_exponent() -> None:
    network, (row,) = quantize([layer(np.array([[1.0]]), bias=0.9)], (1,), 1)
    assert network["a"].bias_exp > 0
    assert row["bias_error"] <= 2.0 ** network["a"].bias_exp / 2 / (64 * row["scale"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"beta": 1.001}, "beta = 1.001 is decay -4, outside 0..4095"),
        ({"beta": 0.0}, "beta = 0.0 is decay 4096"),
        ({"alpha": 1.0}, "alpha = 1.0 is decay -1"),
        ({"threshold": 1e-6}, "rounds to 0 on the grid of its weights, which end at 1"),
        ({"threshold": 1e9}, "no exponent in -8..7 holds threshold 1e+09"),
        ({"bias": np.array([1e7, 0.0])}, "bias up to 1e+07"),
    ],
)
def test_what_no_register_holds_is_refused_by_name(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UserError) as refusal:
        quantize([layer(np.array([[1.0], [-1.0]]), **changes)], (1,), 1)
    assert says in str(refusal.value)
    assert "layer 'a'" in str(refusal.value)


def test_a_clip_far_beyond_the_weights_is_named() -> None:
    plain = layer(np.array([[0.01], [-0.01]]))
    (connection,) = plain.connections
    with pytest.raises(
        UserError, match=r"end at 0\.01 and are clipped at 1e\+06; lower the weights, or the learning rate"
    ):
        quantize([replace(plain, connections=(replace(connection, clip=np.asarray(1e6)),))], (1,), 1)


sizes = st.lists(st.floats(1e-4, 1e4), min_size=2, max_size=4)


@given(st.integers(0, 2**32 - 1), sizes, st.sampled_from([0.0, 0.8]), st.sampled_from([1, 4]))
@settings(max_examples=60)
def test_connections_into_one_population_share_its_grid(seed: int, each: list[float], alpha: float, bits: int) -> None:
    rng = np.random.default_rng(seed)
    joined = tuple(FoldedConnection(INPUT, rng.normal(size=(4, 9)) * size) for size in each)
    feedback = FoldedConnection("a", rng.normal(size=(4, 4)) * each[0], delay=1)
    folded = layer(np.zeros((4, 1)), connections=(*joined, feedback), threshold=max(each), alpha=alpha)
    network, rows = quantize([folded], (9,), bits, UNCLIPPED)
    largest = [np.abs(c.weight).max() for c in folded.connections]
    for connection, floats, row in zip(network.connections, folded.connections, rows, strict=True):
        scale = row["scale"] / 2.0**connection.exponent  # of this connection's mantissas
        assert np.abs(connection.weight - scale * floats.weight).max() <= 1.001
        assert np.abs(connection.weight).max() > 126 or connection.exponent == -8
    assert np.abs(network.connections[int(np.argmax(largest))].weight).max() == 254
    assert network["a"].threshold_mant == round(rows[0]["scale"] * max(each))
    assert [c.delay for c in network.connections] == [0] * len(each) + [1]


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10), st.floats(0, 0.99))
@settings(max_examples=40)
def test_no_input_and_no_recurrence_overflow_what_was_quantized(seed: int, ratio: float, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    pair = (
        FoldedConnection(INPUT, rng.normal(size=(5, 12))),
        FoldedConnection(INPUT, rng.normal(size=(5, 12)) * ratio),
    )
    loop = FoldedConnection("a", np.full((5, 5), ratio), delay=1)
    network, _ = quantize([layer(np.zeros((5, 1)), connections=(*pair, loop), alpha=alpha, threshold=1.0)], (12,), 1)
    signs = network.connections[0].weight
    inputs = np.concatenate([signs > 0, signs < 0]).astype(np.uint8)[None].repeat(150, axis=0)
    unwrapped = replace(LOIHI_LIF_V1, wrap=lambda u: u)
    wrapped, free = (reference.run(network, inputs, 10, rules=rules) for rules in (LOIHI_LIF_V1, unwrapped))
    assert np.array_equal(wrapped.u["a"], free.u["a"])


def test_decays_of_every_neuron_become_arrays() -> None:
    beta = np.array([0.25, 0.5, 1.0])
    network, (row,) = quantize([layer(np.eye(3), beta=beta, alpha=beta / 2)], (3,), 1)
    assert np.array_equal(network["a"].decay_v, [3072, 2048, 0])
    assert np.array_equal(network["a"].decay_u, [3583, 3071, 2047])
    assert (row["beta"], row["decay_v"]) == ("0.25..1", "0..3072")


def test_a_decay_outside_the_range_is_named_even_in_an_array() -> None:
    with pytest.raises(UserError, match=r"beta = 0.0 is decay 4096"):
        quantize([layer(np.eye(2), beta=np.array([0.5, 0.0]))], (2,), 1)


@given(
    st.integers(0, 2**32 - 1),
    st.floats(1e-3, 1e3),
    st.floats(1e-2, 1e3),
    st.sampled_from([1, 4, 8]),
    st.sampled_from([(), (1, 2, 2)]),
)
@settings(max_examples=100)
def test_the_strongest_input_all_but_fills_the_bias(
    seed: int, size: float, ratio: float, bits: int, kernel: tuple[int, ...]
) -> None:
    """No input leaves the mantissas, a threshold without error fits beside it, and half a step is all that is lost."""
    rng, top = np.random.default_rng(seed), (1 << bits) - 1
    weight = rng.normal(size=(5, *(kernel or (12,)))) * size / top
    geometry = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1} if kernel else {}
    shape = (5, 1, 1) if kernel else (5,)
    folded = layer(weight.reshape(5, -1), shape=shape, threshold=size * ratio, input_is_bias=True)
    folded = replace(
        folded, connections=(FoldedConnection(INPUT, weight, geometry),), bias=rng.normal(size=5) * size / 9
    )
    network, (row,) = quantize([folded], weight.shape[1:], bits)
    inputs = np.concatenate([weight > 0, weight < 0, rng.random(weight.shape) < 0.5]) * top
    mantissas = input_biases([folded], network, inputs.astype(np.uint8)[None].repeat(3, axis=0))
    assert mantissas.shape == (3, 15, *shape)
    population, scale = network["a"], row["scale"]
    exact = inputs.reshape(15, -1) @ weight.reshape(5, -1).T + folded.bias
    loaded = mantissas[0].reshape(15, 5).astype(np.int64) << population.bias_exp
    assert np.abs(loaded / (64 * scale) - exact).max() <= row["bias_error"] * 1.0000001
    assert population.threshold_mant == round(scale * folded.threshold)
    assert scale * folded.threshold == pytest.approx(int(population.threshold_mant), rel=1e-12)
    assert np.abs(mantissas).max() <= 4095
    assert np.abs(mantissas).max() > 2000 or population.threshold_mant < 1000 or population.bias_exp == 0
    assert (int(population.threshold_mant) << 6) + (4095 << population.bias_exp) < 1 << 23
    assert np.array_equal(
        reference.run(network, mantissas).spikes["a"][0] > 0,
        loaded.reshape(15, *shape) > (int(population.threshold_mant) << 6),
    )


def test_a_threshold_too_low_for_the_grid_of_the_input_as_bias_is_refused() -> None:
    with pytest.raises(UserError, match=r"layer 'a': the threshold 0.0001 rounds to 0 on the grid of its bias"):
        quantize([layer(np.eye(2), threshold=1e-4, input_is_bias=True)], (2,), 1)


def test_an_input_as_bias_that_weighs_nothing_is_handled() -> None:
    network, _ = quantize([layer(np.zeros((2, 3)), input_is_bias=True)], (3,), 1)
    assert network["a"].threshold_mant > 1 << 16


def test_a_current_readout_keeps_its_bias_on_the_grid_of_its_weights() -> None:
    weight, bias = np.array([[0.5, -1.0], [0.25, 0.75]]), np.array([0.125, -0.25])
    folded = layer(weight, neuron="none", threshold=0.0, beta=1.0)
    network, (row,) = quantize([replace(folded, bias=bias)], (2,), 1)
    inputs = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.uint8)[None]
    current = reference.run(network, inputs).spikes["a"][0]
    expected = (inputs[0] @ weight.T + bias) * 64 * row["scale"]
    assert np.abs(current - expected).max() <= 64 * 2.0 ** network.connections[0].exponent * 2 + 64
    assert int(network["a"].decay_u) == 4095


@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 0.8),
    st.floats(0.1, 0.95),
    st.sampled_from(RESETS),
    st.booleans(),
    st.sampled_from([1, 4]),
    st.booleans(),
)
@settings(max_examples=80)
def test_the_scale_is_the_largest_proven_of_sources_that_may_send_at_every_step(
    seed: int, alpha: float, beta: float, reset: str, floor: bool, bits: int, recurrent: bool
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(5, 12)) / ((1 << bits) - 1)
    feedback = FoldedConnection("a", rng.normal(size=(5, 5)), delay=1)
    folded = layer(weight, bias=0.1, alpha=alpha, beta=beta, reset=reset, floor=floor)
    if recurrent:
        folded = replace(folded, connections=(*folded.connections, feedback))
    network, (row, *_) = quantize([folded], (12,), bits)
    assert prove(network, seconds=0).word() == PROVEN
    if row["backed_off"] and not recurrent:  # a proof may know that neurons do not spike at every step
        population = network["a"]
        larger = replace(
            network,
            populations=(
                replace(population, threshold_mant=2 * population.threshold_mant, bias_exp=population.bias_exp + 1),
            ),
            connections=tuple(replace(c, exponent=c.exponent + 1) for c in network.connections),
        )
        assert prove(larger, seconds=0).word() != PROVEN


def test_the_range_of_the_voltage_costs_exponents_and_no_bits() -> None:
    weight = np.full((2, 40), -0.5)
    network, (row,) = quantize([layer(weight, beta=0.98)], (40,), 1)
    quick, (usual,) = quantize([layer(weight, beta=0.5)], (40,), 1)
    assert (row["backed_off"], usual["backed_off"]) == (3, 0)
    assert np.array_equal(network.connections[0].weight, quick.connections[0].weight)
    assert network.connections[0].exponent == quick.connections[0].exponent - 3
    assert prove(network).word() == PROVEN


def test_where_no_scale_helps_none_is_given_up_and_the_proof_says_so() -> None:
    network, (row,) = quantize([layer(np.full((1, 4), -1.0), beta=1.0)], (4,), 1)
    assert row["backed_off"] == 0
    assert prove(network, steps=100).word() == REFUTED


def test_an_input_as_bias_leaves_room_for_what_a_slow_leak_sums_up() -> None:
    network, (row,) = quantize([layer(np.eye(2), beta=0.99, input_is_bias=True)], (2,), 1)
    assert row["backed_off"] == 7 - network["a"].bias_exp > 0
    assert prove(network).word() == PROVEN


def test_samples_may_decide_the_range_with_a_margin() -> None:
    given = layer(np.full((2, 40), -0.5), beta=0.98)
    calibrated = Precision(calibration="error", range="calibrated")
    proven, _ = quantize([given], (40,), 1)
    for reach, given_up in (((1.0, 60.0), 0), ((1.0, 100.0), 1), ((1.0, 200.0), 2)):
        network, (row,) = quantize([replace(given, reach=reach)], (40,), 1, calibrated)
        assert row["backed_off"] == given_up
        assert 2 * reach[1] * row["scale"] * 64 < 1 << 23
        assert network.connections[0].exponent > proven.connections[0].exponent
    with pytest.raises(UserError, match="layer 'a': range = 'calibrated' takes samples"):
        quantize([given], (40,), 1, calibrated)
