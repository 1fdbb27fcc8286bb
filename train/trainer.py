"""The training loop: data, encoding and network in; trained weights, metrics and a state to go on from out.

Every random choice of an epoch derives from (seed, epoch), so training that was interrupted and resumed after any epoch
ends with the same bits as training that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from base.errors import UserError
from base.files import write_text
from train import conversion, online, recompute
from train.checkpoint import Metrics, identity_of, resume, save_state, save_weights
from train.conversion import AnalogNetwork, convert
from train.datasets import Dataset, Samples
from train.encoding import Encoding, batches, encode
from train.modes import evaluating
from train.network import SpikingNetwork
from train.objectives import predict
from train.time_weights import FIRST_EPOCH, followed, right_by_step, weighted
from train.training import Training, TrainingSettings
from train.updates import optimizer_of, update_of

EVALUATION_BATCH = 256
CALIBRATION_SAMPLES = 512  # of the training part, by which a ReLU network is converted and weights are clipped
SETTLED_EPOCHS, SETTLED = 5, 0.01  # a learned width that moved less than this share in so many epochs stays as it is

Progress = Callable[[dict[str, Any]], None]


def fit(
    network: SpikingNetwork,
    dataset: Dataset,
    encoding: Encoding,
    training: Training,
    folder: Path,
    progress: Progress | None = None,
    fingerprint: str = "",
    aware: Callable[[SpikingNetwork, Tensor], SpikingNetwork] | None = None,
) -> Metrics:
    """Train the network in place and leave it in evaluation mode.

    aware: gives the network, on the same parts, whose forward pass `training.aware_epochs` use, made from this one and
    `calibration_inputs`; it lives above this floor (`quantize.aware.AwareNetwork`).
    Returns one line of metrics per epoch, with validation accuracy if there is that part; epochs as a ReLU network come
    first, marked by "relu", aware ones last, marked by "aware".

    Writes into `folder`, each file whole or not at all: state.safetensors (of aware epochs aware.safetensors) and
    metrics.jsonl after every epoch, weights.safetensors at the end; those of a ReLU network into its folder `relu`.
    Training goes on after the epoch of a state found there if that came from the same initial weights, training
    samples, encoding, training and `fingerprint`; any other is ignored and written over. `progress` is called after
    every batch.
    Raises UserError where network and data do not fit, for what cannot be trained online, for a state file that cannot
    be read, and for weights gone NaN.
    """
    if network.stages[-1].output_shape != (dataset.classes,):
        raise UserError(
            f"the network ends with {list(network.stages[-1].output_shape)} neurons, but data set '{dataset.name}' has "
            f"{dataset.classes} classes; end the architecture with {dataset.classes}"
        )
    check(network, training)
    if training.aware_epochs and aware is None:
        raise UserError(
            f"aware_epochs = {training.aware_epochs}, but fit was not told whose forward pass that is; give it "
            "aware=AwareNetwork of quantize.aware"
        )
    folder = Path(folder)
    metrics: Metrics = []
    if training.relu_epochs:
        told = _told(progress, after=training.epochs + training.aware_epochs)
        metrics += _start_from_relu(network, dataset, encoding, training, folder / "relu", told)
    network.time_weights = torch.ones(encoding.steps) if training.time_weights else None
    network.clips = None
    if training.epochs:
        # Aware epochs change nothing of those before, whose state is therefore good for any number of them.
        usual = TrainingSettings()
        floats = replace(
            training,
            aware_epochs=0,
            aware_learning_rate=usual.aware_learning_rate,
            aware_weight_decay=usual.aware_weight_decay,
        )
        told = _told(progress, before=training.relu_epochs, after=training.aware_epochs)
        _train(network, dataset, encoding, floats, folder / "state.safetensors", fingerprint, told, metrics, {})
    if aware is not None and training.aware_epochs:
        integers = aware(network, calibration_inputs(dataset, encoding))
        again = replace(
            training,
            epochs=training.aware_epochs,
            learning_rate=training.aware_learning_rate,
            weight_decay=training.aware_weight_decay,
            relu_epochs=0,
            aware_epochs=0,
        )
        told = _told(progress, before=training.relu_epochs + training.epochs)
        mark = {"aware": True}
        _train(integers, dataset, encoding, again, folder / "aware.safetensors", fingerprint, told, metrics, mark)
        network.time_weights, network.clips = integers.time_weights, integers.clips
    network.eval()
    _write(metrics, folder)
    save_weights(network, folder / "weights.safetensors")
    return metrics


def _train(
    network: SpikingNetwork,
    dataset: Dataset,
    encoding: Encoding,
    training: Training,
    state: Path,
    fingerprint: str,
    progress: Progress | None,
    before: Metrics,
    mark: dict[str, Any],
) -> None:
    """Train for `training.epochs`, going on from the state, and add a line of metrics for each, marked, to `before`."""
    optimizer = optimizer_of(network, training)
    identity = identity_of(network, dataset, encoding, training, fingerprint)
    metrics = resume(state, network, optimizer, identity)
    _freeze_settled(network, metrics)
    for epoch in range(len(metrics) + 1, training.epochs + 1):
        if network.time_weights is not None and epoch >= FIRST_EPOCH:
            network.time_weights = followed(network.time_weights, metrics[-1]["right_by_step"])
        line = _epoch(epoch, network, optimizer, dataset.train, encoding, training, progress) | mark
        if dataset.validation is not None:
            line["validation_accuracy"] = evaluate(network, dataset.validation, encoding)
        metrics.append(line)
        if network.learned_widths:
            line["width"] = {name: width.item() for name, width in network.learned_widths.items()}
            line["frozen_widths"] = _freeze_settled(network, metrics)
        save_state(state, network, optimizer, identity, metrics)
        _write(before + metrics, state.parent)
    before += metrics


def check(network: SpikingNetwork, training: Training) -> None:
    """Raises UserError for a network that cannot be trained so."""
    if training.online:
        online.check(network)
    if training.recompute:
        recompute.check(network)
    if training.pda and not network.neurons:
        raise UserError(
            f"pda = {training.pda} in a network without LIF neurons: it acts on their membranes; set pda = 0"
        )
    if training.relu_epochs:
        conversion.check(network, converted_only=training.epochs + training.aware_epochs == 0)


def _start_from_relu(
    network: SpikingNetwork,
    dataset: Dataset,
    encoding: Encoding,
    training: Training,
    folder: Path,
    progress: Progress | None,
) -> Metrics:
    """Train the network's parts with ReLU in place of its neurons, and convert their weights in place."""
    relu = Training(training.relu_epochs, training.batch_size, training.learning_rate, training.weight_decay)
    metrics = fit(AnalogNetwork(network), dataset, encoding, replace(relu, seed=training.seed), folder, progress)
    convert(network, calibration_inputs(dataset, encoding))
    return [{**line, "relu": True} for line in metrics]


