"""Where weights are clipped, and what states must be held, found before anything is rounded, on what the float network
does with a few samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from quantize.fold import FoldedConnection, FoldedLayer, conducted, fold
from quantize.grids import best_clip, clipped
from quantize.integer_network import INPUT
from quantize.precision import Precision
from quantize.scales import clips_of
from train.modes import evaluating
from train.network import SpikingNetwork

SAMPLES = 128


def calibrate(network: SpikingNetwork, inputs: Tensor, precision: Precision) -> tuple[FoldedLayer, ...]:
    """The network's folded layers with a clip for each connection's weights: those it has learned, or else those of
    `precision.calibration`; and for `precision.range` "calibrated" with the reach of their states.

    inputs: [T, B, *input_shape] as `encode` makes them, of which the first 128 are looked at, for calibration
    "membrane" and a calibrated range. "membrane" takes of the clips tried that which costs the least squared error in
    the membranes behind the connection, as the float network's spikes would leave them if no neuron ever reset.
    """
    layers, spikes = fold(network), {}
    clips_by_membrane = network.clips is None and precision.calibration == "membrane"
    if clips_by_membrane or precision.range == "calibrated":
        shown = inputs[:, :SAMPLES]
        with torch.no_grad(), evaluating(network):
            emitted = {INPUT: shown.float(), **network.spikes(shown)}
        spikes = {name: raster.cpu() for name, raster in emitted.items()}
    if precision.range == "calibrated":
        layers = tuple(layer if layer.input_is_bias else _with_reach(layer, spikes) for layer in layers)
    if network.clips is not None:
        return layers
    if clips_by_membrane:
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


def _with_reach(layer: FoldedLayer, spikes: Mapping[str, Tensor]) -> FoldedLayer:
    """With the largest magnitudes of u and of v before its reset, when populations emit those spikes [T, B, *shape]."""
    arriving = torch.zeros(spikes[layer.name].shape)
    for connection in layer.connections:
        source = spikes[connection.source][: len(arriving) - connection.delay]
        if len(source):
            arriving[connection.delay :] += conducted(connection, source.flatten(0, 1)).unflatten(0, source.shape[:2])
    alpha, beta = (torch.as_tensor(share, dtype=torch.float32) for share in (layer.alpha, layer.beta))
    bias = torch.from_numpy(layer.bias).float().view(-1, *[1] * (len(layer.shape) - 1))
    hard, late = layer.reset.startswith("hard"), layer.reset.endswith("late")
    u = v = fired = torch.zeros(arriving.shape[1:])
    currents, voltages = 0.0, 0.0

    def reset(v: Tensor, fired: Tensor) -> Tensor:
        return torch.where(fired > 0, 0.0 if hard else v - layer.threshold, v)

    for now, spiked in zip(arriving, spikes[layer.name], strict=True):
        u = alpha * u + now
        v = beta * v + u + bias
        v = reset(v, fired) if late else v
        currents, voltages = max(currents, float(u.abs().max())), max(voltages, float(v.abs().max()))
        v = v.clamp(min=0) if layer.floor else v
        v, fired = v if late else reset(v, spiked), spiked
    return replace(layer, reach=(currents, voltages))
