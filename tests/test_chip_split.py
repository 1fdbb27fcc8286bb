"""A network cut over cores and chips is an integer network that fires the whole one's spikes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from strategies import networks
from test_chip_placement import LOIHI1, changed, dense, small_chips

from base.errors import UserError
from deploy.chip.limits import Chip
from deploy.chip.placement import place
from deploy.chip.split import split
from deploy.verify import compare
from quantize import engine, reference
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population


def assert_equal(network: IntegerNetwork, chip: Chip, inputs: np.ndarray) -> IntegerNetwork:
    parts = split(network, place(network, chip))
    whole, cut = engine.run(network, inputs), engine.run(parts, inputs)
    of_whole = replace(cut, network=whole.network, spikes={name: cut.spikes[name] for name in network.order})
    assert compare(whole, of_whole, network.order).equal
    return parts


@settings(max_examples=100, deadline=None)
@given(networks(cycles=True, readouts=True), small_chips())
def test_parts_fire_what_the_whole_fires(drawn: tuple[IntegerNetwork, np.ndarray], chip: Chip) -> None:
    network, inputs = drawn
    try:
        place(network, chip)
    except UserError:
        assume(False)
    assert_equal(network, chip, inputs)


@pytest.mark.smoke
def test_each_part_is_a_population_and_relays_tell_the_whole() -> None:
    network = dense(64, 300, 10, exponent=-3)
    inputs = (np.random.default_rng(1).random((8, 5, 64)) < 0.3).astype(np.uint8)
    parts = assert_equal(network, changed(LOIHI1, core_neurons=128), inputs)
    assert [p.name for p in parts.populations] == ["dense1", "dense1#0", "dense1#1", "dense1#2", "dense2"]
    assert engine.run(parts, inputs).hash == reference.run(parts, inputs).hash


@pytest.mark.parametrize(
    "geometry",
    [
        {"padding": (1, 1)},
        {"stride": (2, 2), "padding": (2, 0)},
        {"dilation": (2, 3), "padding": (2, 3)},
        {"groups": 3, "stride": (1, 2)},
    ],
)
def test_a_map_is_cut_by_channels_rows_and_columns(geometry: dict[str, object]) -> None:
    random = np.random.default_rng(2)
    kernel = 2 * random.integers(-128, 128, (6, 6 // geometry.get("groups", 1), 3, 3))  # type: ignore[operator]
    connection = Connection(INPUT, "map", kernel, -3, **geometry)  # type: ignore[arg-type]
    shape = connection.output_shape((6, 9, 11))
    neurons = Population("map", shape, *map(np.asarray, (4095, 410)), random.integers(50, 90, shape), np.asarray(3))
    back = Connection("map", "map", 2 * random.integers(-128, 128, (6, 6, 1, 1)), -3, delay=1)
    network = IntegerNetwork((6, 9, 11), (neurons,), (connection, back), "map")
    chip = changed(LOIHI1, core_neurons=40, core_input_axons=120, core_threshold_configs=1000)
    inputs = (random.random((6, 2, 6, 9, 11)) < 0.4).astype(np.uint8)
    parts = assert_equal(network, chip, inputs)
    assert len(parts.populations) > 5
    assert 0 < engine.run(parts, inputs).spikes["map"].mean() < 1
