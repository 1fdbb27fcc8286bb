"""The engine equals the reference: spikes, u and v, on whatever can be drawn and at the edges of its exact paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from strategies import networks

from quantize import engine, reference
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population
from quantize.recording import TRACES, Recording


def assert_equal(a: Recording, b: Recording) -> None:
    for kind in TRACES:
        ours, theirs = getattr(a, kind), getattr(b, kind)
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert np.array_equal(ours[name], theirs[name]), (kind, name)
    assert a.hash == b.hash


@given(networks(cycles=True, readouts=True))
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_engine_equals_reference_on_random_networks(case: Any) -> None:
    network, inputs = case
    assert_equal(reference.run(network, inputs, states=2), engine.run(network, inputs, states=2))


@pytest.mark.smoke
@given(networks(cycles=True, readouts=True))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_engine_cut_into_small_batches_equals_reference(case: Any) -> None:
    network, inputs = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "WORKSPACE", 64)
        assert_equal(reference.run(network, inputs, states=2), engine.run(network, inputs, states=2))


@pytest.mark.parametrize("inputs_wide", [65_793, 70_000])
def test_sums_that_float32_cannot_hold_stay_exact(inputs_wide: int) -> None:
    """With all weights -256 but one, the sum passes 2^24, where float32 would lose its last bit."""
    weight = np.full((1, inputs_wide), -256)
    weight[0, 0] = 2
    lif = Population("a", (1,), decay_u=4095, decay_v=0, threshold_mant=131071, bias_mant=0)
    network = IntegerNetwork((inputs_wide,), (lif,), (Connection(INPUT, "a", weight, exponent=-8),), "a")
    inputs = np.ones((2, 1, inputs_wide), np.uint8)
    assert_equal(reference.run(network, inputs, states=1), engine.run(network, inputs, states=1))


def test_states_are_recorded_for_the_first_samples_only() -> None:
    lif = Population("a", (2,), decay_u=0, decay_v=9, threshold_mant=50, bias_mant=1)
    network = IntegerNetwork((3,), (lif,), (Connection(INPUT, "a", np.full((2, 3), 20)),), "a")
    inputs = np.ones((4, 5, 3), np.uint8)
    ran = engine.run(network, inputs, states=2)
    assert ran.spikes["a"].shape == (4, 5, 2)
    assert ran.u["a"].shape == ran.v["a"].shape == (4, 2, 2)
    assert engine.run(network, inputs).u == {}
    assert engine.run(network, inputs, states=99).u["a"].shape == (4, 5, 2)
