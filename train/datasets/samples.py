"""A data set as plain data, split into training, validation and test part, and the check every one passes first."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from base.errors import UserError
from train.events import Recordings

SPLIT_SEED = 1797  # part of the data set, not of a run: every run is judged on the same samples


@dataclass(frozen=True)
class Samples:
    """values: images [N, *shape], float32 in 0..1 or uint8 of 255ths, or N recordings; labels: int64 [N]."""

    values: np.ndarray | Recordings
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, chosen: np.ndarray | slice) -> Samples:
        return Samples(self.values[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Dataset:
    """Samples of one `shape` (without the sample axis), with labels 0..classes - 1.

    validation: drawn from the training part, to choose by; nothing is chosen on the test part. fingerprint: stands for
    the content of what is too large to be read for it; empty where the arrays are small.
    """

    name: str
    shape: tuple[int, ...]
    classes: int
    train: Samples
    test: Samples
    validation: Samples | None = None
    fingerprint: str = ""


def hold_out(dataset: Dataset, share: float) -> Dataset:
    """The data set with that share of each class of the training part, at least one sample, as validation part.

    Always the same samples for the same share. Raises UserError for a share outside 0 (none) to below 1, or one that
    leaves nothing of a class to train on.
    """
    if not 0 <= share < 1:
        raise UserError(f"data.validation = {share}: the share of the training part held out must be in 0 to below 1")
    if share == 0:
        return dataset
    labels = dataset.train.labels
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        number = max(1, round(share * len(places)))
        if number == len(places):
            raise UserError(
                f"data.validation = {share} takes all {number} training samples of label {label} of '{dataset.name}'; "
                "choose a smaller share"
            )
        held[np.random.default_rng((SPLIT_SEED, label)).permutation(places)[:number]] = True
    train, validation = np.flatnonzero(~held), np.flatnonzero(held)
    return replace(dataset, train=dataset.train[train], validation=dataset.train[validation])


def check(dataset: Dataset) -> Dataset:
    """The data set itself, if it can be trained on; otherwise UserError naming the part, the position and the value."""
    parts = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test}
    for part, samples in parts.items():
        if samples is not None:
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
    if isinstance(values, np.ndarray):
        _check_values(where, values)
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{where}: labels are {labels.dtype}, expected int64; convert them with astype(np.int64)")
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise UserError(
            f"{where}: label {labels[place]} at [{place}]; expected 0..{classes - 1}, so count labels from 0"
        )


def _check_values(where: str, values: np.ndarray) -> None:
    if values.dtype == np.uint8:
        return
    if values.dtype != np.float32:
        raise UserError(f"{where}: values are {values.dtype}, expected float32; convert them with astype(np.float32)")
    wrong = ~((values >= 0) & (values <= 1))  # written so that NaN is wrong too
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise UserError(
            f"{where}: value {values[index]} at {list(index)}; expected a number in 0..1, so scale or clean it"
        )