def calibration_inputs(dataset: Dataset, encoding: Encoding) -> Tensor:
    """The first samples of the training part, encoded: [T, B, *shape]."""
    chosen = np.arange(min(CALIBRATION_SAMPLES, len(dataset.train)))
    return encode(dataset.train.values[chosen], chosen, encoding)


def _told(progress: Progress | None, before: int = 0, after: int = 0) -> Progress | None:
    """The progress of some of the epochs, told as that of all."""
    if progress is None:
        return None
    return lambda batch: progress(
        {**batch, "epoch": batch["epoch"] + before, "epochs": before + batch["epochs"] + after}
    )


def _write(metrics: Metrics, folder: Path) -> None:
    write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))


def evaluate(
    network: SpikingNetwork, samples: Samples, encoding: Encoding, batch_size: int = EVALUATION_BATCH
) -> float:
    """Share of samples whose label the network predicts."""
    correct = 0
    with torch.inference_mode(), evaluating(network):
        for chosen, spikes in batches(samples.values, encoding, batch_size):
            predicted = predict(weighted(network(spikes), network.time_weights))
            correct += int((predicted.cpu() == torch.from_numpy(samples.labels[chosen])).sum())
    return correct / len(samples)


def record(network: SpikingNetwork, samples: Samples, encoding: Encoding) -> dict[str, np.ndarray]:
    """What every population does for every sample: rasters uint8 [T, N, *shape] by population, a readout's currents as
    float32."""
    recorded = {
        stage.name: np.empty(
            (encoding.steps, len(samples), *stage.output_shape), np.uint8 if stage.spiking else np.float32
        )
        for stage in network.stages
    }
    with evaluating(network):
        for chosen, spikes in batches(samples.values, encoding, EVALUATION_BATCH):
            for name, raster in network.rasters(spikes).items():
                recorded[name][:, chosen] = raster.cpu().numpy()
    return recorded


