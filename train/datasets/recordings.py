"""What all data sets of events share: each recording is checked, pooled and cached in one form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from base.errors import UserError
from train.datasets.cache import Rows
from train.datasets.samples import Dataset, Samples
from train.events import Recordings, pooled

AXES = {3: ("p", "y", "x"), 1: ("channel",)}  # of a sensor [2, H, W] and of one [channels]
LONGEST_US = 2**32 - 1


def recording_rows(
    where: str,
    time: np.ndarray,
    place: Sequence[np.ndarray],
    sensor: tuple[int, ...],
    pool: int,
    label: int,
    test: bool,
) -> Rows:
    """One recording as rows of the cache.

    where: the file, for messages. time: [n] in microseconds, not decreasing. place: p, y and x, or channel, each [n].
    Raises UserError naming the event that lies outside the sensor or goes back in time.
    """
    time = np.asarray(time).astype(np.int64)
    columns = [np.asarray(column).astype(np.int64) for column in place]
    for axis, column, side in zip(AXES[len(sensor)], columns, sensor, strict=True):
        wrong = (column < 0) | (column >= side)
        if wrong.any():
            event = int(np.argmax(wrong))
            raise UserError(
                f"{where}: event {event} has {axis} = {column[event]}, expected 0..{side - 1} of a sensor "
                f"{' x '.join(map(str, sensor))}; the file is damaged or of another sensor"
            )
    back = np.diff(time) < 0
    if back.any():
        event = int(np.argmax(back)) + 1
        raise UserError(
            f"{where}: event {event} is at {time[event]} us, the one before it at {time[event - 1]} us; events must be "
            "in the order of time, so sort them or fetch the file again"
        )
    time = time - time[:1]
    if time[-1:].sum() > LONGEST_US:
        raise UserError(f"{where}: lasts {time[-1]} us, expected at most {LONGEST_US}; cut it into shorter recordings")
    address, shape = pooled(np.stack(columns, 1), sensor, pool)
    return {
        "time": time.astype(np.uint32),
        "address": address.astype(np.min_scalar_type(int(np.prod(shape)) - 1)),
        "count": np.array([len(time)], np.int64),
        "label": np.array([label], np.int64),
        "test": np.array([test], bool),
        "sensor": np.array([shape], np.int32),
    }


def from_rows(name: str, classes: int, rows: Rows, fingerprint: str) -> Dataset:
    """The data set of cached rows; its events are not read. classes: 0 for as many as there are labels."""
    counts = np.array(rows["count"])
    stops = np.cumsum(counts)
    sensor = tuple(int(side) for side in rows["sensor"][0])
    recordings = Recordings(rows["time"], rows["address"], stops - counts, stops, sensor)
    samples, test = Samples(recordings, np.array(rows["label"])), np.array(rows["test"])
    return Dataset(
        name,
        sensor,
        classes or int(samples.labels.max()) + 1,
        samples[np.flatnonzero(~test)],
        samples[np.flatnonzero(test)],
        None,
        fingerprint,
    )
