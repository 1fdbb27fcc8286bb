"""The engine equals the reference: spikes, u and v, on whatever can be drawn and at the edges of its exact paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from strategies import networks

from quantize import engine, reference
from quantize.arithmetic import DECAY_UNITY, STATE_LIMIT, truncate_toward_zero
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


def test_the_scan_keeps_of_a_state_what_the_contract_says() -> None:
    """On every share, at the edges of the state and of the bits that are multiplied apart, either sign."""
    edges = [0, 1, 4095, 4096, 4097, 123_456, STATE_LIMIT - 4096, STATE_LIMIT - 1, STATE_LIMIT, (1 << 31) - 1]
    states = np.array([sign * edge for edge in edges for sign in (1, -1)])
    shares = np.arange(DECAY_UNITY + 1)
    kept = np.array([[engine.decayed(np.int32(s), np.int32(share)) for share in shares] for s in states])
    assert np.array_equal(kept, truncate_toward_zero(states[:, None] * shares))


@pytest.mark.parametrize("weight", [254, -256])
@pytest.mark.parametrize("reset", ["hard", "soft-late"])
def test_currents_at_the_end_of_32_bits_saturate_the_voltage(weight: int, reset: str) -> None:
    """A forgetful current may be 2^31 wide, to which voltage and bias are added."""
    lif = Population("a", (1,), decay_u=4095, decay_v=0, threshold_mant=131071, bias_mant=4095, bias_exp=7, reset=reset)
    network = IntegerNetwork((1010,), (lif,), (Connection(INPUT, "a", np.full((1, 1010), weight), exponent=7),), "a")
    inputs = np.ones((4, 1, 1010), np.uint8)
    ran = reference.run(network, inputs, states=1)
    assert np.abs(ran.u["a"].astype(np.int64)).min() > 1 << 30
    assert_equal(ran, engine.run(network, inputs, states=1))


@given(networks(cycles=True, readouts=True))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_input_that_does_not_change_equals_reference(case: Any) -> None:
    network, inputs = case
    still = np.repeat(inputs[:1], len(inputs), axis=0)
    assert_equal(reference.run(network, still, states=2), engine.run(network, still, states=2))


def test_states_are_recorded_for_the_first_samples_only() -> None:
    lif = Population("a", (2,), decay_u=0, decay_v=9, threshold_mant=50, bias_mant=1)
    network = IntegerNetwork((3,), (lif,), (Connection(INPUT, "a", np.full((2, 3), 20)),), "a")
    inputs = np.ones((4, 5, 3), np.uint8)
    ran = engine.run(network, inputs, states=2)
    assert ran.spikes["a"].shape == (4, 5, 2)
    assert ran.u["a"].shape == ran.v["a"].shape == (4, 2, 2)
    assert engine.run(network, inputs).u == {}
    assert engine.run(network, inputs, states=99).u["a"].shape == (4, 5, 2)
