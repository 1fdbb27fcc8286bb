"""Data sets of images: the digits of scikit-learn, idx files (MNIST and Fashion-MNIST), and CIFAR-10."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import UserError
from train.datasets.cache import Rows, stored
from train.datasets.places import DEBIAN, Places, data_root, looked_at
from train.datasets.samples import SPLIT_SEED, Dataset, Samples

DIGITS_TEST_SIZE = 360
IDX_PARTS = {"train": False, "t10k": True}  # by the names of the files: whether it is the test part
IDX_UINT8 = 0x08


def digits(places: Places) -> Dataset:
    # Only this data set needs scikit-learn, which takes longer to import than the digits take to load.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    values = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    samples = Samples(values, labels.astype(np.int64))
    train, test = train_test_split(
        np.arange(len(labels)), test_size=DIGITS_TEST_SIZE, stratify=labels, random_state=SPLIT_SEED
    )
    return Dataset("digits", (1, 8, 8), 10, samples[train], samples[test])


def mnist(places: Places) -> Dataset:
    return _idx_set("mnist", "MNIST", places, "give the folder that has the four idx files as data.folder")


def fashion_mnist(places: Places) -> Dataset:
    ways = (
        "give the folder that has the four idx files as data.folder, or install Debian's package dataset-fashion-mnist"
    )
    return _idx_set("fashion_mnist", "FashionMNIST", places, ways)


def cifar10(places: Places) -> Dataset:
    """Through torchvision, from its folder cifar-10-batches-py or downloaded."""
    root = looked_at(places, [data_root() / "cifar10"])[0]
    if not (root / "cifar-10-batches-py").is_dir():
        if places.folder is not None:
            raise UserError(f"data set 'cifar10': no cifar-10-batches-py in {root}; set data.folder to where it is")
        root = places.downloads
        _download("cifar10", "CIFAR10", root, "give the folder that has cifar-10-batches-py as data.folder")

    def read() -> Iterator[Rows]:
        for train in (True, False):
            part = _torchvision("cifar10", "").CIFAR10(root, train=train)
            labels = np.array(part.targets, np.int64)
            yield {"values": part.data.transpose(0, 3, 1, 2), "label": labels, "test": np.full(len(labels), not train)}

    return _from_rows("cifar10", *stored(places.cache, "cifar10", [], (root / "cifar-10-batches-py").iterdir(), read))


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The array uint8 [..., `axes` axes] of an idx file, compressed by gzip or not.

    The format (LeCun's page on MNIST): two bytes 0, the type (8: unsigned byte), the number of axes, the length of each
    as 32-bit big-endian number, the bytes. Raises UserError for a file that is anything else.
    """
    try:
        content = path.read_bytes()
        data = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch it again") from error
    start = 4 + 4 * axes
    if len(data) < start or data[:4] != bytes([0, 0, IDX_UINT8, axes]):
        raise UserError(
            f"{path}: begins with bytes {list(data[:4])}, expected [0, 0, {IDX_UINT8}, {axes}], an idx file of bytes "
            f"with {axes} axes; give the original file"
        )
    shape = tuple(int(side) for side in np.frombuffer(data, ">u4", axes, 4))
    expected = start + int(np.prod(shape, dtype=np.int64))
    if len(data) != expected:
        raise UserError(
            f"{path}: has {len(data)} bytes, but its header says {' x '.join(map(str, shape))}, which takes "
            f"{expected}; it is cut or foreign, so fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _idx_set(name: str, class_name: str, places: Places, ways: str) -> Dataset:
    usual = [DEBIAN / name.replace("_", "-"), places.downloads / class_name / "raw"]
    folders = looked_at(places, [data_root() / name, *usual])
    found = next((folder for folder in folders if _idx_file(folder, "train-images-idx3-ubyte")), None)
    if found is None and places.folder is None:
        where = ", ".join(map(str, folders))
        _download(
            name, class_name, places.downloads, f"{ways} (looked for train-images-idx3-ubyte, .gz or not, in {where})"
        )
        found = usual[-1]
    if found is None:
        raise UserError(f"data set '{name}': no train-images-idx3-ubyte or .gz of it in {folders[0]}; {ways}")
    files = {
        (part, kind): _idx_file(found, f"{part}-{kind}-ubyte")
        for part in IDX_PARTS
        for kind in ("images-idx3", "labels-idx1")
    }
    for (part, kind), file in files.items():
        if file is None:
            raise UserError(
                f"data set '{name}': no {part}-{kind}-ubyte or .gz of it in {found}, beside the others; add it"
            )
    sources = {key: file for key, file in files.items() if file is not None}

    def read() -> Iterator[Rows]:
        for part, test in IDX_PARTS.items():
            image_file, label_file = sources[part, "images-idx3"], sources[part, "labels-idx1"]
            images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
            if len(images) != len(labels):
                raise UserError(
                    f"{label_file}: has {len(labels)} labels, but {image_file.name} beside it {len(images)} images; "
                    "they do not belong together, so fetch both again"
                )
            yield {"values": images[:, None], "label": labels.astype(np.int64), "test": np.full(len(labels), test)}

    return _from_rows(name, *stored(places.cache, name, [], sources.values(), read))


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _from_rows(name: str, rows: Rows, fingerprint: str) -> Dataset:
    """Training rows come first, so that both parts are slices, which are not read before they are needed."""
    number = int(np.count_nonzero(~rows["test"]))
    samples = Samples(rows["values"], np.array(rows["label"]))
    return Dataset(
        name, rows["values"].shape[1:], 10, samples[slice(number)], samples[slice(number, None)], None, fingerprint
    )


def _download(name: str, class_name: str, root: Path, ways: str) -> None:
    try:
        getattr(_torchvision(name, ways), class_name)(root, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data set '{name}': torchvision cannot download it ({reason}); {ways}, or get a network"
        ) from error


def _torchvision(name: str, ways: str) -> Any:
    try:
        import torchvision.datasets
    except ImportError as error:
        raise UserError(
            f"data set '{name}': is not here, and torchvision, which downloads it, is not installed; {ways}, or "
            "install torchvision (pip install 'spikeproof[torchvision]')"
        ) from error
    return torchvision.datasets
