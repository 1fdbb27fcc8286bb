"""What each rounding costs by itself, in spikes: every population once more in floats, one of its quantities rounded.

In float64, behind the spikes of the float network, its own included where it is recurrent. So no rounding of another
population is seen, and nothing of what integers cut off at each step: sums that are shifted, states that decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from quantize.fold import FoldedLayer, conducted
from quantize.grids import over_rows
from quantize.integer_network import INPUT, IntegerNetwork, Population
from quantize.scales import STATE_UNIT, Quantized, Row, input_biases
from train.parts import over_channels
from train.scan import Neuron, plain_forward


class _Driven(NamedTuple):
    """What the spikes of a population follow from: current [T, B, *shape], and what broadcasts to a step of it."""

    current: Tensor
    bias: Tensor
    alpha: Tensor
    beta: Tensor
    threshold: Tensor


def rounding_costs(
    layers: Sequence[FoldedLayer],
    quantized: Sequence[Quantized],
    network: IntegerNetwork,
    inputs: np.ndarray,
    recorded: Mapping[str, np.ndarray],
) -> dict[str, Row]:
    """Columns for the first row of every population; `quantized` and `network` are what became of the layers.

    inputs: uint8 [T, B, *input_shape], as the float network saw them; recorded: what its populations emitted then.
    `neuron_steps` are all there are, and `changed_by_weights` so many of them whose spike comes or goes where the
    weights alone are rounded; likewise by threshold, bias and decays. An input that is a bias has no weights: they are
    rounded as bias. A readout has no spikes but currents: `current_error_by_weights`, and by bias, are root mean square
    errors in standard deviations of the current, None where it has none. Time weights come after all spikes.
    """
    emitted = {name: torch.from_numpy(raster).double() for name, raster in {INPUT: inputs, **recorded}.items()}
    found = {}
    for layer, made in zip(layers, quantized, strict=True):
        floats, integers = (_driven(each, emitted) for each in (layer, _rounded(layer, made, network[layer.name])))
        integers = integers._replace(threshold=_over(made.threshold_mant.reshape(-1) / made.scale, layer))
        if layer.input_is_bias:
            mantissas = torch.from_numpy(input_biases(layers, network, inputs)[0].astype(np.float64))
            unit = 2.0**made.bias_exp / (float(made.scale) * STATE_UNIT)
            integers = integers._replace(bias=mantissas * unit)
        found[layer.name] = _errors(floats, integers) if layer.neuron == "none" else _changes(layer, floats, integers)
    return found


def _changes(layer: FoldedLayer, floats: _Driven, integers: _Driven) -> Row:
    one_rounded = {
        "weights": floats._replace(current=integers.current),
        "threshold": floats._replace(threshold=integers.threshold),
        "bias": floats._replace(bias=integers.bias),
        "decays": floats._replace(alpha=integers.alpha, beta=integers.beta),
    }
    if layer.input_is_bias:
        del one_rounded["weights"]
    spikes = _spikes(layer, floats)
    counts = {f"changed_by_{what}": int((_spikes(layer, of) != spikes).sum()) for what, of in one_rounded.items()}
    return {"neuron_steps": spikes.numel(), **counts}


def _errors(floats: _Driven, integers: _Driven) -> Row:
    spread = float((floats.current + floats.bias).std(correction=0))
    errors = {"weights": integers.current - floats.current, "bias": integers.bias - floats.bias}
    return {
        f"current_error_by_{what}": float(error.square().mean().sqrt()) / spread if spread else None
        for what, error in errors.items()
    }


def _rounded(layer: FoldedLayer, made: Quantized, population: Population) -> FoldedLayer:
    """The layer that its integers stand for, in floats that tell them exactly; its threshold aside."""
    return replace(
        layer,
        connections=tuple(
            replace(floats, weight=grid.weight * over_rows(1 / grid.scale, grid.weight))
            for floats, grid in zip(layer.connections, made.grids, strict=False)  # a bias has none
        ),
        bias=made.bias.reshape(-1) / (made.scale * STATE_UNIT),
        alpha=population.alpha,
        beta=population.beta,
    )


def _driven(layer: FoldedLayer, emitted: Mapping[str, Tensor]) -> _Driven:
    sources = [emitted[connection.source] for connection in layer.connections]
    steps, samples = emitted[INPUT].shape[:2]
    current = torch.zeros(steps, samples, *layer.shape, dtype=torch.float64)
    for connection, spikes in zip(layer.connections, sources, strict=True):
        arriving = conducted(connection, spikes[: steps - connection.delay].flatten(0, 1))
        current[connection.delay :] += arriving.view(-1, samples, *layer.shape)
    bias = _over(layer.bias, layer)
    if layer.input_is_bias:
        current, bias = torch.zeros_like(current), current[0] + bias
    alpha, beta = (torch.as_tensor(share, dtype=torch.float64) for share in (layer.alpha, layer.beta))
    return _Driven(current, bias, alpha, beta, torch.tensor(layer.threshold, dtype=torch.float64))


def _over(values: np.ndarray, layer: FoldedLayer) -> Tensor:
    """Values [1] or [O] in the shape that broadcasts over a step of the layer."""
    return over_channels(torch.from_numpy(values), len(layer.shape))


def _spikes(layer: FoldedLayer, driven: _Driven) -> Tensor:
    """1.0 where a neuron fires, float64 [T, B * neurons]."""
    current, *shared = driven
    bias, alpha, beta, thresholds = (values.expand(current.shape[1:]).flatten() for values in shared)
    # The scan has one threshold, so each neuron's units are stretched until its own is that one.
    stretch = layer.threshold / thresholds
    hard, late = layer.reset.startswith("hard"), layer.reset.endswith("late")
    neuron = Neuron(alpha, beta, layer.threshold, hard, layer.floor, late)
    return plain_forward(current.flatten(1) * stretch, bias * stretch, neuron)[0]
