"""Data sets of events in files that are read here: N-MNIST's .bin files and event archives (.npz).

Two archives anyone can write hold the events of all recordings, one recording after the other, in the order of time:

    events.npz        t (microseconds), x, y, p (0 or 1): [E]; shape: [2, H, W]
    spike_trains.npz  t (microseconds), channel: [E]; shape: [channels]
    both              offsets: [N + 1], recording k being events offsets[k] to offsets[k + 1] - 1;
                      labels: [N], from 0 on; test: bool [N], whether it is of the test part
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from base.errors import UserError
from train.datasets.cache import Rows, stored
from train.datasets.places import Places, data_root, find
from train.datasets.recordings import AXES, from_rows, recording_rows
from train.datasets.samples import Dataset

NMNIST_SENSOR = (2, 34, 34)
EVENT_BYTES = 5
SPOKEN_SENSOR, SPOKEN_STEP_US = (40,), 250

Archive = dict[str, np.ndarray]


def nmnist(places: Places) -> Dataset:
    """Train/<digit>/<number>.bin and Test/<digit>/<number>.bin, as published (Orchard et al. 2015)."""
    folder = find("nmnist", places, "Train")
    files = {part: sorted((folder / part).glob("[0-9]/*.bin")) for part in ("Train", "Test")}
    for part, found in files.items():
        if not found:
            raise UserError(f"data set 'nmnist': no {part}/<digit>/<number>.bin in {folder}; add that part of the set")

    def read() -> Iterator[Rows]:
        for part, found in files.items():
            for file in found:
                time, x, y, p = read_bin(file)
                label = int(file.parent.name)
                yield recording_rows(str(file), time, (p, y, x), NMNIST_SENSOR, places.pool, label, part == "Test")

    sources = [file for found in files.values() for file in found]
    return from_rows("nmnist", 10, *stored(places.cache, "nmnist", [places.pool], sources, read))


def read_bin(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Time in microseconds, x, y and polarity, int64 [n] each, of a .bin file.

    An event is five bytes: x, y, then 24 bits, big endian: one of polarity and 23 of time. That time would wrap after
    8.4 s; a recording lasts a third of a second. Raises UserError for a file cut within an event.
    """
    data = np.fromfile(path, np.uint8)
    if len(data) % EVENT_BYTES:
        raise UserError(
            f"{path}: has {len(data)} bytes and ends {len(data) % EVENT_BYTES} bytes into event "
            f"{len(data) // EVENT_BYTES}; expected {EVENT_BYTES} bytes an event, so the file is cut: fetch it again"
        )
    x, y, high, middle, low = data.reshape(-1, EVENT_BYTES).T.astype(np.int64)
    return (high & 0x7F) << 16 | middle << 8 | low, x, y, high >> 7


def nmnist_small(places: Places) -> Dataset:
    """1,000 + 100 recordings of N-MNIST in one archive: `dt` in microseconds, polarities packed eight to a byte."""

    def convert(stored: Archive) -> Archive:
        number = int(stored["offsets"][-1])
        return {
            "t": _since_start(stored["dt"], stored["offsets"]),
            "x": stored["x"],
            "y": stored["y"],
            "p": np.unpackbits(stored["p"])[:number],
            "offsets": stored["offsets"],
            "labels": stored["label"],
            "test": stored["test"],
            "shape": np.array(NMNIST_SENSOR),
        }

    return _from_archive("nmnist_small", "nmnist_small.npz", ("dt", "x", "y", "p", "label"), places, 10, convert)


def spoken_digits(places: Places) -> Dataset:
    """600 + 300 spoken digits through a model of the cochlea with 40 channels, `dt` in quarters of a millisecond."""

    def convert(stored: Archive) -> Archive:
        return {
            "t": _since_start(stored["dt"], stored["offsets"]) * SPOKEN_STEP_US,
            "channel": stored["channel"],
            "offsets": stored["offsets"],
            "labels": stored["label"],
            "test": stored["test"],
            "shape": np.array(SPOKEN_SENSOR),
        }

    return _from_archive("spoken_digits", "fsdd_spikes40.npz", ("dt", "channel", "label"), places, 10, convert)


def events(places: Places) -> Dataset:
    return _from_archive("events", "events.npz", ("t", "x", "y", "p", "labels", "shape"), places, 0, dict)


def spike_trains(places: Places) -> Dataset:
    return _from_archive("spike_trains", "spike_trains.npz", ("t", "channel", "labels", "shape"), places, 0, dict)


def _from_archive(
    name: str,
    file: str,
    needs: tuple[str, ...],
    places: Places,
    classes: int,
    convert: Callable[[Archive], Archive],
) -> Dataset:
    path = find(name, places, file, [data_root() / Path(file).stem]) / file

    def read() -> Iterator[Rows]:
        return _recordings(path, convert(_read_archive(path, (*needs, "offsets", "test"))), places.pool)

    return from_rows(name, classes, *stored(places.cache, name, [places.pool], [path], read))


def _read_archive(path: Path, needs: tuple[str, ...]) -> Archive:
    try:
        with open(path, "rb") as file, np.load(file) as archive:
            missing = [name for name in needs if name not in archive.files]
            if missing:
                raise UserError(
                    f"{path}: has no array '{missing[0]}', only {', '.join(archive.files)}; the format is told in "
                    "train/datasets/event_files.py"
                )
            arrays = {name: archive[name] for name in needs}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is no whole .npz archive ({error}); write or fetch it again") from error
    return arrays


def _recordings(path: Path, arrays: Archive, pool: int) -> Iterator[Rows]:
    sensor = tuple(int(side) for side in arrays["shape"])
    if len(sensor) not in AXES:
        raise UserError(f"{path}: shape is {list(sensor)}; expected [2, H, W] of a camera or [channels]")
    time, offsets, labels, test = (arrays[name] for name in ("t", "offsets", "labels", "test"))
    columns = [arrays[axis] for axis in AXES[len(sensor)]]
    if len(offsets) < 2 or offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != len(time):
        raise UserError(
            f"{path}: offsets must rise from 0 to the number of events, {len(time)}; they go from {offsets[:1]} to "
            f"{offsets[-1:]}, so count them anew"
        )
    for what, array, expected in (
        ("labels", labels, len(offsets) - 1), ("test", test, len(offsets) - 1),
        *((axis, column, len(time)) for axis, column in zip(AXES[len(sensor)], columns, strict=True)),
    ):  # fmt: skip
        if array.shape != (expected,):
            raise UserError(
                f"{path}: {what} has shape {list(array.shape)}, expected [{expected}], one each; complete it"
            )
    for k, (start, stop) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        part = slice(start, stop)
        where, place = f"{path}: recording {k}", [column[part] for column in columns]
        yield recording_rows(where, time[part], place, sensor, pool, int(labels[k]), bool(test[k]))


def _since_start(steps: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Time int64 [E] since the start of each recording, of the time since the event before."""
    total = np.cumsum(steps, dtype=np.int64)
    before = np.concatenate([[0], total])[offsets[:-1]]
    return total - np.repeat(before, np.diff(offsets))
