"""Where weights are clipped, found before they are rounded, on what the float network does with a few samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from quantize.fold import FoldedConnection, FoldedLayer, conducted, fold
from quantize.grids import Precision, best_clip, clipped
from quantize.integer_network import INPUT
from quantize.scales import clips_of
from train.modes import evaluating
from train.network import SpikingNetwork

MEMBRANE_SAMPLES = 128


def calibrate(network: SpikingNetwork, inputs: Tensor, precision: Precision) -> tuple[FoldedLayer, ...]:
    """The network's folded layers with a clip for each connection's weights: those it has learned, or else those of
    `precision.calibration`.

    inputs: [T, B, *input_shape] as `encode` makes them, for "membrane" alone, which looks at the first 128: of the
    clips tried it takes that which costs the least squared error in the membranes behind the connection, as the float
    network's spikes would leave them if no neuron ever reset.
    """
    layers = fold(network)
    if network.clips is not None:
        return layers
    if precision.calibration == "membrane":
        shown = inputs[:, :MEMBRANE_SAMPLES]
        with torch.no_grad(), evaluating(network):
            emitted = {INPUT: shown.float(), **network.spikes(shown)}
        spikes = {name: raster.cpu() for name, raster in emitted.items()}
        found = [[_by_membrane(layer, c, spikes[c.source], precision) for c in layer.connections] for layer in layers]
    else:
        found = [clips_of(layer, precision) for layer in layers]
    return tuple(
        layer if layer.input_is_bias else _with_clips(layer, clips) for layer, clips in zip(layers, found, strict=True)
    )


def _with_clips(layer: FoldedLayer, clips: list[np.ndarray]) -> FoldedLayer:
    joined = zip(layer.connections, clips, strict=True)
    return replace(layer, connections=tuple(replace(connection, clip=clip) for connection, clip in joined))


def _by_membrane(layer: FoldedLayer, connection: FoldedConnection, spikes: Tensor, precision: Precision) -> np.ndarray:
    if connection.clip is not None:  # that of a maximum is 1
        return connection.clip
    weight, bits, per_channel = connection.weight, precision.of(layer.name), precision.separates(layer.neuron)
    rows = weight.reshape(len(weight) if per_channel else 1, -1)

    def error(clips: np.ndarray) -> np.ndarray:
        lost = (clipped(rows, clips, bits) - rows).reshape(weight.shape)
        squares = _membrane_squares(layer, replace(connection, weight=lost), spikes)
        return squares if per_channel else squares.sum(keepdims=True)

    clips = best_clip(np.abs(rows).max(axis=1), error)
    return clips if per_channel else clips[0]


def _membrane_squares(layer: FoldedLayer, connection: FoldedConnection, spikes: Tensor) -> np.ndarray:
    """Of the membranes [T, B, *shape] that one connection's currents alone leave, if no neuron ever resets: the sum of
    squares [O] of each channel."""
    current = conducted(connection, spikes.flatten(0, 1))
    alpha, beta = (torch.as_tensor(share, dtype=torch.float32) for share in (layer.alpha, layer.beta))
    u = v = torch.zeros(layer.shape)
    squares = torch.zeros(len(connection.weight))
    for arriving in current.unflatten(0, spikes.shape[:2]):
        u = alpha * u + arriving
        v = beta * v + u
        squares += v.square().sum(dim=[0, *range(2, v.dim())])
    return squares.double().numpy()
