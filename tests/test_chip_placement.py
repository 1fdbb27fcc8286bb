"""Parts and cores: every placement obeys the chip, counted by another routine; few cores; what cannot fit says why."""

from __future__ import annotations

import time

import numpy as np
import pytest
from chip_audit import Audit
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import networks

from base.errors import UserError
from deploy.chip import limits
from deploy.chip.findings import DoesNotFit
from deploy.chip.limits import Chip, Limit
from deploy.chip.placement import HINTS, Demand, Part, least_cores, place
from deploy.chip.synapses import list_bits, weight_bits
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population, readout

LOIHI1 = limits.load("loihi1")


def changed(chip: Chip, **values: object) -> Chip:
    """The chip with other values; `core_neurons` stands for core.neurons."""
    given = {key.replace("_", ".", 1): Limit(value, "a test", "given") for key, value in values.items()}
    return Chip(chip.name, {**chip.limits, **given})


@st.composite
def small_chips(draw: st.DrawFn) -> Chip:
    """Loihi 1 with cores so small that small networks take several chips."""
    return changed(
        LOIHI1,
        core_neurons=draw(st.integers(1, 30)),
        core_input_axons=draw(st.integers(20, 200)),
        core_output_axons=draw(st.integers(20, 200)),
        core_synapse_bits=64 * draw(st.integers(20, 400)),
        core_threshold_configs=draw(st.sampled_from([1, 2, 8])),
        chip_cores=draw(st.integers(1, 4)),
        synapse_block=draw(st.sampled_from([3, 64])),
        synapse_base_limit=draw(st.sampled_from([4, 256])),
        synapse_neuron_bits=draw(st.sampled_from([0, 48])),
        synapse_kernels=draw(st.sampled_from(limits.KERNELS)),
    )


def dense(*sizes: int, bits: int = 8, exponent: int = -6) -> IntegerNetwork:
    """Dense populations of such sizes behind each other, the first the input; no weight is zero."""
    random, step = np.random.default_rng(0), 1 << (9 - bits)
    names = [INPUT, *(f"dense{number}" for number in range(1, len(sizes)))]
    populations, connections = [], []
    for source, name, inputs, outputs in zip(names, names[1:], sizes, sizes[1:], strict=False):
        levels = random.integers(1, 1 << (bits - 1), (outputs, inputs)) * random.choice([-1, 1], (outputs, inputs))
        connections.append(Connection(source, name, levels * step, exponent))
        populations.append(Population(name, (outputs,), *map(np.asarray, (4095, 410, 500, 0))))
    return IntegerNetwork((sizes[0],), tuple(populations), tuple(connections), names[-1])


def share(network: IntegerNetwork, offset: int = 0) -> float:
    """Of a core's synapse memory that a dense population takes, were the core large enough for all of it."""
    chip = changed(LOIHI1, core_neurons=1 << 20)
    (population,) = network.populations
    part = Part(population.name, ((0, population.size),))
    return Demand(network, chip).of(part, offset).synapse_bits / chip.value("core.synapse_bits")


@pytest.mark.smoke
def test_the_block_format_takes_what_nengo_loihi_counts() -> None:
    assert Demand(dense(784, 128), LOIHI1).of(Part("dense1", ((0, 128),))).synapse_bits == 903_168
    assert round(share(dense(784, 128)), 2) == 0.86
    assert round(784 * int(list_bits(LOIHI1, 128, 8 + 7)) / 2**20, 2) == 1.53  # each synapse with a 7-bit index
    assert round(share(dense(784, 256)), 2) == 1.72
    assert round(share(dense(784, 512)), 2) == 3.45
    assert share(dense(1024, 1024)) == 9.0


@settings(max_examples=60, deadline=None)
@given(networks(cycles=True, readouts=True), small_chips())
def test_every_placement_obeys_every_limit_as_counted_neuron_by_neuron(
    drawn: tuple[IntegerNetwork, np.ndarray], chip: Chip
) -> None:
    network, _ = drawn
    try:
        placement = place(network, chip)
    except UserError:  # told in tests of its own
        assume(False)
    audit = Audit(network, placement)
    for core, counted in zip(placement.cores, audit.counts, strict=True):
        assert core.load.counts == {key: counted[key] for key in HINTS}
        for key in HINTS:
            assert counted[key] <= chip.value(key)
    assert len(placement.cores) >= least_cores(network, chip)


@settings(max_examples=40, deadline=None)
@given(networks(cycles=True, readouts=True), small_chips())
def test_the_same_network_gets_the_same_cores(drawn: tuple[IntegerNetwork, np.ndarray], chip: Chip) -> None:
    network, _ = drawn
    try:
        assert place(network, chip) == place(network, chip)
    except UserError:
        assume(False)


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
@pytest.mark.parametrize(
    "sizes", [(784, 128), (784, 512), (1024, 1024), (300, 2000), (4000, 300), (64, 10), (513, 777)]
)
def test_a_dense_layer_takes_no_core_more_than_counting_allows(sizes: tuple[int, int], bits: int) -> None:
    network = dense(*sizes, bits=bits)
    assert len(place(network, LOIHI1).cores) == least_cores(network, LOIHI1)


