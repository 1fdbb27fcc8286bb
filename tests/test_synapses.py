"""Every way to sum over spikes is exact: on random networks whichever is taken, and where its integers are full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from strategies import networks
from test_engine import assert_equal

from quantize import engine, reference, synapses
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population


def by_rows(network: IntegerNetwork, connection: Connection) -> synapses.Add:
    binary = network.payload_max(connection.source) == 1
    return (synapses.rows if binary and not connection.is_conv else synapses.taps)(network, connection)


def by_products(network: IntegerNetwork, connection: Connection) -> synapses.Add:
    return (synapses.taps if connection.is_conv else synapses.products)(network, connection)


@pytest.mark.parametrize("way", [by_rows, by_products, synapses.taps])
@given(case=networks(cycles=True, readouts=True))
@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
def test_every_way_equals_the_reference_on_random_networks(way: Callable, case: Any) -> None:
    network, inputs = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "adder", way)
        assert_equal(reference.run(network, inputs, states=2), engine.run(network, inputs, states=2))


def one_neuron(weight: np.ndarray, payload_bits: int, exponent: int = -8) -> IntegerNetwork:
    lif = Population("a", (1,), decay_u=4095, decay_v=0, threshold_mant=131071, bias_mant=0)
    return IntegerNetwork((weight.size,), (lif,), (Connection(INPUT, "a", weight[None], exponent),), "a", payload_bits)


@pytest.mark.parametrize("payload_bits", [1, 4, 8])
@pytest.mark.parametrize("way", [by_rows, by_products, synapses.taps])
@pytest.mark.parametrize("last", [254, -256])
def test_sums_are_exact_up_to_their_largest_and_beyond_the_narrower_integers(
    way: Callable, payload_bits: int, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of binary spikes, halved weights could sum to 32,767 or to 32,768, on both sides of what 16 bits hold."""
    network = one_neuron(np.append(np.full(255, -256), last), payload_bits)
    inputs = np.full((2, 1, 256), network.payload_max(INPUT), np.uint8)
    monkeypatch.setattr(engine, "adder", way)
    assert_equal(reference.run(network, inputs, states=1), engine.run(network, inputs, states=1))


@pytest.mark.parametrize(("payload_bits", "inputs_wide"), [(1, 131_073), (8, 65_536), (8, 65_794)])
def test_sums_beyond_float32_and_beyond_32_bits_are_exact(payload_bits: int, inputs_wide: int) -> None:
    """With all weights -256 but one, halves sum beyond 2^24, and of 8-bit payloads to -2^31 and beyond."""
    weight = np.full(inputs_wide, -256)
    weight[0] = 2
    network = one_neuron(weight, payload_bits)
    inputs = np.full((2, 1, inputs_wide), network.payload_max(INPUT), np.uint8)
    assert_equal(reference.run(network, inputs, states=1), engine.run(network, inputs, states=1))


def test_few_spikes_are_added_up_and_many_are_multiplied() -> None:
    assert synapses.rows_are_cheaper(0.05, outputs=256)
    assert not synapses.rows_are_cheaper(0.5, outputs=256)
    assert not synapses.rows_are_cheaper(0.05, outputs=10)
