"""The summary of a network on a chip: JSON of everything, and the words that people read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_chip_placement import LOIHI1, changed, dense

from deploy import pictures
from deploy.chip import words
from deploy.chip.summary import summary
from quantize import engine


@pytest.fixture(scope="module")
def told() -> dict:
    """Of a network on 3 cores of 2 chips, with a recording."""
    network = dense(64, 200, 10, exponent=-3)
    inputs = (np.random.default_rng(0).random((6, 5, 64)) < 0.3).astype(np.uint8)
    return summary(network, changed(LOIHI1, core_neurons=80, chip_cores=2), engine.run(network, inputs, 2), inputs)


@pytest.mark.smoke
def test_everything_is_json_and_parts_fire_the_same_spikes(told: dict) -> None:
    assert json.loads(json.dumps(told))["fits"] is True
    assert (told["split"]["equal"], told["split"]["samples"]) == (True, 4)
    assert told["split"]["spikes_compared"] == 6 * 4 * 210
    placed = told["placement"]
    assert (placed["cores"], placed["chips"], placed["least_cores"]) == (3, 2, 3)
    assert sum(part["neurons"] for core in placed["utilisation"] for part in core["parts"]) == 210
    assert sum(amount for *_, amount in placed["messages"]) == pytest.approx(told["cost"]["events"]["messages"]["all"])
    assert sum(amount for *_, amount in placed["axons"]) == 200


def test_a_network_that_fits_nowhere_is_told_without_a_placement() -> None:
    told = summary(dense(5000, 4), LOIHI1)
    assert (told["fits"], told["placement"]) == (False, None)
    (sentence,) = words.sentences(told, "error")
    assert "core.input_axons is 5,000, the limit 4,096, 904 too many; let fewer inputs" in sentence
    assert words.report(told).startswith("Loihi 1: DOES NOT FIT; it has no place on any number of cores.")


def test_words_tell_verdict_rules_and_cores(told: dict) -> None:
    assert words.verdict(told) == "Loihi 1: fits, on 3 cores of 2 chips; by counting it takes at least 3."
    headings, rows = words.rules(told)
    assert all(len(row) == len(headings) for row in rows)
    assert ["neurons", "core 0", "80", "80", "ok", "given"] in rows
    headings, rows = words.cores(told)
    assert rows[2][:3] == ["2", "dense1 [160:200], dense2 [0:10]", "50 (62%)"]
    assert all(len(row) == len(headings) for row in rows)


@pytest.mark.parametrize("neurons", [3, 80])
def test_cores_and_traffic_are_drawn(told: dict, neurons: int) -> None:
    network = dense(8, 100, 10, exponent=-3)
    placed = summary(network, changed(LOIHI1, core_neurons=neurons, chip_cores=5))["placement"]
    for drawn in (pictures.cores(placed), pictures.traffic(placed["axons"], placed["cores"], "axons")):
        assert drawn.startswith("data:image/svg+xml;base64,")
    assert pictures.traffic([], 1, "axons")
