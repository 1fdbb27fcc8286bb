"""Folding is exact before any rounding: pooled and folded layers give the same currents in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from base.errors import UserError
from quantize.fold import fold
from train.network import SpikingNetwork, SumPool2d
from train.neurons import LIF


def current(network: SpikingNetwork, maps: torch.Tensor) -> torch.Tensor:
    """What the network's own parts feed into its first population, bias included: [N, *shape]."""
    stage = network.stages[0]
    for part in stage.before:
        maps = part(maps)
    return stage.synapse(maps / (2**network.payload_bits - 1))


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_pooled_convolution_equals_one_strided_convolution(data: st.DataObject) -> None:
    draw = data.draw
    window, channels, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    conv = nn.Conv2d(
        channels * groups,
        2 * groups,
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 2)),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
    )
    pool = draw(st.sampled_from([nn.AvgPool2d, SumPool2d]))(window)
    shape = (channels * groups, 5 * window, 6 * window)
    network = SpikingNetwork(shape, [pool, conv, LIF()], payload_bits=draw(st.sampled_from([1, 4]))).double()
    (layer,) = fold(network)
    maps = torch.rand((2, *shape), dtype=torch.float64)
    folded = nn.functional.conv2d(maps, torch.from_numpy(layer.weight), torch.from_numpy(layer.bias), **layer.geometry)
    torch.testing.assert_close(folded, current(network, maps), rtol=1e-12, atol=1e-12)
    assert layer.shape == tuple(folded.shape[1:])


def test_pooled_dense_layer_equals_one_dense_layer() -> None:
    shape = (3, 8, 12)
    parts = [nn.AvgPool2d(2), SumPool2d(2), nn.Flatten(), nn.Linear(3 * 2 * 3, 7), LIF()]
    network = SpikingNetwork(shape, parts).double()
    (layer,) = fold(network)
    maps = torch.rand((4, *shape), dtype=torch.float64)
    folded = maps.flatten(1) @ torch.from_numpy(layer.weight).T + torch.from_numpy(layer.bias)
    torch.testing.assert_close(folded, current(network, maps), rtol=1e-12, atol=1e-12)


def test_folding_copies_the_neuron_and_leaves_the_network_alone() -> None:
    network = SpikingNetwork((4,), [nn.Linear(4, 2), LIF(0.5, 0.25, 2.0, reset="soft", floor=True)], payload_bits=4)
    before = network.stages[0].synapse.weight.detach().clone()
    (layer,) = fold(network)
    assert (layer.beta, layer.alpha, layer.threshold, layer.reset, layer.floor) == (0.5, 0.25, 2.0, "soft", True)
    assert torch.equal(network.stages[0].synapse.weight, before)
    assert np.array_equal(layer.weight, before.double().numpy() * (1 / 15))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    network = SpikingNetwork((4,), [nn.Linear(4, 2), LIF()])
    with torch.no_grad():
        network.stages[0].synapse.weight[1, 2] = value
    with pytest.raises(UserError, match=r"layer 'dense1': weight at \(1, 2\) is (nan|inf)"):
        fold(network)
