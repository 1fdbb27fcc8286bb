"""Our LIF and snnTorch's Leaky, told to reset in the step of the spike: same input, same spikes, same gradients.

Both spike strictly above the threshold, and told so, its reset is followed by the gradient, as ours is. Its arctan of
alpha = 2 has width 1; beta = 0.75 is one that it does not round.
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
