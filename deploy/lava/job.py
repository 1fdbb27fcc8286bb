"""A job is a folder: the inputs go in as a file, the recordings come out as files, and both sides map them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deploy.lava.graph import Files, Schedule, recorded_kinds
from quantize.arithmetic import readout_current
from quantize.integer_network import IntegerNetwork
from quantize.recording import TRACES, Recording, Traces, hash_of


def prepare(folder: Path, network: IntegerNetwork, inputs: np.ndarray, schedule: Schedule) -> None:
    """Write checked inputs [T, B, *input_shape] and the empty recordings [T, B, neurons] that a plan will fill."""
    files, (steps, samples) = Files(folder, network), inputs.shape[:2]
    np.save(files.inputs, inputs.reshape(steps, samples, -1))
    for population in network.populations:
        for kind in recorded_kinds(population, schedule):
            recorded = samples if kind == "spikes" else schedule.states
            dtype = np.uint8 if kind == "spikes" and population.spiking else np.int32
            shape = (steps, recorded, population.size)
            np.lib.format.open_memmap(files.of(kind, population.name), "w+", dtype, shape)


def collect(folder: Path, network: IntegerNetwork, inputs: np.ndarray, schedule: Schedule, backend: str) -> Recording:
    """The Recording of a finished job, mapped from its files: it stays whole when the folder is deleted."""
    files = Files(folder, network)
    traces: dict[str, Traces] = {kind: {} for kind in (TRACES if schedule.states else ("spikes",))}
    for population in network.populations:
        for kind in recorded_kinds(population, schedule):
            mapped = np.asarray(np.load(files.of(kind, population.name), mmap_mode="c"))
            trace = mapped.reshape(*mapped.shape[:2], *population.shape)
            if not population.spiking:  # Lava recorded its activation
                trace = readout_current(trace, population.bias).astype(np.int32)
            traces[kind][population.name] = trace
    return Recording(backend, network.hash, hash_of(inputs), **traces)
