"""The ways to deploy a network that was trained elsewhere, measured on the held-out samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from deploy.lava.graph import OWN, STOCK, neurons_kind
from quantize import engine
from quantize.calibration import calibrate
from quantize.integer_network import IntegerNetwork
from quantize.precision import Precision
from quantize.recording import Recording, predictions
from quantize.scales import quantize
from train.datasets import Dataset, Samples
from train.encoding import Encoding, batches, encode_all
from train.frameworks.finding import Found
from train.network import SpikingNetwork
from train.objectives import predict
from train.time_weights import weighted
from train.trainer import calibration_inputs, record

SAMPLES = 64  # that a module is watched on at a time: all that it computes for them is kept meanwhile

NEURONS = {STOCK: f"stock {STOCK}", OWN: "this project's"}

Row = dict[str, Any]


def measure(
    found: Found,
    ways: Mapping[str, SpikingNetwork],
    dataset: Dataset,
    encoding: Encoding,
    precision: Precision,
    progress: Callable[[int, int], None],
) -> list[Row]:
    """A row for each way: the accuracy of the module itself, of the way's float network (both in float64) and of its
    integers, the share of neuron-steps in which the float network's spikes are not the module's, and who runs the
    neurons on Lava."""
    test, shown, inputs = dataset.test, calibration_inputs(dataset, encoding), encode_all(dataset.test.values, encoding)
    progress(0, 1 + len(ways))
    theirs = _record(found, test, encoding)
    output = weighted(torch.from_numpy(theirs[found.network.stages[-1].name]), found.network.time_weights)
    answered = _share(predict(output).numpy(), test)
    rows: list[Row] = []
    for way, network in ways.items():
        progress(1 + len(rows), 1 + len(ways))
        layers = calibrate(network, shown, precision)
        integers, _ = quantize(layers, network.input_shape, encoding.payload_bits, precision)
        floats = Recording("float", "", "", record(copy.deepcopy(network).double(), test, encoding))
        spiking = [name for name in floats.spiking if name in theirs]
        different = sum(int((floats.spikes[name] != theirs[name]).sum()) for name in spiking)
        rows.append(
            {
                "way": way,
                "your module": answered,
                "float": _share(predictions(floats, integers), test),
                "integers": _share(predictions(engine.run(integers, inputs), integers), test),
                "spikes that differ": different / sum(theirs[name].size for name in spiking),
                "neurons on Lava": _neurons(integers),
            }
        )
    progress(1 + len(ways), 1 + len(ways))
    return rows


def _record(found: Found, samples: Samples, encoding: Encoding) -> dict[str, np.ndarray]:
    """What the module itself emits for every sample, [T, N, *shape] by population."""
    parts = [found.rasters(inputs) for _, inputs in batches(samples.values, encoding, SAMPLES)]
    return {name: torch.cat([part[name] for part in parts], dim=1).numpy() for name in parts[0]}


def _share(predicted: np.ndarray, samples: Samples) -> float:
    return float((predicted == samples.labels).mean())


def _neurons(network: IntegerNetwork) -> str:
    kinds = {neurons_kind(population) for population in network.populations if population.spiking}
    return " and ".join(NEURONS[kind] for kind in NEURONS if kind in kinds)
