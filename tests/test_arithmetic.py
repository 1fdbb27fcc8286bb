"""The contract's rules, each against another way to compute it, over its whole domain where that is small."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantize import arithmetic as rules

STATES = np.unique(np.concatenate([np.arange(-5000, 5001), np.linspace(-(2**23), 2**23, 20011, dtype=np.int64)]))
NEURON = {"decay_u": 4095, "decay_v": 0, "threshold_mant": 100, "bias": 0, "reset": "hard", "floor": False}


@pytest.mark.smoke
def test_truncation_is_exact_division_rounded_toward_zero_for_every_decay() -> None:
    edges = np.array([-(2**23), -(2**23) + 1, -4097, -4096, -4095, -1, 0, 1, 4095, 4096, 4097, 2**23 - 1, 2**23])
    for kept in range(rules.DECAY_UNITY + 1):
        expected = [int(Fraction(int(state) * kept, 4096)) for state in edges]
        assert np.array_equal(rules.truncate_toward_zero(edges * kept), expected)


def test_truncation_equals_float64_truncation_over_all_states_of_some_decays() -> None:
    for kept in (0, 1, 2047, 2048, 3687, 4095, 4096):
        product = STATES * kept
        assert np.array_equal(rules.truncate_toward_zero(product), np.trunc(product / 4096.0).astype(np.int64))


def test_current_wraps_once_into_a_half_open_range_that_holds_its_upper_end() -> None:
    limit = 2**23
    current = np.array([limit - 1, limit, limit + 1, -limit + 1, -limit, -limit - 1, 3 * limit, 3 * limit + 1])
    expected = [limit - 1, limit, -limit + 1, -limit + 1, limit, limit - 1, limit, limit + 1]
    assert np.array_equal(rules.wrap_current(current), expected)


def test_wrap_agrees_with_two_s_complement_except_at_the_lower_end() -> None:
    current = np.arange(-(2**24) + 1, 2**24)
    twos_complement = ((current + 2**23) & (2**24 - 1)) - 2**23
    differs = rules.wrap_current(current) != twos_complement
    assert np.array_equal(current[differs], [-(2**23), 2**23])


def test_voltage_saturates_symmetrically() -> None:
    assert np.array_equal(
        rules.saturate_voltage(np.array([2**23, 2**23 - 1, 0, -(2**23) + 1, -(2**23)])),
        [2**23 - 1, 2**23 - 1, 0, -(2**23) + 1, -(2**23) + 1],
    )


@pytest.mark.parametrize("exponent", range(rules.EXPONENT_MIN, rules.EXPONENT_MAX + 1))
def test_shift_multiplies_and_rounds_toward_minus_infinity(exponent: int) -> None:
    sums = np.arange(-3000, 3001)
    expected = [int((Fraction(int(value)) * Fraction(2) ** exponent).__floor__()) for value in sums]
    assert np.array_equal(rules.shift(sums, exponent), expected)


def test_decay_4095_is_no_memory_of_current_and_decay_0_keeps_all_voltage() -> None:
    u, v, _ = rules.lif_step(np.array([777]), np.array([55]), np.array([0]), **NEURON)
    assert (u[0], v[0]) == (0, 55)


def test_a_neuron_fires_only_strictly_above_its_threshold() -> None:
    activation = np.array([99, 100, 101])
    _, v, spikes = rules.lif_step(np.zeros(3), np.zeros(3), activation, **NEURON)
    assert np.array_equal(spikes, [False, False, True])
    assert np.array_equal(v, [99 * 64, 100 * 64, 0])


def test_soft_reset_subtracts_the_threshold_and_hard_reset_clears() -> None:
    start = (np.zeros(1), np.zeros(1), np.array([250]))
    assert rules.lif_step(*start, **NEURON)[1] == 0
    assert rules.lif_step(*start, **(NEURON | {"reset": "soft"}))[1] == 150 * 64


def test_a_late_reset_acts_on_what_the_next_step_has_reached() -> None:
    neuron = NEURON | {"decay_v": 2048, "bias": 10}
    start = (np.array([0]), np.array([0]), np.array([250]))
    for reset, expected in (("hard-late", 0), ("soft-late", (250 * 64 + 10) // 2 + 99 * 64 + 10 - 100 * 64)):
        u, v, spikes = rules.lif_step(*start, **(neuron | {"reset": reset}))
        assert (v[0], spikes[0]) == (250 * 64 + 10, True)
        u, v, spikes = rules.lif_step(u, v, np.array([99]), **(neuron | {"reset": reset}))
        assert (v[0], spikes[0]) == (expected, expected > 100 * 64)


def test_a_soft_late_reset_subtracts_before_the_voltage_saturates() -> None:
    constants = {"decay_u": 4095, "decay_v": 0, "bias": 0, "reset": "soft-late", "floor": False}
    full = np.array([rules.STATE_LIMIT - 1])
    _, v, _ = rules.lif_step(np.array([0]), full, np.array([1000]), threshold_mant=2000, **constants)
    assert v[0] == rules.STATE_LIMIT - 1 + 1000 * 64 - 2000 * 64


def test_the_floor_acts_before_the_threshold_and_only_where_it_is_set() -> None:
    down = (np.zeros(1), np.zeros(1), np.array([-5]))
    assert rules.lif_step(*down, **NEURON)[1] == -5 * 64
    assert rules.lif_step(*down, **(NEURON | {"floor": True}))[1] == 0


def test_bias_enters_the_voltage_in_state_units_and_leaves_the_current_alone() -> None:
    u, v, _ = rules.lif_step(np.zeros(1), np.zeros(1), np.array([2]), **(NEURON | {"bias": 7}))
    assert (u[0], v[0]) == (128, 135)


@given(st.data())
def test_convolution_sum_equals_torch(data: st.DataObject) -> None:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    stride, kernel, dilation = data.draw(pair), data.draw(pair), data.draw(pair)
    padding = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    groups, per_group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    size = tuple(max(1, d * (k - 1) + 1 - 2 * p) + data.draw(st.integers(0, 4))
                 for k, d, p in zip(kernel, dilation, padding, strict=True))  # fmt: skip
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    spikes = rng.integers(0, 16, (2, 2 * groups, *size))
    weight = 2 * rng.integers(-128, 128, (groups * per_group, 2, *kernel))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    ours = rules.conv_sum(spikes, weight, groups=groups, **geometry)
    theirs = torch.nn.functional.conv2d(
        torch.from_numpy(spikes).double(), torch.from_numpy(weight).double(), groups=groups, **geometry
    )
    assert np.array_equal(ours, theirs.numpy().astype(np.int64))
    assert ours.shape[1:] == rules.conv_shape(spikes.shape[1:], weight.shape, **geometry)


def test_dense_sum_reads_the_source_flattened() -> None:
    rng = np.random.default_rng(0)
    spikes, weight = rng.integers(0, 2, (3, 2, 2, 2)), rng.integers(-9, 9, (4, 8))
    expected = [[sum(w * s for w, s in zip(row, sample.ravel(), strict=True)) for row in weight] for sample in spikes]
    assert np.array_equal(rules.dense_sum(spikes, weight), expected)
