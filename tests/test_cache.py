"""What is decoded once is mapped into memory afterwards, unless its sources or the cache itself have changed."""

import json
import os

import numpy as np
import pytest

from train.datasets.cache import stored

PIECES = [
    {"values": np.arange(12, dtype=np.uint8).reshape(3, 4), "label": np.array([1, 2, 3])},
    {"values": np.full((2, 4), 7, np.uint8), "label": np.array([4, 5])},
]


@pytest.fixture
def made(tmp_path):
    """A way to ask for the arrays, and how often they were read so far."""
    source = tmp_path / "source"
    source.write_text("one")
    calls = []

    def read():
        calls.append(1)
        yield from PIECES

    def ask(options=(1,)):
        return stored(tmp_path / "cache", "mine", options, [source], read)

    return ask, calls, source


def place(tmp_path):
    return next((tmp_path / "cache").iterdir())


def check(rows):
    for name in ("values", "label"):
        assert isinstance(rows[name], np.memmap)
        assert rows[name].dtype == PIECES[0][name].dtype
        assert np.array_equal(rows[name], np.concatenate([piece[name] for piece in PIECES]))


def test_the_arrays_are_read_once_and_then_mapped(made):
    ask, calls, _ = made
    first, again = ask(), ask()
    check(first[0])
    check(again[0])
    assert first[1] == again[1]
    assert len(calls) == 1


def test_other_options_are_kept_apart(made, tmp_path):
    ask, calls, _ = made
    assert ask((1,))[1] != ask((2,))[1]
    ask((1,))
    assert len(calls) == len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("change", ["length", "time"])
def test_a_changed_source_is_read_again(made, change):
    ask, calls, source = made
    _, before = ask()
    if change == "length":
        source.write_text("three")
    else:
        os.utime(source, ns=(1, 1))
    rows, after = ask()
    check(rows)
    assert (before == after, len(calls)) == (False, 2)


@pytest.mark.parametrize("harm", ["cut", "gone", "no contents", "broken contents", "no array"])
def test_a_cache_that_is_not_whole_is_made_again(made, tmp_path, harm):
    ask, calls, _ = made
    ask()
    folder = place(tmp_path)
    values, contents = folder / "values.npy", folder / "contents.json"
    if harm == "cut":
        values.write_bytes(values.read_bytes()[:-1])
    elif harm == "gone":
        values.unlink()
    elif harm == "no array":
        values.write_bytes(b"x" * values.stat().st_size)
    elif harm == "no contents":
        contents.unlink()
    else:
        contents.write_text(json.dumps({"files": {}})[:-4])
    check(ask()[0])
    assert len(calls) == 2


def test_a_reading_that_was_stopped_leaves_nothing_to_be_taken_for_whole(tmp_path):
    class Killed(Exception):
        pass

    def stopped():
        yield PIECES[0]
        raise Killed

    with pytest.raises(Killed):
        stored(tmp_path / "cache", "mine", [], [], stopped)
    assert list(place(tmp_path).iterdir()) == []
    check(stored(tmp_path / "cache", "mine", [], [], lambda: PIECES)[0])
