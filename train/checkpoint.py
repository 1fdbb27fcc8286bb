"""Weights and the state of a training on disk, as safetensors: nothing that is loaded can run code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from base.errors import UserError
from base.files import whole_file
from train.datasets import Dataset
from train.encoding import Encoding
from train.network import SpikingNetwork
from train.training import Training

MOMENTS = ("exp_avg", "exp_avg_sq", "step")

Metrics = list[dict[str, Any]]


def save_weights(network: SpikingNetwork, path: Path) -> None:
    """Write the network's weights, and nothing else, whole or not at all."""
    _save(network.state_dict(), path, {})


def load_weights(network: SpikingNetwork, path: Path) -> None:
    """Put the weights of a file written by `fit` into the network.

    Raises UserError for a file that is no safetensors file, does not fit the architecture, or holds NaN or infinity.
    """
    tensors, _ = _read(Path(path))
    network.time_weights = tensors.get("time_weights")  # the training decided whether there are any, and clips
    clips = {name.removeprefix("clips."): tensor for name, tensor in tensors.items() if name.startswith("clips.")}
    network.clips = nn.ParameterDict(clips) if clips else None
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


def identity_of(
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


def save_state(
    path: Path, network: SpikingNetwork, optimizer: torch.optim.AdamW, identity: str, metrics: Metrics
) -> None:
    """Write what `resume` goes on from, after an epoch: weights, moments, and the metrics so far."""
    tensors = {f"weights.{name}": tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        if parameter in optimizer.state:
            tensors |= {f"{moment}.{name}": optimizer.state[parameter][moment] for moment in MOMENTS}
    _save(tensors, path, {"identity": identity, "metrics": json.dumps(metrics)})


def resume(path: Path, network: SpikingNetwork, optimizer: torch.optim.AdamW, identity: str) -> Metrics:
    """Metrics of the epochs already done; network and optimizer are brought to where they stood after the last.

    A state of another identity is none. Raises UserError for a file that cannot be read.
    """
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
        if f"step.{name}" not in tensors:  # nothing has moved it
            continue
        # Adam wants its step counts on the CPU, as they were saved, and its moments beside the weights.
        optimizer.state[parameter] = {
            moment: tensors[f"{moment}.{name}"].to("cpu" if moment == "step" else parameter.device)
            for moment in MOMENTS
        }
    return json.loads(metadata["metrics"])


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
