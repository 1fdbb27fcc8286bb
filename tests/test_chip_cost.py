"""Events are counted as a loop over all spikes and synapses counts them; energy and time are their published sums."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from chip_audit import synapses
from hypothesis import assume, given, settings
from strategies import networks
from test_chip_placement import LOIHI1, changed, small_chips

from base.errors import UserError
from deploy.chip import limits
from deploy.chip.cost import cost, count
from deploy.chip.limits import Chip
from deploy.chip.placement import place
from quantize import engine
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population


def small(payload_bits: int = 1) -> tuple[IntegerNetwork, np.ndarray]:
    """Two inputs that always fire, one neuron that never leaks and fires at every second step, and one behind it."""
    first = Population("a", (1,), *map(np.asarray, (4095, 0, 150, 0)))
    second = Population("b", (1,), *map(np.asarray, (4095, 0, 1000, 0)))
    joined = (Connection(INPUT, "a", np.array([[50, 50]])), Connection("a", "b", np.array([[20]])))
    network = IntegerNetwork((2,), (first, second), joined, "b", payload_bits)
    return network, np.ones((4, 3, 2), np.uint8)


@settings(max_examples=40, deadline=None)
@given(networks(cycles=True, readouts=True), small_chips())
def test_events_are_those_of_a_loop_over_all_spikes(drawn: tuple[IntegerNetwork, np.ndarray], chip: Chip) -> None:
    network, inputs = drawn
    try:
        placement = place(network, chip)
    except UserError:
        assume(False)
    ran = engine.run(network, inputs)
    counts = count(network, placement, ran, inputs)
    emitted = {INPUT: inputs} | ran.spikes
    at = {
        (name, neuron): (core, part)
        for name, parts in placement.parts.items()
        for core, part in parts
        for neuron in np.ndindex(network[name].shape)
        if all(first <= place < behind for place, (first, behind) in zip(neuron, part.region, strict=True))
    }
    operations: Counter[int] = Counter()
    traffic: Counter[tuple[int, int]] = Counter()
    for connection in network.connections:
        source, target = network.shape_of(connection.source), network.shape_of(connection.target)
        reached = set()
        for sender, receiver, _ in synapses(connection, source, target):
            spikes = int(np.count_nonzero(emitted[connection.source][(slice(None), slice(None), *sender)]))
            core, part = at[connection.target, receiver]
            operations[core] += spikes
            if (sender, part) not in reached:
                reached.add((sender, part))
                start = -1 if connection.source == INPUT else at[connection.source, sender][0]
                traffic[start, core] += spikes
    samples = inputs.shape[1]
    np.testing.assert_array_equal(
        counts.operations_of_cores.sum(axis=(0, 1)), [operations[core] for core in range(len(placement.cores))]
    )
    for (start, core), messages in traffic.items():
        assert counts.traffic[start, core] == messages / samples
    assert counts.traffic.sum() == pytest.approx(sum(traffic.values()) / samples)
    assert counts.synaptic_operations == sum(operations.values()) / samples


@pytest.mark.smoke
def test_energy_and_time_of_a_small_network_by_hand() -> None:
    """Of 4 steps: 8 input spikes and 2 of the first neuron make 10 operations; 2 neurons are updated 4 times."""
    network, inputs = small()
    placement = place(network, LOIHI1)
    found = cost(network, placement, count(network, placement, engine.run(network, inputs), inputs))
    assert found["events"]["spikes"] == {"input": 8, "a": 2, "b": 0}
    assert found["events"]["synaptic operations"] == 10
    assert found["events"]["neuron updates"] == 8
    assert found["events"]["messages"] == {"all": 10, "from the host": 8, "to another tile": 0, "to another chip": 0}
    energy = found["published"]["dynamic energy, uJ"]
    assert energy["synaptic operations"] == pytest.approx([236e-6, 350e-6])
    assert energy["neuron updates"] == pytest.approx([416e-6, 648e-6])
    assert energy["all dynamic"] == pytest.approx([669e-6, 1015e-6])
    least, most = 10 * 3.5 + 8 * 5.3 + 4 * 113, 10 * 3.5 + 8 * 8.4 + 4 * 465
    assert found["published"]["time, us"] == pytest.approx([least / 1e3, most / 1e3])
    assert found["published"]["static energy, uJ"] == pytest.approx([0.104 * least / 1e3, 0.104 * most / 1e3])
    assert "pre-silicon" in found["published"]["label"]


def test_a_step_takes_as_long_as_its_busiest_core() -> None:
    network, inputs = small()
    chip = changed(LOIHI1, core_neurons=1, chip_cores=1)
    placement = place(network, chip)
    found = cost(network, placement, count(network, placement, engine.run(network, inputs), inputs))
    assert found["published"]["time, us"][0] == pytest.approx((8 * 3.5 + 4 * 5.3 + 4 * 113) / 1e3)
    assert found["published"]["static energy, uJ"][0] == pytest.approx(0.208 * found["published"]["time, us"][0])
    assert found["events"]["messages"]["to another chip"] == 2


def test_loihi_2_is_told_in_counts_and_speed_factors_and_never_in_joules() -> None:
    network, inputs = small(payload_bits=4)
    placement = place(network, limits.load("loihi2"))
    found = cost(network, placement, count(network, placement, engine.run(network, inputs), inputs))
    assert found["published"] is None
    factors = {"neuron update": 2.0, "synaptic operation": 5.0, "spike generation": 10.0}
    assert found["times faster than Loihi 1"] == factors


@pytest.mark.parametrize(("payload_bits", "expected"), [(1, 10 * 0.9), (4, 8 * 4.6 + 2 * 0.9)])
def test_the_dense_network_multiplies_once_where_spikes_add(payload_bits: int, expected: float) -> None:
    network, inputs = small(payload_bits)
    placement = place(network, LOIHI1)
    dense = cost(network, placement, count(network, placement, engine.run(network, inputs), inputs))["dense"]
    assert dense["multiply-adds"] == 3
    assert dense["energy, uJ"] == pytest.approx(3 * 4.6e-6)
    assert dense["spiking energy, uJ"] == pytest.approx(expected * 1e-6)


def test_a_recurrent_network_is_dense_once_a_step() -> None:
    neurons = Population("a", (2,), *map(np.asarray, (4095, 0, 10, 0)))
    weight = np.full((2, 2), 20)
    joined = (Connection(INPUT, "a", weight), Connection("a", "a", weight, delay=1))
    network, inputs = IntegerNetwork((2,), (neurons,), joined, "a"), np.ones((5, 1, 2), np.uint8)
    placement = place(network, LOIHI1)
    found = cost(network, placement, count(network, placement, engine.run(network, inputs), inputs))
    assert found["dense"]["multiply-adds"] == 5 * 8
