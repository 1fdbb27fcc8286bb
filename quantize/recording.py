"""What a run emitted: every population's spikes and, for the first samples on request, the traces of u and v."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from quantize import archive
from quantize.integer_network import IntegerNetwork

FORMAT = "spikeproof-recording"
FORMAT_VERSION = 1

Traces = dict[str, np.ndarray]
TRACES = ("spikes", "u", "v")


@dataclass(frozen=True, eq=False)
class Recording:
    """spikes: uint8 [T, B, *shape] per population; of a readout without neurons, its current in state units, int32.
    u, v after reset: int32 [T, b, *shape] of the first b <= B samples, of populations with neurons.

    Steps are layer time: step t of a population has seen step t of the input. `network` and `inputs` are the hashes of
    what was run, `backend` the name of who ran it.
    """

    backend: str
    network: str
    inputs: str
    spikes: Traces
    u: Traces = field(default_factory=dict)
    v: Traces = field(default_factory=dict)

    @property
    def spiking(self) -> list[str]:
        """Names of the populations that fire; the others are readouts."""
        return [name for name, raster in self.spikes.items() if raster.dtype == np.uint8]

    @property
    def steps(self) -> int:
        return next(iter(self.spikes.values())).shape[0]

    @property
    def samples(self) -> int:
        return next(iter(self.spikes.values())).shape[1]

    @cached_property
    def hash(self) -> str:
        """SHA-256 over all that was recorded; two backends that agree have the same."""
        header, arrays = _pack(self)
        return archive.content_hash(header | {"backend": ""}, arrays)


def hash_of(array: np.ndarray) -> str:
    """SHA-256 of an array's type, shape and bytes; names the inputs of a run."""
    digest = hashlib.sha256(f"{array.dtype.str}:{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def predictions(recording: Recording, network: IntegerNetwork) -> np.ndarray:
    """Class per sample, int64 [B], as the host reads the network's output [T, B, C] from a recording, also of the float
    network: the largest sum over time wins, of time-weighted steps if the network has weights; the lowest among equals.

    Of integers every sum is exact, so that whoever sums in whatever order predicts the same.
    """
    output = recording.spikes[network.output]
    output = output.astype(np.float64 if output.dtype.kind == "f" else np.int64)
    weights = network.time_weights
    sums = output.sum(axis=0) if weights is None else np.tensordot(weights.astype(output.dtype), output, axes=1)
    return sums.argmax(axis=-1)


def save(recording: Recording, path: Path) -> None:
    """Write the recording as one `.npz` (see `quantize/archive.py`)."""
    archive.write(path, *_pack(recording))


def load(path: Path) -> Recording:
    """Read a recording that `save` wrote. Raises UserError for a file that is missing, cut, foreign or was changed."""
    header, arrays = archive.read(path, FORMAT, FORMAT_VERSION, "deploy")
    try:
        traces: dict[str, Traces] = {kind: {} for kind in TRACES}
        for name, array in arrays.items():
            kind, population = name.split("/", 1)
            traces[kind][population] = array
        return Recording(header["backend"], header["network"], header["inputs"], **traces)
    except (KeyError, ValueError) as error:
        raise archive.malformed(path, FORMAT, error) from error


def _pack(recording: Recording) -> tuple[archive.Header, archive.Arrays]:
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "backend": recording.backend,
        "network": recording.network,
        "inputs": recording.inputs,
    }
    arrays = {f"{kind}/{name}": array for kind in TRACES for name, array in getattr(recording, kind).items()}
    return header, arrays
