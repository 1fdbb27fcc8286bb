"""Data sets of events that tonic downloads and reads: DVS Gesture, CIFAR10-DVS and the Spiking Heidelberg Digits.

tonic is under the GPL and therefore never required: it is imported only when one of these is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import UserError
from train.datasets.cache import Rows, stored
from train.datasets.places import Places
from train.datasets.recordings import from_rows, recording_rows
from train.datasets.samples import SPLIT_SEED, Dataset

CAMERA, COCHLEA = (2, 128, 128), (700,)
CIFAR10_DVS_TEST_SHARE = 10  # one in ten of each class: the set comes without a split of its own


def dvs_gesture(places: Places) -> Dataset:
    return _with_split("dvs_gesture", "DVSGesture", CAMERA, 11, places)


def shd(places: Places) -> Dataset:
    return _with_split("shd", "SHD", COCHLEA, 20, places)


def cifar10_dvs(places: Places) -> Dataset:
    everything = _open("cifar10_dvs", "CIFAR10DVS", places)
    labels = np.array(everything.targets)
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        of_class = np.random.default_rng((SPLIT_SEED, label)).permutation(np.flatnonzero(labels == label))
        test[of_class[: len(of_class) // CIFAR10_DVS_TEST_SHARE]] = True

    return _dataset("cifar10_dvs", CAMERA, 10, places, [(everything, test)])


def _with_split(name: str, class_name: str, sensor: tuple[int, ...], classes: int, places: Places) -> Dataset:
    parts = [_open(name, class_name, places, train=train) for train in (True, False)]
    tests = [np.full(len(part), test) for part, test in zip(parts, (False, True), strict=True)]
    return _dataset(name, sensor, classes, places, list(zip(parts, tests, strict=True)))


def _dataset(
    name: str, sensor: tuple[int, ...], classes: int, places: Places, parts: list[tuple[Any, np.ndarray]]
) -> Dataset:
    def read() -> Iterator[Rows]:
        for part, tests in parts:
            for k, test in enumerate(tests):
                events, label = part[k]
                events = events[np.argsort(events["t"], kind="stable")]  # these formats promise no order
                place = [events[axis] for axis in ("p", "y", "x")] if len(sensor) == 3 else [events["x"]]
                where = f"{name}, {'test' if test else 'training'} part: recording {k}"
                yield recording_rows(where, events["t"], place, sensor, places.pool, int(label), bool(test))

    sources = [file for part, _ in parts for file in Path(part.location_on_system).rglob("*") if file.is_file()]
    return from_rows(name, classes, *stored(places.cache, name, [places.pool], set(sources), read))


def _open(name: str, class_name: str, places: Places, **options: bool) -> Any:
    try:
        from tonic import datasets
    except ImportError as error:
        raise UserError(
            f"data set '{name}': is read through tonic, which is not installed; install it (pip install "
            "'spikeproof[tonic]', GPL) or write the events as an archive, the format 'events' or 'spike_trains'"
        ) from error
    root = places.folder or places.downloads
    try:
        return getattr(datasets, class_name)(str(root), **options)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"data set '{name}': tonic finds no {class_name} in {root} and cannot download it ({error}); set "
            f"data.folder to the folder that has {class_name}, or get a network"
        ) from error
