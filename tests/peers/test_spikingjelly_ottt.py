"""Side by side with SpikingJelly's OTTT: the same spikes, gradients and updates, of plain and standardised layers.

Two things differ by design and are kept out: theirs has no input trace, and gives a readout without neurons the trace
of neurons it does not have.
"""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from train import online
from train.network import SpikingNetwork
from train.neurons import LIF
from train.parts import ScaledWS

pytestmark = pytest.mark.peers
layer, neuron, learning = (
    pytest.importorskip(f"spikingjelly.activation_based.{name}", exc_type=ImportError)
    for name in ("layer", "neuron", "learning")
)

NEURONS = partial(LIF, beta=0.5, reset="soft", surrogate="sigmoid")  # theirs: tau 2, soft reset, sigmoid of slope 4
STEPS, BATCH = 9, 4


class Scale(nn.Module):
    """The paper's constant behind every neuron, as SpikingJelly's own VGG has it."""

    def forward(self, spikes: Tensor) -> Tensor:
        return 2.74 * spikes


def dense() -> tuple[SpikingNetwork, nn.Module]:
    ours = SpikingNetwork((6,), [nn.Linear(6, 12), NEURONS(), nn.Linear(12, 8), NEURONS(), nn.Linear(8, 5), NEURONS()])
    theirs = []
    for inputs, outputs in ((6, 12), (12, 8), (8, 5)):
        theirs += [layer.Linear(inputs, outputs), neuron.OTTTLIFNode()]
    return ours, layer.OTTTSequential(*theirs)


def standardised() -> tuple[SpikingNetwork, nn.Module]:
    ours = SpikingNetwork(
        (2, 6, 6),
        [
            *(nn.Conv2d(2, 5, 3, padding=1), ScaledWS(5), NEURONS(), nn.AvgPool2d(2)),
            *(nn.Conv2d(5, 4, 3, padding=1), ScaledWS(4), NEURONS(), nn.Flatten()),
            *(nn.Linear(36, 5), ScaledWS(5), NEURONS()),
        ],
    )
    theirs = layer.OTTTSequential(
        *(layer.WSConv2d(2, 5, 3, padding=1), neuron.OTTTLIFNode(), Scale(), layer.AvgPool2d(2)),
        *(layer.WSConv2d(5, 4, 3, padding=1), neuron.OTTTLIFNode(), Scale(), layer.Flatten()),
        *(layer.WSLinear(36, 5), neuron.OTTTLIFNode()),
    )
    return ours, theirs


def given(ours: SpikingNetwork, theirs: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Pairs of parameters set to be equal; the second one may have axes of size one behind."""
    ours.double()
    theirs.double().train()
    generator, pairs = torch.Generator().manual_seed(3), []
    own_layers = [link for stage in ours.stages for link in stage.links]
    their_layers = [part for part in theirs if isinstance(part, (nn.Linear, nn.Conv2d))]
    for link, part in zip(own_layers, their_layers, strict=True):
        pairs += [(link.synapse.weight, part.weight), (link.synapse.bias, part.bias)]
        if link.norm is not None:
            pairs.append((link.norm.gain, part.gain))
    with torch.no_grad():
        for own, their in pairs:
            own.uniform_(-0.5, 1.0, generator=generator)
            their.copy_(own.view_as(their))
    return pairs


@pytest.mark.parametrize("how", ["a", "o"])
@pytest.mark.parametrize("networks", [dense, standardised])
def test_the_same_spikes_gradients_and_updates_as_spikingjelly(networks, how) -> None:
    ours, theirs = networks()
    pairs = given(ours, theirs)
    before = copy.deepcopy([own for own, _ in pairs])
    generator = torch.Generator().manual_seed(4)
    spikes = torch.randint(0, 2, (STEPS, BATCH, *ours.input_shape), generator=generator).double()
    target = torch.rand(BATCH, 5, generator=generator, dtype=torch.float64)

    optimizer, state, emitted = torch.optim.SGD(ours.parameters(), lr=0.1), online.State(), []
    for frame in spikes.split(1):
        shown, state = online.step(ours, frame, state, input_trace=False)
        emitted.append(shown[ours.stages[-1].name])
        nn.functional.mse_loss(emitted[-1][0], target).backward()
        if how == "o":
            optimizer.step()
            optimizer.zero_grad()
    if how == "a":
        optimizer.step()

    _, expected = learning.online_learning.ottt_online_training(
        theirs,
        torch.optim.SGD(theirs.parameters(), lr=0.1),
        spikes.transpose(0, 1),
        target[:, None].expand(-1, STEPS, -1),
        nn.functional.mse_loss,
        online=how == "o",
    )
    output = torch.cat(emitted).detach()
    assert torch.equal(output, expected.transpose(0, 1))
    assert 0 < output.mean() < 1
    for (own, their), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(own, their.view_as(own))
        assert not torch.equal(own, old)
        if how == "a":
            torch.testing.assert_close(own.grad, their.grad.view_as(own))
