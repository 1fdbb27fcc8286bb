"""What each rounding costs: one quantity of one population rounded, all else as in the float network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_fold import BIASED, NETWORKS, biased, run_folded, shown, trained_a_little
from torch import nn

from quantize.cost import rounding_costs
from quantize.fold import FoldedLayer, fold, unfolded
from quantize.integer_network import IntegerNetwork
from quantize.precision import Precision
from quantize.scales import input_biases, quantize, quantize_each
from train.network import SpikingNetwork
from train.neurons import LIF

COARSE = Precision(3, calibration="error")


def costs_of(network: SpikingNetwork, inputs: torch.Tensor, precision: Precision = COARSE) -> tuple:
    """Layers, integers and scales by population, and what `rounding_costs` says of them."""
    layers = fold(network)
    integers, _ = quantize(layers, network.input_shape, network.payload_bits, precision)
    each = quantize_each(layers, network.payload_bits, precision)
    recorded = {name: raster.numpy() for name, raster in network.rasters(inputs).items()}
    scales = {layer.name: made.scale for layer, made in zip(layers, each, strict=True)}
    return layers, integers, scales, rounding_costs(layers, each, integers, inputs.numpy(), recorded)


def rounded(layer: FoldedLayer, integers: IntegerNetwork, scale: np.ndarray) -> dict[str, FoldedLayer]:
    """The layer with one quantity after the other as its integers mean it."""
    population, each = integers[layer.name], (-1, *[1] * (len(layer.shape) - 1))
    connections = tuple(
        replace(old, weight=(new.weight.T * 2.0**new.exponent / scale).T)
        for old, new in zip(layer.connections, integers.into(layer.name), strict=True)
    )
    thresholds = torch.from_numpy(
        np.broadcast_to(population.threshold_mant.reshape(-1) / scale, len(layer.bias)).copy()
    )
    kept_u, kept_v = 4095 - population.decay_u, 4096 - population.decay_v
    return {
        "weights": replace(layer, connections=connections),
        "threshold": replace(layer, threshold=thresholds.reshape(each)),
        "bias": replace(layer, bias=population.bias.reshape(-1) / (64 * scale)),
        "decays": replace(layer, alpha=kept_u / 4096, beta=kept_v / 4096),
    }


@pytest.mark.parametrize(("readout", "per_channel"), [("spikes", False), ("current", False), ("spikes", True)])
@pytest.mark.parametrize("name", NETWORKS)
def test_costs_are_those_of_a_rounded_twin_that_listens_beside_the_float_population(
    name: str, readout: str, per_channel: bool
) -> None:
    notation, settings = NETWORKS[name]
    payload_bits = 4 if "norms" in name else 1
    network, inputs = trained_a_little(notation, readout, settings, payload_bits), shown(payload_bits)
    layers, integers, scales, found = costs_of(network, inputs, replace(COARSE, per_channel=per_channel))
    assert list(found) == [layer.name for layer in layers]
    for layer in layers:
        twins = rounded(layer, integers, scales[layer.name])
        beside = (*layers, *(replace(twin, name=what) for what, twin in twins.items()))
        emitted, columns = run_folded(beside, inputs.numpy()), found[layer.name]
        own = emitted[layer.name]
        if layer.neuron == "none":
            assert set(columns) == {"current_error_by_weights", "current_error_by_bias"}
            for what in ("weights", "bias"):
                expected = np.sqrt(np.square(emitted[what] - own).mean()) / own.std()
                assert columns[f"current_error_by_{what}"] == pytest.approx(expected, rel=1e-6)
            continue
        assert columns["neuron_steps"] == own.size
        assert len(columns) == 5
        for what in twins:
            assert columns[f"changed_by_{what}"] == (emitted[what] != own).sum(), (layer.name, what)
    if not any(stage.neuron is None for stage in network.stages):
        assert sum(row.get("changed_by_weights", 0) for row in found.values()) > 0


def test_weights_put_into_the_torch_network_itself_change_as_many_spikes() -> None:
    network, inputs = trained_a_little("4C3-AP2-8-4", "spikes", {"alpha": 0.3, "threshold": 0.4}, 1), shown(1)
    _, integers, scales, found = costs_of(network, inputs)
    signals = {"input": network.read(inputs), **network.spikes(inputs)}
    for stage in network.stages:
        (link,), (connection,) = stage.links, integers.into(stage.name)
        weight = unfolded(link, connection.weight) * 2.0**connection.exponent / scales[stage.name]
        share = 1 / 4 if link.before and isinstance(link.before[0], nn.AvgPool2d) else 1
        with torch.no_grad():
            link.synapse.weight.copy_(torch.from_numpy(weight / share))
        spikes, _ = stage.forward(signals)
        assert found[stage.name]["changed_by_weights"] == int((spikes != signals[stage.name]).sum()) > 0


@pytest.mark.parametrize("name", BIASED)
def test_of_an_input_that_is_a_bias_the_loaded_mantissas_are_what_is_rounded(name: str) -> None:
    network, inputs = biased(name)
    layers, integers, scales, found = costs_of(network, inputs)
    first, columns = layers[0], found[layers[0].name]
    loaded = input_biases(layers, integers, inputs.numpy())[0].astype(float) * 2.0 ** integers[first.name].bias_exp
    own = run_folded(layers, inputs.numpy())[first.name]
    flat = {share: np.broadcast_to(getattr(first, share), first.shape).flatten() for share in ("alpha", "beta")}
    changed = 0
    for sample, bias in enumerate(loaded.reshape(len(loaded), -1) / (64 * scales[first.name])):
        twin = replace(first, shape=bias.shape, connections=(), bias=bias, input_is_bias=False, **flat)
        spikes = run_folded((twin,), inputs.numpy()[:, [sample]])[first.name]
        changed += int((spikes.reshape(own[:, [sample]].shape) != own[:, [sample]]).sum())
    assert (columns["neuron_steps"], columns["changed_by_bias"]) == (own.size, changed)
    assert columns["changed_by_threshold"] == 0
    assert "changed_by_weights" not in columns


def test_what_is_no_rounding_costs_nothing() -> None:
    """Weights, threshold, bias and decays that the registers hold exactly."""
    network = SpikingNetwork((4,), [nn.Linear(4, 3), LIF(alpha=0.5, beta=0.75)]).double()
    with torch.no_grad():
        network.stages[0].synapse.weight.copy_(torch.tensor([[1, 0.5, -0.5, -1]] * 3) * 254 / 256)
        network.stages[0].synapse.bias.fill_(0.25)
    *_, scales, found = costs_of(network, shown(1)[:, :, 0, 0, :4], Precision(calibration="error"))
    assert scales["dense1"] == 2.0 ** round(np.log2(scales["dense1"]))
    (columns,) = found.values()
    assert columns.pop("neuron_steps") == 7 * 6 * 3
    assert set(columns.values()) == {0}


def test_a_readout_whose_current_never_changes_has_no_spread_to_measure_by() -> None:
    network = trained_a_little("4", "current", {}, 1)
    with torch.no_grad():
        network.stages[0].synapse.weight.zero_()
        network.stages[0].synapse.bias.zero_()
    *_, found = costs_of(network, shown(1))
    assert found["dense1"] == {"current_error_by_weights": None, "current_error_by_bias": None}
