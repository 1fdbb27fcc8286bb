"""Real data sets by name: images or recordings of events, split into training, validation and test part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from base.errors import UserError, nearest
from train.datasets import event_files, images, tonic_sets
from train.datasets.places import Places
from train.datasets.samples import Dataset, Samples, check, hold_out

__all__ = ["CACHE", "Dataset", "Samples", "check", "load"]

CACHE = "runs/.cache"


def load(name: str, folder: str = "", cache: str = CACHE, validation: float = 0.0, pool: int = 1) -> Dataset:
    """The data set of that name, checked.

    folder: where it is; empty for the usual places, see `train.datasets.places`, and a download where that can be had.
    cache: the folder for decoded data and downloads. validation: the share of the training part held out of it.
    pool: how many pixels (or channels) each way are summed into one; of events only.
    Raises UserError for an unknown name, a data set that is not there, a damaged file and options that do not fit.

    digits: the 1797 handwritten digits of 8 by 8 pixels that scikit-learn carries (UCI, Alpaydin and Kaynak 1998),
    shape (1, 8, 8), values in sixteenths; 360 of them, evenly over the classes, are held out for the test.
    mnist, fashion_mnist: four idx files; cifar10: through torchvision. These come with their own split.
    nmnist, nmnist_small, spoken_digits, events, spike_trains: see `train.datasets.event_files`.
    dvs_gesture, cifar10_dvs, shd: through tonic.
    """
    if name not in _LOADERS:
        raise UserError(f"unknown data set '{name}'; {nearest(name, _LOADERS)}")
    loader = _LOADERS[name]
    if pool != 1 and loader in _IMAGES:
        raise UserError(
            f"data.pool = {pool}: is for events, and '{name}' has images; use 1, and AP or SP in the network"
        )
    places = Places(Path(folder) if folder else None, Path(cache), pool)
    return check(hold_out(loader(places), validation))


_IMAGES = (images.digits, images.mnist, images.fashion_mnist, images.cifar10)
_EVENTS = (
    event_files.nmnist,
    event_files.nmnist_small,
    event_files.spoken_digits,
    event_files.events,
    event_files.spike_trains,
    tonic_sets.dvs_gesture,
    tonic_sets.cifar10_dvs,
    tonic_sets.shd,
)
_LOADERS: dict[str, Callable[[Places], Dataset]] = {loader.__name__: loader for loader in (*_IMAGES, *_EVENTS)}