@pytest.mark.parametrize("sizes", [(784, 128, 10), (784, 256, 10), (1024, 1024, 1024), (2048, 2048, 1024, 512, 100)])
def test_dense_layers_together_stay_within_a_tenth_of_what_counting_allows(sizes: tuple[int, ...]) -> None:
    network = dense(*sizes)
    assert len(place(network, LOIHI1).cores) <= 1.1 * least_cores(network, LOIHI1)


def test_a_million_synapses_are_placed_in_seconds() -> None:
    network = dense(1000, 800, 250, exponent=-7)
    began = time.perf_counter()
    placement = place(network, LOIHI1)
    assert time.perf_counter() - began < 5
    assert len(placement.cores) == 9


def test_small_populations_share_a_core() -> None:
    (core,) = place(dense(64, 32, 32, 10), LOIHI1).cores
    assert [part.population for part in core.parts] == ["dense1", "dense2", "dense3"]
    assert core.load.neurons == 74


def test_a_population_is_cut_finer_when_what_it_feeds_takes_many_cores() -> None:
    """1,024 neurons that each reach 9 cores would need 9,216 output axons; a core has 4,096."""
    placement = place(dense(16, 1024, 1024, exponent=-7), LOIHI1)
    assert len(placement.parts["dense2"]) == 9
    assert [part.size for _, part in placement.parts["dense1"]] == [455, 455, 114]


def test_a_map_whose_rows_fill_no_core_is_cut_into_strips() -> None:
    """14,553 neurons fill 14.2 cores; of 33 channels, no two rows of 21 pixels fit one."""
    kernel = np.full((33, 1, 3, 3), 2)
    neurons = Population("map", (33, 21, 21), *map(np.asarray, (4095, 0, 100, 0)))
    network = IntegerNetwork((1, 21, 21), (neurons,), (Connection(INPUT, "map", kernel, padding=(1, 1)),), "map")
    assert len(place(network, LOIHI1).cores) == 15


def test_a_shared_kernel_is_stored_once_for_each_way_in_which_pixels_reach_a_core() -> None:
    """3 by 3 taps over 8 by 8 pixels reach alike inside, at four edges and in four corners."""
    kernel = np.full((4, 2, 3, 3), 2)
    neurons = Population("map", (4, 8, 8), *map(np.asarray, (4095, 0, 100, 0)))
    network = IntegerNetwork((2, 8, 8), (neurons,), (Connection(INPUT, "map", kernel, padding=(1, 1)),), "map")
    (core,) = place(network, LOIHI1).cores
    assert core.load.input_axons == 64
    taps = [rows * columns for rows in (2, 3, 2) for columns in (2, 3, 2)]
    assert core.load.synapse_bits == sum(int(list_bits(LOIHI1, 2 * 4 * n, 8 + 7)) for n in taps)


@pytest.mark.parametrize("bits", range(1, 9))
def test_weights_take_the_fewest_bits_that_hold_them_exactly(bits: int) -> None:
    levels = np.arange(-(1 << (bits - 1)), 1 << (bits - 1))
    assert weight_bits(levels << (9 - bits)) == bits


def test_a_pruned_layer_takes_axons_and_memory_of_its_synapses_alone() -> None:
    weight = np.zeros((512, 1000), int)
    weight[np.arange(512), np.arange(512)] = 64
    neurons = Population("dense1", (512,), *map(np.asarray, (4095, 0, 100, 0)))
    network = IntegerNetwork((1000,), (neurons,), (Connection(INPUT, "dense1", weight),), "dense1")
    (core,) = place(network, LOIHI1).cores
    assert (core.load.input_axons, core.load.synapse_bits) == (512, 512 * 64)


def test_a_neuron_with_more_inputs_than_a_core_has_axons_fits_nowhere() -> None:
    with pytest.raises(DoesNotFit) as refused:
        place(dense(5000, 4), LOIHI1)
    assert str(refused.value) == (
        "one neuron of population 'dense1': core.input_axons is 5,000, the limit 4,096, 904 too many; let fewer inputs "
        "lead to each neuron, by pooling or stride before it or a smaller layer, since all that a neuron sums must "
        "meet on its core."
    )


def test_weights_wider_than_the_chip_has_them_fit_nowhere() -> None:
    with pytest.raises(DoesNotFit, match=r"connection input->dense1: synapse.weight_bits is 8, the limit .* at most 4"):
        place(dense(8, 4), changed(LOIHI1, synapse_weight_bits=[2, 4]))


def test_readouts_and_thresholds_count_as_configurations() -> None:
    first = Population("a", (12,), *map(np.asarray, (4095, 0)), 50 + np.arange(12), np.asarray(0))
    weights = [Connection(INPUT, "a", np.full((12, 3), 2)), Connection("a", "out", np.full((2, 12), 2))]
    network = IntegerNetwork((3,), (first, readout("out", (2,))), tuple(weights), "out")
    placement = place(network, LOIHI1)
    assert [part.size for _, part in placement.parts["a"]] == [8, 4]
    assert [core.load.counts["core.threshold_configs"] for core in placement.cores] == [8, 5]
