"""The training loop: data, encoding and network in; trained weights, metrics and a state to go on from out.

Every random choice of an epoch derives from (seed, epoch), so training that was interrupted and resumed after any epoch
ends with the same bits as training that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from base.errors import UserError
from base.files import whole_file, write_text
from train import online
from train.datasets import Dataset, Samples
from train.encoding import Encoding, batches, encode
from train.modes import dropping_out, evaluating
from train.network import SpikingNetwork
from train.objectives import loss, loss_of_step, predict
from train.time_weights import FIRST_EPOCH, followed, right_by_step, weighted

EVALUATION_BATCH = 256
MOMENTS = ("exp_avg", "exp_avg_sq", "step")

Metrics = list[dict[str, Any]]


@dataclass(frozen=True)
class Training:
    """Adam, its learning rate falling along half a cosine to 0. Raises UserError for values that cannot work.

    time_weights: whether steps of the output count by how well they answer alone (`train/time_weights.py`).
    online: "" for backpropagation through time; else OTTT (`train/online.py`), whose gradients are summed over the
    steps of a batch ("a") or applied after each ("o": T updates a batch, which want a lower learning rate). mse_share:
    of the mean squared error in its loss, the rest being cross entropy. input_trace: `online.step` tells.
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 1e-2
    time_weights: bool = False
    seed: int = 0
    online: str = ""
    mse_share: float = 0.0
    input_trace: bool = True

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"training with {name} = {getattr(self, name)}: must be at least {least}")
        if not 0 < self.learning_rate <= 1:
            raise UserError(
                f"training with learning_rate = {self.learning_rate}: must be above 0 and at most 1; 0.01 is usual"
            )
        if self.online not in ("", "a", "o"):
            raise UserError(
                f"training with online = '{self.online}': must be 'a' (one update a batch), 'o' (one a step) or '' "
                "(backpropagation through time)"
            )
        if not 0 <= self.mse_share <= 1:
            raise UserError(f"training with mse_share = {self.mse_share}: must be between 0 and 1; 0.05 is usual")
        if self.online and self.time_weights:
            raise UserError(
                "time_weights compare the steps of an output, which training online never has together; set one of "
                "online and time_weights"
            )
        if not self.online and (self.mse_share or not self.input_trace):
            raise UserError(
                "mse_share and input_trace belong to training online; set online = 'a' or 'o', or leave them out"
            )


def fit(
    network: SpikingNetwork,
    dataset: Dataset,
    encoding: Encoding,
    training: Training,
    folder: Path,
    progress: Callable[[dict[str, Any]], None] | None = None,
    fingerprint: str = "",
) -> Metrics:
    """Train the network in place and leave it in evaluation mode.

    Returns one line of metrics per epoch, with validation accuracy if there is that part.

    Writes into `folder`, each file whole or not at all: state.safetensors and metrics.jsonl after every epoch,
    weights.safetensors at the end. Training goes on after the epoch of a state found there if that came from the same
    initial weights, training samples, encoding, training and `fingerprint`; any other is ignored and written over.
    `progress` is called after every batch.
    Raises UserError where network and data do not fit, for what cannot be trained online, for a state file that cannot
    be read, and for weights gone NaN.
    """
    if network.stages[-1].output_shape != (dataset.classes,):
        raise UserError(
            f"the network ends with {list(network.stages[-1].output_shape)} neurons, but data set '{dataset.name}' has "
            f"{dataset.classes} classes; end the architecture with {dataset.classes}"
        )
    if training.online:
        online.check(network)
    folder = Path(folder)
    network.time_weights = torch.ones(encoding.steps) if training.time_weights else None
    optimizer = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    identity = _identity(network, dataset, encoding, training, fingerprint)
    metrics = _resume(folder / "state.safetensors", network, optimizer, identity)
    for epoch in range(len(metrics) + 1, training.epochs + 1):
        if network.time_weights is not None and epoch >= FIRST_EPOCH:
            network.time_weights = followed(network.time_weights, metrics[-1]["right_by_step"])
        line = _epoch(epoch, network, optimizer, dataset.train, encoding, training, progress)
        if dataset.validation is not None:
            line["validation_accuracy"] = evaluate(network, dataset.validation, encoding)
        metrics.append(line)
        _save_state(folder / "state.safetensors", network, optimizer, identity, metrics)
        write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))
    network.eval()
    _save(network.state_dict(), folder / "weights.safetensors", {})
    return metrics


def load_weights(network: SpikingNetwork, path: Path) -> None:
    """Put the weights of a file written by `fit` into the network.

    Raises UserError for a file that is no safetensors file, does not fit the architecture, or holds NaN or infinity.
    """
    tensors, _ = _read(Path(path))
    network.time_weights = tensors.get("time_weights")  # the training decided whether there are any
    expected = network.state_dict()
    for name in [*expected, *tensors]:
        if name not in tensors:
            raise UserError(f"{path}: tensor '{name}' is missing; the weights belong to another architecture")
        if name not in expected:
            raise UserError(
                f"{path}: tensor '{name}' has no place in the network; the weights belong to another architecture"
            )
        if tensors[name].shape != expected[name].shape:
            raise UserError(
                f"{path}: tensor '{name}' has shape {list(tensors[name].shape)}, the network needs "
                f"{list(expected[name].shape)}; the weights belong to another architecture"
            )
        if not torch.isfinite(tensors[name]).all():
            raise UserError(f"{path}: tensor '{name}' holds NaN or infinity; train again with a lower learning rate")
    network.load_state_dict(tensors)


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