def _freeze_settled(network: SpikingNetwork, metrics: Metrics) -> list[str]:
    """Learn no further the widths that have settled, in the metrics so far; their populations."""
    settled = []
    for name, width in network.learned_widths.items():
        lately = [line["width"][name] for line in metrics[-SETTLED_EPOCHS - 1 :]]
        if len(lately) > SETTLED_EPOCHS and max(lately) - min(lately) < SETTLED * min(lately):
            width.requires_grad_(False)
            settled.append(name)
    return settled


def _epoch(
    epoch: int,
    network: SpikingNetwork,
    optimizer: torch.optim.AdamW,
    samples: Samples,
    encoding: Encoding,
    training: Training,
    progress: Progress | None,
) -> dict[str, Any]:
    began = time.perf_counter()
    order = np.random.default_rng((training.seed, epoch)).permutation(len(samples))
    starts = range(0, len(samples), training.batch_size)
    device = next(network.parameters()).device
    seen, correct, total_loss = 0, 0, 0.0
    right = torch.zeros(encoding.steps, dtype=torch.int64, device=device)
    network.train()
    update = update_of(training)
    fired = dict.fromkeys((stage.name for stage in network.stages if stage.spiking), 0.0)
    for batch, start in enumerate(starts, 1):
        done = (epoch - 1 + batch / len(starts)) / training.epochs
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (1 + math.cos(math.pi * done)) / 2
        chosen = order[start : start + training.batch_size]
        spikes = encode(samples.values[chosen], chosen, encoding, epoch)
        labels = torch.from_numpy(samples.labels[chosen]).to(device)
        objective, output, means = update(network, optimizer, spikes, labels, training, (training.seed, epoch, batch))

        seen += len(chosen)
        correct += int((predict(weighted(output, network.time_weights)) == labels).sum())
        if network.time_weights is not None:
            right += right_by_step(output, labels)
        total_loss += objective.item() * len(chosen)
        for name in fired:
            fired[name] += means[name].item() * len(chosen)
        if progress is not None:
            progress(
                {
                    "epoch": epoch,
                    "epochs": training.epochs,
                    "batch": batch,
                    "batches": len(starts),
                    "loss": total_loss / seen,
                    "accuracy": correct / seen,
                }
            )
    # A neuron with NaN in its weights falls silent, so the loss alone would not tell.
    for name, parameter in network.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(
                f"tensor '{name}' holds NaN or infinity after epoch {epoch}; lower "
                f"learning_rate = {training.learning_rate}"
            )
    line = {
        "epoch": epoch,
        "loss": total_loss / seen,
        "train_accuracy": correct / seen,
        "seconds": round(time.perf_counter() - began, 3),
        "firing_rate": {name: rate / seen for name, rate in fired.items()},
    }
    if network.time_weights is not None:
        line["right_by_step"] = right.tolist()
        line["time_weights"] = [round(weight, 4) for weight in network.time_weights.tolist()]
    return line
