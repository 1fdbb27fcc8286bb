"""Distances between the float and the integer network mean what they say."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from base.errors import UserError
from quantize import fidelity as module
from quantize.fidelity import fidelity, van_rossum, victor_purpura
from quantize.integer_network import Connection, IntegerNetwork, readout
from quantize.recording import Recording

NETWORK = IntegerNetwork(
    (1,), (readout("output", (3,)),), (Connection("input", "output", np.ones((3, 1), int) * 2),), "output"
)

train = st.lists(st.integers(0, 1), min_size=12, max_size=12)


def double_sum(a, b, tau):
    """The distance without any filter: each pair of spikes at t and s contributes exp(-|t - s| / tau) / 2."""
    charges = [(t, 1) for t, spike in enumerate(a) if spike] + [(t, -1) for t, spike in enumerate(b) if spike]
    pairs = (p * q * math.exp(-abs(t - s) / tau) for t, p in charges for s, q in charges)
    return math.sqrt(max(0.0, sum(pairs) / 2))


@pytest.mark.smoke
@settings(max_examples=100)
@given(train, train, st.floats(0.5, 20))
def test_van_rossum_distance_is_the_continuous_integral(a, b, tau):
    found = van_rossum(np.array(a, np.uint8)[:, None], np.array(b, np.uint8)[:, None], tau)
    assert found[0] == pytest.approx(double_sum(a, b, tau), abs=1e-7)


def test_one_spike_too_many_is_a_distance_of_sqrt_half_wherever_it_falls():
    spikes = np.eye(9, dtype=np.uint8)  # neuron n fires once, at step n
    assert van_rossum(spikes, np.zeros_like(spikes), 4.0) == pytest.approx(np.full(9, math.sqrt(0.5)))


def best_assignment(a, b, cost):
    """The distance without any recursion: every spike removed and added, less what the best pairs of them save."""
    ours, theirs = np.flatnonzero(a), np.flatnonzero(b)
    saved = np.maximum(2 - cost * np.abs(ours[:, None] - theirs), 0)
    return len(ours) + len(theirs) - saved[linear_sum_assignment(saved, maximize=True)].sum()


@pytest.mark.smoke
@settings(max_examples=100)
@given(st.lists(st.tuples(train, train), min_size=1, max_size=4), st.floats(0, 3))
def test_victor_purpura_distance_is_that_of_the_best_pairs_of_spikes(pairs, cost):
    a, b = (np.array(trains, np.uint8).T.reshape(12, 1, -1) for trains in zip(*pairs, strict=True))
    expected = [best_assignment(*pair, cost) for pair in pairs]
    assert victor_purpura(a, b, cost) == pytest.approx(np.array([expected]), abs=1e-12)


def test_victor_purpura_distance_runs_from_counts_to_coincidences():
    a, b = np.array([[1, 0, 1, 0, 0, 1]]).T, np.array([[1, 0, 0, 1, 0, 0]]).T
    assert victor_purpura(a, b, 0.0) == 1  # three spikes and two
    assert victor_purpura(a, b, 0.5) == 1.5  # the second moved by a step, the third removed
    assert victor_purpura(a, b, 9.0) == 3  # one coincides


def recording(backend, spikes, inputs="in"):
    return Recording(backend, backend, inputs, spikes)


def test_measures_of_a_run_small_enough_to_count_by_hand():
    hidden_a = np.zeros((4, 2, 5), np.uint8)
    hidden_b = hidden_a.copy()
    hidden_b[1, 0, 3] = hidden_b[2, 0, 3] = 1
    output_a, output_b = np.zeros((4, 2, 3), np.uint8), np.zeros((4, 2, 3), np.uint8)
    output_a[:, 0, 1] = output_a[:, 1, 2] = output_b[:, 0, 1] = 1
    found = fidelity(
        recording("float", {"hidden": hidden_a, "output": output_a}),
        recording("engine", {"hidden": hidden_b, "output": output_b}),
        np.array([1, 2]),
        NETWORK,
        time_constant=2.0,
    )
    assert found["accuracy"] == {"float": 1.0, "integer": 0.5}
    assert found["agreement"] == 0.5
    hidden = found["populations"]["hidden"]
    assert (hidden["differing_share"], hidden["float_rate"], hidden["integer_rate"]) == (2 / 40, 0.0, 2 / 40)
    assert hidden["rate_drift"] == 2 / 40
    assert hidden["van_rossum"] == pytest.approx(math.sqrt(1 + math.exp(-1 / 2)) / 10)
    assert (hidden["victor_purpura"], hidden["victor_purpura_trains"]) == (2 / 10, 10)
    assert hidden["rate_earth_mover"] == pytest.approx(2 / 40)
    # Of the book: (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), z = 1.96, with p = 1/2, n = 2.
    assert found["agreement_interval"] == pytest.approx([0.0945, 0.9055], abs=1e-4)
    json.dumps(found, allow_nan=False)


def test_rates_that_two_neurons_exchange_are_no_distance_and_rates_that_part_are():
    one, two = np.zeros((4, 1, 3), np.uint8), np.zeros((4, 1, 3), np.uint8)
    one[:2, 0, :2] = 1
    two[:4, 0, 0] = 1  # the same mean, of one neuron now
    for other, distance in ((one[..., ::-1], 0), (two, 1 / 3)):
        runs = recording("float", {"output": one}), recording("engine", {"output": other})
        output = fidelity(*runs, [0], NETWORK)["populations"]["output"]
        assert (output["rate_drift"], output["rate_earth_mover"]) == (0, pytest.approx(distance))


def test_of_very_many_trains_so_many_as_told_are_compared(monkeypatch):
    monkeypatch.setattr(module, "TRAINS", 40)
    rng = np.random.default_rng(0)
    silent, fires = np.zeros((5, 30, 3), np.uint8), (rng.random((5, 30, 3)) < 0.5).astype(np.uint8)
    runs = recording("float", {"output": silent}), recording("engine", {"output": fires})
    output = fidelity(*runs, np.zeros(30, int), NETWORK)["populations"]["output"]
    assert output["victor_purpura_trains"] == 40
    assert output["victor_purpura"] == pytest.approx(2.5, abs=4 * math.sqrt(5 / 4 / 40))  # five steps, half of them


def test_both_accuracies_are_those_of_the_weighted_output():
    early, late = np.zeros((2, 1, 3), np.uint8), np.zeros((2, 1, 3), np.uint8)
    early[0, 0, 1] = late[0, 0, 1] = early[1, 0, 2] = late[1, 0, 2] = 1
    late[0, 0, 0] = 1
    weighing = replace(NETWORK, time_weights=np.array([1, 2]))
    found = fidelity(recording("float", {"output": early}), recording("engine", {"output": late}), [2], weighing)
    assert (found["accuracy"], found["agreement"]) == ({"float": 1.0, "integer": 1.0}, 1.0)
    found = fidelity(recording("float", {"output": early}), recording("engine", {"output": late}), [2], NETWORK)
    assert (found["accuracy"], found["agreement"]) == ({"float": 0.0, "integer": 0.0}, 0.0)


def test_populations_that_only_the_integers_have_are_left_out():
    spikes = np.zeros((2, 1, 3), np.uint8)
    found = fidelity(
        recording("float", {"output": spikes}),
        recording("engine", {"pool": spikes, "output": spikes}),
        np.array([0]),
        NETWORK,
    )
    assert list(found["populations"]) == ["output"]


@pytest.mark.parametrize(
    ("integer", "labels", "words"),
    [
        (
            recording("engine", {"output": np.zeros((2, 4, 3), np.uint8)}, "x"),
            4,
            "ran the input in, engine the input x",
        ),
        (
            recording("engine", {"hidden": np.zeros((2, 4, 3), np.uint8)}),
            4,
            "engine did not record the output 'output'",
        ),
        (
            recording("engine", {"output": np.zeros((9, 4, 3), np.uint8)}),
            4,
            "(2, 4, 3) in float and (9, 4, 3) in engine",
        ),
        (
            recording("engine", {"output": np.zeros((2, 4, 3), np.uint8)}),
            5,
            "labels of shape (5,) for 4 recorded samples",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(integer, labels, words):
    ours = recording("float", {"output": np.zeros((2, 4, 3), np.uint8)})
    with pytest.raises(UserError) as error:
        fidelity(ours, integer, np.zeros(labels, np.int64), NETWORK)
    assert words in str(error.value)
