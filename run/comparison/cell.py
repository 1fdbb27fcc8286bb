"""One cell in a process of its own: train, quantize, run the integers on all held-out samples, measure.

The process trains on one thread, so that its numbers depend on nothing that runs beside it; only its seconds do.
"""

from __future__ import annotations

import resource
import signal
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from base.errors import UserError
from base.files import write_json
from deploy.verify import compare
from quantize import engine, recording, reference
from quantize.calibration import calibrate
from quantize.fidelity import fidelity
from quantize.scales import quantize
from run import building, stages
from run.config import Config
from train.datasets import Samples
from train.encoding import Encoding, batches, encode_all
from train.modes import evaluating
from train.network import SpikingNetwork
from train.neurons import LIF
from train.trainer import calibration_inputs, evaluate, fit, record

CHECKED_SAMPLES = 4  # on which the engine is held against the reference; the reference is slow
CURVE = ("epoch", "loss", "train_accuracy", "validation_accuracy")

Progress = Callable[[int, int, str], None]  # done, total, a note


def work(config: Config, folder: Path, told: Connection) -> None:
    """The process: make the cell's file in its folder, telling (done, total, note), or the sentence of a refusal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaving by an exception removes half-written files
    torch.set_num_threads(1)
    try:
        write_json(folder / "cell.json", measure(config, folder, lambda *progress: told.send(progress)))
    except UserError as error:
        told.send(str(error))


def measure(config: Config, folder: Path, progress: Progress) -> dict[str, Any]:
    """Train in the folder, going on from a state found there, and return what the comparison tells of it.

    accuracy: of the weights after the last epoch. populations: of those with neurons, spikes per neuron and step, and
    the share of neuron-steps inside the surrogate's window, on the held-out samples. Raises UserError as training and
    quantization do.
    """
    network, dataset, encoding, training = building.prepare(config)

    def show(batch: dict[str, Any]) -> None:
        done, total, note = stages.of_batch(batch)
        progress(done, total + 1, note)  # the last step is what follows the training

    epochs = fit(network, dataset, encoding, training, folder, show, aware=building.aware(config))
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    test = dataset.test
    layers = calibrate(network, calibration_inputs(dataset, encoding), config.quantize)
    integers, _ = quantize(layers, network.input_shape, encoding.payload_bits, config.quantize)
    inputs = encode_all(test.values, encoding)
    ran = engine.run(integers, inputs)
    floats = recording.Recording("float", integers.hash, ran.inputs, record(network, test, encoding))
    lost = fidelity(floats, ran, test.labels, integers)
    few = inputs[:, :CHECKED_SAMPLES]
    states = few.shape[1]
    check = compare(reference.run(integers, few, states), engine.run(integers, few, states), integers.order)
    inside = in_window(network, test, encoding)
    validation = None if dataset.validation is None else evaluate(network, dataset.validation, encoding)
    return {
        "config": asdict(config),
        "versions": stages.versions(),
        "samples": len(test),
        "accuracy": {"validation": validation, **lost["accuracy"]},
        "agreement": lost["agreement"],
        "reference": {"samples": check.samples, "equal": check.equal},
        "populations": {
            name: {
                "neurons": integers[name].size,
                "float_rate": of["float_rate"],
                "integer_rate": of["integer_rate"],
                "in_window": inside[name],
            }
            for name, of in lost["populations"].items()
            if name in inside
        },
        "curve": [{key: epoch[key] for key in CURVE if key in epoch} for epoch in epochs],
        "cost": {
            "seconds_per_epoch": statistics.median(epoch["seconds"] for epoch in epochs),
            "peak_memory_mib": peak_kib / 1024,
        },
    }


@torch.inference_mode()
def in_window(network: SpikingNetwork, samples: Samples, encoding: Encoding) -> dict[str, float]:
    """Share of neuron-steps with |v - threshold| < width / 2 by population of LIF neurons, v being the membrane before
    the reset: where the surrogate is near its peak, whatever its shape."""
    neurons = {stage.name: stage for stage in network.stages if isinstance(stage.neuron, LIF)}
    inside, count = dict.fromkeys(neurons, 0), dict.fromkeys(neurons, 0)
    with evaluating(network):
        for _, spikes in batches(samples.values, encoding):
            _, membranes = network.spikes_and_membranes(spikes)
            for name, stage in neurons.items():
                assert isinstance(stage.neuron, LIF)
                distance = (membranes[name] - stage.neuron.threshold).abs()
                widths = torch.as_tensor(stage.neuron.widths(len(distance), stage.current_spread))
                within = distance < widths.view(-1, *[1] * (distance.dim() - 1)) / 2
                inside[name] += int(within.sum())
                count[name] += within.numel()
    return {name: inside[name] / count[name] for name in neurons}
