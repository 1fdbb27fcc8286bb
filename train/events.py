"""Recordings of events, and how they become frames: so many events a pixel and frame, small unsigned integers.

An event is a time in microseconds and an address: its place in the sensor [2, H, W] (polarity, row, column) or
[channels], flattened. Recordings share one long array of each, which may be a file mapped into memory: only what is
asked for is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from base.errors import UserError

BINS = ("duration", "count", "window")


@dataclass(frozen=True, eq=False)
class Recordings:
    """N recordings, each ordered by time.

    time, address: unsigned [E], of the events of all of them, one recording after the other, time counted from the
    first event of each; starts, stops: int64 [N], where each has its events; sensor: shape of one frame. Indexing
    chooses recordings and reads no event.
    """

    time: np.ndarray
    address: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    sensor: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, chosen: Any) -> Recordings:
        return replace(self, starts=self.starts[chosen], stops=self.stops[chosen])

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Time and address, int64 [n], of each recording."""
        for start, stop in zip(self.starts.tolist(), self.stops.tolist(), strict=True):
            yield self.time[start:stop].astype(np.int64), self.address[start:stop].astype(np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, *sensor], as an array of samples would have it."""
        return (len(self), *self.sensor)


def frames(
    time: np.ndarray, address: np.ndarray, sensor: tuple[int, ...], steps: int, bins: str, window_us: int, most: int
) -> np.ndarray:
    """Events of one recording counted into frames uint8 [steps, *sensor]; a count above `most` becomes `most`.

    time, address: int64 [n], ordered by time, which starts at 0. bins tells how the recording is cut: "duration" into
    `steps` equal slices of the time from its first to its last event, "count" into `steps` runs of equally many events
    (where they do not divide, of one more or less), "window" into slices of window_us from the first event, what comes
    after the last of them being left out.
    """
    if bins == "duration":
        frame = time * steps // (time[-1:].sum() + 1)
    elif bins == "count":
        frame = np.arange(len(time)) * steps // max(len(time), 1)
    else:
        frame = time // window_us
    inside = frame < steps
    size = int(np.prod(sensor))
    counts = np.bincount(frame[inside] * size + address[inside], minlength=steps * size)
    return np.minimum(counts, most).astype(np.uint8).reshape(steps, *sensor)


def pooled(places: np.ndarray, sensor: tuple[int, ...], pool: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Addresses int64 [n] and the shape of the sensor after summing windows of pool by pool pixels (pool channels).

    places: int64 [n, len(sensor)], where each event is. To move events and then count them is to sum counts.
    Raises UserError for a pool that does not divide the sensor.
    """
    first = max(len(sensor) - 2, 0)  # polarity is not pooled
    sides = sensor[first:]
    if pool < 1 or any(side % pool for side in sides):
        raise UserError(
            f"data.pool = {pool}: must be a whole number from 1 that divides the sensor's "
            f"{' x '.join(map(str, sides))}; choose 1 for no pooling"
        )
    factors = np.array([1] * first + [pool] * len(sides))
    shape = tuple(int(side) for side in np.array(sensor) // factors)
    return np.ravel_multi_index(tuple((places // factors).T), shape).astype(np.int64), shape
