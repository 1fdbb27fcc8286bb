"""Real data sets as plain arrays, split into a training and a test part, and the check every data set passes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from base.errors import UserError, nearest

DIGITS_TEST_SIZE = 360
DIGITS_SPLIT_SEED = 1797  # part of the data set, not of a run: every run is judged on the same 360 images


@dataclass(frozen=True)
class Samples:
    """values: float32 [N, *shape] in 0..1; labels: int64 [N]."""

    values: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Dataset:
    """Training and test samples of one `shape` (without the sample axis), with labels 0..classes - 1."""

    name: str
    shape: tuple[int, ...]
    classes: int
    train: Samples
    test: Samples


def load(name: str) -> Dataset:
    """The data set of that name, checked. Raises UserError for an unknown name.

    "digits": the 1797 handwritten digits of 8 by 8 pixels that scikit-learn carries (UCI, Alpaydin and Kaynak 1998),
    shape (1, 8, 8), values in sixteenths; 360 of them, evenly over the classes, are held out for the test.
    """
    if name not in _LOADERS:
        raise UserError(f"unknown data set '{name}'; {nearest(name, _LOADERS)}")
    return check(_LOADERS[name]())


def check(dataset: Dataset) -> Dataset:
    """The data set itself, if it can be trained on; otherwise UserError naming the part, the position and the value."""
    for part, samples in (("training", dataset.train), ("test", dataset.test)):
        _check_part(f"{part} part of data set '{dataset.name}'", samples, dataset.shape, dataset.classes)
    missing = np.setdiff1d(np.arange(dataset.classes), dataset.train.labels)
    if missing.size:
        raise UserError(
            f"training part of data set '{dataset.name}': no sample has label {missing[0]}; each of the "
            f"{dataset.classes} classes needs at least one, so add samples or lower the number of classes"
        )
    return dataset


def _check_part(where: str, samples: Samples, shape: tuple[int, ...], classes: int) -> None:
    values, labels = samples.values, samples.labels
    if len(values) == 0:
        raise UserError(f"{where}: is empty; at least one sample is needed")
    if values.shape[1:] != shape:
        raise UserError(
            f"{where}: samples have shape {values.shape[1:]}, but the data set says {shape}; make them equal"
        )
    if labels.shape != (len(values),):
        raise UserError(f"{where}: {len(values)} samples but labels of shape {labels.shape}; give one label per sample")
    if values.dtype != np.float32:
        raise UserError(f"{where}: values are {values.dtype}, expected float32; convert them with astype(np.float32)")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{where}: labels are {labels.dtype}, expected int64; convert them with astype(np.int64)")
    wrong = ~((values >= 0) & (values <= 1))  # written so that NaN is wrong too
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise UserError(
            f"{where}: value {values[index]} at {list(index)}; expected a number in 0..1, so scale or clean it"
        )
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise UserError(
            f"{where}: label {labels[place]} at [{place}]; expected 0..{classes - 1}, so count labels from 0"
        )


def _digits() -> Dataset:
    # Only this data set needs scikit-learn, which takes longer to import than the digits take to load.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    values = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    labels = labels.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=DIGITS_TEST_SIZE, stratify=labels, random_state=DIGITS_SPLIT_SEED
    )
    return Dataset("digits", (1, 8, 8), 10, Samples(values[train], labels[train]), Samples(values[test], labels[test]))


_LOADERS: dict[str, Callable[[], Dataset]] = {"digits": _digits}
