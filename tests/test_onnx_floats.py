"""The float network as ONNX fires torch's spikes: all of them where no sum rounds, else all but those whose membrane is
within rounding of the threshold."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from test_fold import shown, trained_a_little

from deploy.onnx import floats
from deploy.onnx.backend import executor, run_scan, run_step
from deploy.onnx.graph import scan_model, step_model
from quantize.fold import FoldedLayer, fold
from train.architecture import build
from train.network import SpikingNetwork
from train.neurons import LIF

HALF_ULP = 2.0**-24  # of float32: the largest relative error of one rounding


def every_way(network: SpikingNetwork, inputs: np.ndarray) -> list[dict[str, np.ndarray]]:
    """What both graphs emit in onnxruntime, and the step graph in onnx's evaluator: [T, B, *shape] by population."""
    layers = fold(network)
    step, about = floats.build(layers, network.input_shape), floats.about(layers)
    one, many = step_model(step, about), scan_model(step, about, traces=True)
    for model in (one, many):
        onnx.checker.check_model(model, full_check=True)
    ran = (
        run_step(executor(one), step, inputs),
        run_scan(executor(many), step, inputs, traces=True),
        run_step(ReferenceEvaluator(one).run, step, inputs),
    )
    emitted = [(layer.name, "spikes" if layer.neuron == "lif" else "current") for layer in layers]
    return [{name: told[f"{name}/{what}"] for name, what in emitted} for told in ran]


def rounded(network: SpikingNetwork) -> SpikingNetwork:
    """The network with weights and biases twice as large, so that all populations fire, and multiples of 1/16, so that
    float32 holds all their sums exactly."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_((parameter * 32).round() / 16)
    return network


DYADIC = {
    "dense, soft reset": ("12-9-4", {"alpha": 0.5, "reset": "soft"}),
    "convolutions around pooling": ("6C3-AP2-5C3-SP2-4", {"beta": 0.5, "floor": True}),
    "groups and dilation": ("4C3-4C3D2G2-4", {"alpha": 0.25}),
    "max pooling": ("4C3-MP2-6C3-4", {}),
    "late hard reset": ("6C3-R8-4", {"alpha": 0.5, "reset": "hard-late"}),
    "late soft reset and floor": ("6C3-R8-4", {"reset": "soft-late", "floor": True}),
    "recurrence": ("R12-R9-4", {"alpha": 0.5}),
    "residual": ("4C3-[4C3-4C3]-AP2-[6-6]-4", {"beta": 0.5, "threshold": 0.5}),
}


@pytest.mark.parametrize("readout", ["spikes", "current"])
@pytest.mark.parametrize("name", DYADIC)
def test_sums_that_do_not_round_give_the_spikes_of_torch(name: str, readout: str) -> None:
    notation, settings = DYADIC[name]
    network = build(notation, (1, 8, 8), neuron=lambda: LIF(**settings), readout=readout, seed=3)
    network = rounded(network).eval()
    inputs = shown(1)[:5]
    expected = network.rasters(inputs)
    assert all(raster.any() for raster in expected.values()), [*expected]
    for emitted in every_way(network, inputs.numpy()):
        for population, raster in expected.items():
            assert np.array_equal(emitted[population], raster.numpy()), population


def test_dyadic_input_as_a_bias_gives_the_spikes_of_torch() -> None:
    """The unit of one-bit values is 1, so that they too are exact."""
    neuron = {"alpha": 0.5, "reset": "soft"}
    network = build("4C3S2-8-4", (1, 8, 8), neuron=lambda: LIF(**neuron), input_is_bias=True, seed=3)
    network = rounded(network).eval()
    inputs = shown(1)[:1].expand(5, -1, -1, -1, -1)
    expected = network.rasters(inputs)
    for emitted in every_way(network, inputs.numpy()):
        for population, raster in expected.items():
            assert np.array_equal(emitted[population], raster.numpy()), population


def error_bound(layers: tuple[FoldedLayer, ...], steps: int, payload_max: int) -> dict[str, float]:
    """How far rounding alone can move a membrane, by population: terms x half an ulp x the largest sum of magnitudes.

    A membrane is a sum of at most `steps` times each row's products and the bias, every share kept being at most 1.
    Each product is rounded in folding and in itself, each partial sum once.
    """
    bounds = {}
    for layer in layers:
        rows = [np.abs(c.weight).reshape(len(c.weight), -1) for c in layer.connections]
        most = [payload_max if c.source == "input" else 1 for c in layer.connections]
        magnitude = steps * sum(
            float((row.sum(1) * largest).max()) for row, largest in zip(rows, most, strict=True)
        ) / (1 - float(np.max(layer.alpha))) + steps * float(np.abs(layer.bias).max())  # fmt: skip
        terms = sum(row.shape[1] for row in rows) + 8 * steps
        bounds[layer.name] = terms * HALF_ULP * magnitude
    return bounds


@pytest.mark.parametrize(
    ("notation", "settings", "payload_bits"),
    [
        ("6C3-BN-AP2-12-tdBN-4", {"alpha": 0.3}, 4),
        ("4C3-BN-[4C3-BN-4C3-BN]-R8-4", {"threshold": 0.4, "reset": "soft", "floor": True}, 1),
        ("6C3-BN-12-4", {"neuron": "klif"}, 1),
    ],
)
def test_where_a_sample_first_differs_from_torch_the_membrane_is_within_rounding_of_the_threshold(
    notation: str, settings: dict[str, object], payload_bits: int
) -> None:
    """Up to there both sides had the same spikes, so that only rounding can have parted them; what follows may differ
    freely. The margin is at most twice what rounding can do, once on either side."""
    network = trained_a_little(notation, "spikes", settings, payload_bits).float()
    generator = torch.Generator().manual_seed(6)
    inputs = torch.randint(0, 2**payload_bits, (8, 200, 1, 8, 8), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        spikes, membranes = network.spikes_and_membranes(inputs)
    layers = fold(network)
    bounds = error_bound(layers, len(inputs), 2**payload_bits - 1)
    for layer in layers:  # few enough that an error of any other kind would show
        near = np.abs(membranes[layer.name].numpy() - layer.threshold) <= 2 * bounds[layer.name]
        assert near.mean() < 0.01, layer.name
    for emitted in every_way(network, inputs.numpy()):
        for sample in range(inputs.shape[1]):
            differs = {
                layer.name: emitted[layer.name][:, sample] != spikes[layer.name][:, sample].numpy() for layer in layers
            }
            if not any(cells.any() for cells in differs.values()):
                continue
            first = min(int(np.argwhere(cells)[0][0]) for cells in differs.values() if cells.any())
            layer = next(layer for layer in layers if differs[layer.name][first].any())
            reached = membranes[layer.name][first, sample].numpy()[differs[layer.name][first]]
            assert (np.abs(reached - layer.threshold) <= 2 * bounds[layer.name]).all(), (layer.name, first, sample)
        fired = np.mean([emitted[layer.name].mean() for layer in layers])
        assert 0.01 < fired < 0.9
