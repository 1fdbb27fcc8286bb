"""Our LIF and snnTorch's Leaky and Synaptic: same input, same spikes, same gradients.

Both spike strictly above the threshold. Told to reset in the step of the spike, its reset is followed by the gradient,
as ours is; a reset a step late is detached. Its arctan of alpha = 2 has width 1; beta = 0.75 is one that it does not
round.
"""

import pytest
import snntorch
import torch
from snntorch import surrogate

from train.neurons import LIF

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(("reset", "mechanism"), [("hard", "zero"), ("soft", "subtract")])
def test_leaky(reset, mechanism):
    generator = torch.Generator().manual_seed(3)
    current, weights = torch.randn(2, 12, 4, 50, dtype=torch.float64, generator=generator)
    # Never above two thresholds, where its soft reset would begin the next step with another one.
    current = (current * 0.5 + 0.2).clamp(max=1.1).requires_grad_()
    leaky = snntorch.Leaky(0.75, spike_grad=surrogate.atan(alpha=2.0), reset_mechanism=mechanism, reset_delay=False)
    membrane, fired = torch.zeros(4, 50, dtype=torch.float64), []
    for arriving in current:
        spike, membrane = leaky.double()(arriving, membrane)
        fired.append(spike)
    expected = torch.stack(fired)
    spikes = LIF(beta=0.75, reset=reset, surrogate="arctan", width=1.0)(current)
    assert torch.equal(spikes, expected)
    assert 0.05 < spikes.mean() < 0.6
    gradients = [torch.autograd.grad((raster * weights).sum(), current)[0] for raster in (spikes, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)  # its spikes are float32, and so is what comes back


@pytest.mark.parametrize(
    ("alpha", "mechanism", "reset"),
    [
        (0.0, "subtract", "soft-late"),
        (0.0, "zero", "hard"),
        (0.5, "subtract", "soft-late"),
        (0.5, "zero", "hard-late"),
    ],
)
def test_neurons_that_reset_as_they_do_unless_told_otherwise(alpha, mechanism, reset):
    generator = torch.Generator().manual_seed(3)
    current, weights = torch.randn(2, 12, 4, 50, dtype=torch.float64, generator=generator)
    current = (current + 0.3).requires_grad_()
    options = {"spike_grad": surrogate.atan(alpha=2.0), "reset_mechanism": mechanism, "init_hidden": True}
    theirs = snntorch.Synaptic(alpha, 0.75, **options) if alpha else snntorch.Leaky(0.75, **options)
    expected = torch.stack([theirs.double()(arriving) for arriving in current])
    spikes = LIF(beta=0.75, alpha=alpha, reset=reset, surrogate="arctan", width=1.0, detach_reset=True)(current)
    assert torch.equal(spikes, expected)
    assert 0.05 < spikes.mean() < 0.6
    gradients = [torch.autograd.grad((raster * weights).sum(), current)[0] for raster in (spikes, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)
