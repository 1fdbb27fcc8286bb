"""Data that is not part of the repository: tests that need it name it, and are skipped where it is absent."""

import pytest

from train.datasets.places import DEBIAN, data_root

NMNIST_SMALL = data_root() / "nmnist_small"
SPOKEN_DIGITS = data_root() / "fsdd_spikes40"
FASHION_MNIST = DEBIAN / "fashion-mnist"


def needs(folder):
    return pytest.mark.skipif(not folder.is_dir(), reason=f"needs {folder.name}, looked for in {folder.parent}")
