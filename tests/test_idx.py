"""MNIST's file format, from a folder or from Debian's package, and what is said when it is damaged or not there."""

import gzip
import struct
import sys

import numpy as np
import pytest
from shared_data import FASHION_MNIST, needs

from base.errors import UserError
from train.datasets import load
from train.datasets.images import read_idx

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 3, 4), np.uint8)
LABELS = (np.arange(24) % 10).astype(np.uint8)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    """Four idx files: 20 images for training, 4 for the test; the test part is compressed."""
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(IMAGES[:20]))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:20]))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES[20:])))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[20:])))
    return tmp_path


def loaded(folder, name="mnist"):
    return load(name, str(folder), str(folder / "cache"))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_images_and_labels_are_those_of_the_files(folder, name):
    dataset = loaded(folder, name)
    assert dataset.shape == (1, 3, 4)
    assert np.array_equal(dataset.train.values, IMAGES[:20, None])
    assert np.array_equal(dataset.test.values, IMAGES[20:, None])
    assert np.array_equal(dataset.train.labels, LABELS[:20])
    assert np.array_equal(dataset.test.labels, LABELS[20:])


@needs(FASHION_MNIST)
def test_debian_s_fashion_mnist_is_found_by_itself(tmp_path):
    dataset = load("fashion_mnist", cache=str(tmp_path), validation=0.1)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (54_000, 6_000, 10_000)
    assert np.bincount(dataset.validation.labels).tolist() == [600] * 10
    raw = gzip.decompress((FASHION_MNIST / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert dataset.test.values.tobytes() == raw[16:]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (idx(LABELS), r"begins with bytes \[0, 0, 8, 1\], expected \[0, 0, 8, 3\]"),
        (idx(IMAGES)[:-5], r"has 299 bytes, but its header says 24 x 3 x 4, which takes 304"),
        (idx(IMAGES) + b"x", "has 305 bytes"),
        (b"", "begins with bytes"),
    ],
)
def test_a_false_header_or_length_is_refused(folder, content, says):
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(UserError, match=rf"train-images-idx3-ubyte: {says}"):
        loaded(folder)


def test_a_damaged_compressed_file_is_refused(tmp_path):
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    for damaged in (gzip.compress(idx(IMAGES))[:-20], b"not gzip"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"\.gz: cannot be read"):
            read_idx(path, 3)


def test_labels_of_other_images_are_refused(folder):
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:19]))
    with pytest.raises(UserError, match="has 19 labels, but train-images-idx3-ubyte beside it 20 images"):
        loaded(folder)


def test_a_missing_file_is_named(folder, tmp_path):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="no t10k-labels-idx1-ubyte"):
        loaded(folder)
    with pytest.raises(UserError, match=r"no train-images-idx3-ubyte or \.gz of it in .*none; .*dataset-fashion-mnist"):
        load("fashion_mnist", str(tmp_path / "none"))


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_without_torchvision_a_download_is_refused_with_the_ways_out(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setenv("SPIKEPROOF_DATA", str(tmp_path))
    with pytest.raises(UserError, match=rf"'{name}': is not here, and torchvision.*data\.folder.*install torchvision"):
        load(name, cache=str(tmp_path / "cache"))
