"""The encoded held-out samples as a file: what every backend runs, so that none of them needs torch or the data set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from quantize import archive
from quantize.recording import hash_of

FORMAT = "spikeproof-inputs"
FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class HeldOut:
    """inputs: [T, B, *input_shape], already encoded: uint8, or int16 where they are biases. labels: int64 [B]."""

    inputs: np.ndarray
    labels: np.ndarray

    @cached_property
    def hash(self) -> str:
        return hash_of(self.inputs)

    def first(self, samples: int) -> HeldOut:
        """The first so many samples; all of them for 0."""
        stop = samples or len(self.labels)
        return HeldOut(np.ascontiguousarray(self.inputs[:, :stop]), self.labels[:stop])


def save(held_out: HeldOut, path: Path) -> None:
    header = {"format": FORMAT, "version": FORMAT_VERSION}
    archive.write(path, header, {"inputs": held_out.inputs, "labels": held_out.labels})


def load(path: Path) -> HeldOut:
    """Read what `save` wrote. Raises UserError for a file that is missing, cut, foreign or was changed."""
    _, arrays = archive.read(path, FORMAT, FORMAT_VERSION, "quantize")
    try:
        return HeldOut(arrays["inputs"], arrays["labels"])
    except KeyError as error:
        raise archive.malformed(path, FORMAT, error) from error
