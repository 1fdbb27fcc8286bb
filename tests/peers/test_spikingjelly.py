"""Our LIF and SpikingJelly's nodes: same input, same spikes, same gradients.

    uv run --group peers pytest -m peers

Its nodes spike at the threshold and ours above it, which random currents do not tell apart. The shapes are set to the
same peak and area: sigmoid of alpha = 4 and arctan of alpha = 2 have width 1.
"""

import itertools

import pytest
import torch
from torch import nn

from train.neurons import LIF

pytestmark = pytest.mark.peers
neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate", reason="SpikingJelly is not installed")

TAU = 2.0
MODES = list(itertools.product((False, True), ("hard", "soft"), (False, True), ("sigmoid", "arctan")))


def theirs(kind, decay_input, reset, detached, shape, **settings):
    slope = surrogate.Sigmoid(alpha=4.0) if shape == "sigmoid" else surrogate.ATan(alpha=2.0)
    return kind(
        tau=TAU,
        decay_input=decay_input,
        v_reset=0.0 if reset == "hard" else None,
        surrogate_function=slope,
        detach_reset=detached,
        step_mode="m",
        **settings,
    ).double()


def ours(reset, detached, shape, **settings):
    return LIF(beta=1 - 1 / TAU, reset=reset, detach_reset=detached, surrogate=shape, width=1.0, **settings).double()


def currents(decay_input):
    """Current [T, B, N] for their node, and what it makes of it before integration."""
    generator = torch.Generator().manual_seed(7)
    current = torch.randn(12, 4, 50, dtype=torch.float64, generator=generator) + 0.3
    return (current * TAU if decay_input else current).requires_grad_(), 1 / TAU if decay_input else 1.0


def assert_same(mine, other, decay_input, *parameters):
    """parameters: pairs of what both of them learn."""
    current, gain = currents(decay_input)
    weights = torch.randn(current.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    spikes, expected = mine(current * gain), other(current)
    assert torch.equal(spikes, expected)
    assert 0.05 < spikes.mean() < 0.6
    learned = [[current, *group] for group in zip(*parameters, strict=True)] or [[current], [current]]
    found, wanted = (
        torch.autograd.grad((raster * weights).sum(), leaves)
        for raster, leaves in zip((spikes, expected), learned, strict=True)
    )
    for gradient, expected_gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("decay_input", "reset", "detached", "shape"), MODES)
def test_lif_node(decay_input, reset, detached, shape):
    mine, other = ours(reset, detached, shape), theirs(neuron.LIFNode, decay_input, reset, detached, shape)
    assert_same(mine, other, decay_input)


@pytest.mark.parametrize("k", [0.7, 1.4])
@pytest.mark.parametrize("scale_reset", [False, True])
@pytest.mark.parametrize(("decay_input", "reset", "detached", "shape"), MODES)
def test_klif_node(decay_input, reset, detached, shape, scale_reset, k):
    mine = ours(reset, detached, shape, neuron="klif", scale_reset=scale_reset)
    other = theirs(neuron.KLIFNode, decay_input, reset, detached, shape, scale_reset=scale_reset)
    for node in (mine, other):
        nn.init.constant_(node.k, k)
    assert_same(mine, other, decay_input, (mine.k, other.k))
