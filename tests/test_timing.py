"""Ratios are taken within rounds, and a regression is what no spread explains."""

import json

import pytest

from benchmarks.compare import slower
from benchmarks.timing import Ratio, interleaved, ratio, write


def test_works_take_turns_and_the_first_round_is_not_counted():
    order = []
    ticks = iter(range(100))
    times = interleaved(2, {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, lambda: next(ticks))
    assert order == ["a", "b"] * 3
    assert {name: len(found) for name, found in times.items()} == {"a": 2, "b": 2}


def test_a_round_in_which_the_machine_was_slow_does_not_change_the_ratio():
    assert ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == Ratio(2.0, (2.0, 2.0))


@pytest.mark.parametrize(
    ("new", "named"),
    [
        (Ratio(1.2, (1.15, 1.3)), True),
        (Ratio(1.2, (1.05, 1.3)), False),  # the spreads meet
        (Ratio(1.04, (1.03, 1.05)), False),
        (Ratio(0.8, (0.7, 0.9)), False),
        (None, True),
    ],
)
@pytest.mark.parametrize("lower_is_better", [True, False])
def test_what_is_named_is_worse_by_more_than_the_spread(tmp_path, new, named, lower_is_better):
    def kept(name, found):
        if found is not None and not lower_is_better:  # samples a second are better the other way round
            found = Ratio(1 / found.ratio, (1 / found.spread[1], 1 / found.spread[0]), False)
        write(tmp_path / name, "a command", {} if found is None else {"case": found})
        return json.loads((tmp_path / name).read_text())

    sentences = slower(kept("old.json", Ratio(1.0, (0.98, 1.02 if named else 1.1))), kept("new.json", new))
    assert [sentence.split(":")[0] for sentence in sentences] == (["case"] if named else [])