def _epoch(
    epoch: int,
    network: SpikingNetwork,
    optimizer: torch.optim.Adam,
    samples: Samples,
    encoding: Encoding,
    training: Training,
    progress: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:
    began = time.perf_counter()
    order = np.random.default_rng((training.seed, epoch)).permutation(len(samples))
    starts = range(0, len(samples), training.batch_size)
    device = next(network.parameters()).device
    seen, correct, total_loss = 0, 0, 0.0
    right = torch.zeros(encoding.steps, dtype=torch.int64, device=device)
    network.train()
    fired = dict.fromkeys((stage.name for stage in network.stages if stage.spiking), 0.0)
    for batch, start in enumerate(starts, 1):
        done = (epoch - 1 + batch / len(starts)) / training.epochs
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * (1 + math.cos(math.pi * done)) / 2
        chosen = order[start : start + training.batch_size]
        spikes = encode(samples.values[chosen], chosen, encoding, epoch)
        labels = torch.from_numpy(samples.labels[chosen]).to(device)
        update = _update_online if training.online else _update
        objective, emitted = update(network, optimizer, spikes, labels, training, (training.seed, epoch, batch))

        output = emitted[network.stages[-1].name]
        answer = weighted(output, network.time_weights)
        seen += len(chosen)
        correct += int((predict(answer.detach()) == labels).sum())
        if network.time_weights is not None:
            right += right_by_step(output.detach(), labels)
        total_loss += objective.item() * len(chosen)
        for name in fired:
            fired[name] += emitted[name].detach().mean().item() * len(chosen)
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


def _update(
    network: SpikingNetwork,
    optimizer: torch.optim.Adam,
    spikes: Tensor,
    labels: Tensor,
    training: Training,
    masks: tuple[int, ...],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Learn one batch by backpropagation through time: its loss, and what every population emitted, [T, B, *shape]."""
    with dropping_out(*masks):
        emitted = network.spikes(spikes)
    answer = weighted(emitted[network.stages[-1].name], network.time_weights)
    objective = loss(answer, labels, network.stages[-1].spiking)
    optimizer.zero_grad()
    objective.backward()
    optimizer.step()
    return objective, emitted


def _update_online(
    network: SpikingNetwork,
    optimizer: torch.optim.Adam,
    spikes: Tensor,
    labels: Tensor,
    training: Training,
    masks: tuple[int, ...],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same by OTTT, with only the mean over time of what was emitted, [1, B, *shape], kept."""
    steps, output, state = len(spikes), network.stages[-1], online.State()
    objective = torch.zeros(())
    emitted: dict[str, Tensor] = {}
    optimizer.zero_grad()
    for frame in spikes.split(1):
        with dropping_out(*masks):  # at every step anew, and so the same ones
            shown, state = online.step(network, frame, state, training.input_trace)
        of_step = loss_of_step(shown[output.name], labels, output.spiking, training.mse_share) / steps
        of_step.backward()
        if training.online == "o":
            optimizer.step()
            optimizer.zero_grad()
        objective = objective + of_step.detach().cpu()
        emitted = {name: emitted.get(name, 0.0) + out.detach() / steps for name, out in shown.items()}
    if training.online == "a":
        optimizer.step()
    return objective, emitted


def _identity(
    network: SpikingNetwork, dataset: Dataset, encoding: Encoding, training: Training, fingerprint: str
) -> str:
    """One hash of all that decides the result of a training."""
    digest = hashlib.sha256(
        "\n".join(map(str, (fingerprint, network, network.payload_bits, encoding, training, dataset.name))).encode()
    )
    digest.update(dataset.fingerprint.encode())
    values = dataset.train.values
    arrays = [values] if isinstance(values, np.ndarray) else [values.time, values.address, values.starts, values.stops]
    for array in (*([] if dataset.fingerprint else arrays), dataset.train.labels):
        digest.update(array.tobytes())
    for weights in network.parameters():
        digest.update(weights.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _resume(path: Path, network: SpikingNetwork, optimizer: torch.optim.Adam, identity: str) -> Metrics:
    """Metrics of the epochs already done; network and optimizer are brought to where they stood after the last."""
    if not path.exists():
        return []
    try:
        tensors, metadata = _read(path)
    except UserError as error:
        raise UserError(f"{error}; delete it to start training anew") from error
    if metadata.get("identity") != identity:
        return []
    network.load_state_dict(
        {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    )
    for name, parameter in network.named_parameters():
        # Adam wants its step counts on the CPU, as they were saved, and its moments beside the weights.
        optimizer.state[parameter] = {
            moment: tensors[f"{moment}.{name}"].to("cpu" if moment == "step" else parameter.device)
            for moment in MOMENTS
        }
    return json.loads(metadata["metrics"])


def _save_state(
    path: Path, network: SpikingNetwork, optimizer: torch.optim.Adam, identity: str, metrics: Metrics
) -> None:
    tensors = {f"weights.{name}": tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        tensors |= {f"{moment}.{name}": optimizer.state[parameter][moment] for moment in MOMENTS}
    _save(tensors, path, {"identity": identity, "metrics": json.dumps(metrics)})


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    with whole_file(path) as beside:
        safetensors.torch.save_file({name: t.contiguous() for name, t in tensors.items()}, beside, metadata)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a safetensors file ({error}); it is missing, cut short or foreign"
        ) from error
