"""Distances between the float and the integer network mean what they say."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UserError
from quantize.fidelity import fidelity, van_rossum
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
    json.dumps(found, allow_nan=False)


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
