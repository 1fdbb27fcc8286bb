"""The notation gives the network it says, from the seed alone; a typo is pointed at."""

from functools import partial

import pytest
import torch
from torch import nn

from base.errors import UserError
from train.architecture import build
from train.network import SumPool2d
from train.neurons import LIF


@pytest.mark.smoke
def test_notation_becomes_populations():
    network = build("16C3-AP2-128-10", (1, 8, 8), seed=0)
    assert [(stage.name, stage.output_shape) for stage in network.stages] == [
        ("conv1", (16, 8, 8)),
        ("dense2", (128,)),
        ("dense3", (10,)),
    ]
    assert [type(part) for part in network.stages[1].before] == [nn.AvgPool2d, nn.Flatten]


def test_options_of_a_convolution_come_in_any_order():
    network = build("8C3S2P0-8C5G4D2P1-SP2-3", (2, 21, 21), seed=0)
    first, second = (network.stages[i].synapse for i in (0, 1))
    assert (first.stride, first.padding, first.dilation, first.groups) == ((2, 2), (0, 0), (1, 1), 1)
    assert (second.stride, second.padding, second.dilation, second.groups) == ((1, 1), (1, 1), (2, 2), 4)
    assert network.stages[1].output_shape == (8, 4, 4)
    assert isinstance(network.stages[2].before[0], SumPool2d)


def test_neurons_and_payload_are_passed_on():
    network = build("5-2", (3,), neuron=partial(LIF, beta=0.25), payload_bits=4, seed=0)
    assert [stage.neuron.beta for stage in network.stages] == [0.25, 0.25]
    assert network.payload_bits == 4


def test_weights_follow_from_the_seed_and_leave_the_global_state_alone():
    before = torch.get_rng_state()
    first, again, other = (build("8-4", (6,), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.stages[0].synapse.weight, again.stages[0].synapse.weight)
    assert not torch.equal(first.stages[0].synapse.weight, other.stages[0].synapse.weight)


@pytest.mark.parametrize("threshold", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("notation", ["64-10", "16C3-AP2-128-10"])
def test_fresh_weights_make_every_population_spike(notation, threshold):
    network = build(notation, (1, 8, 8), neuron=partial(LIF, threshold=threshold), seed=0)
    spikes = torch.bernoulli(torch.full((16, 32, 1, 8, 8), 0.3), generator=torch.Generator().manual_seed(0))
    for name, raster in network.rasters(spikes).items():
        assert 0 < raster.float().mean() < 0.6, name


@pytest.mark.parametrize(
    ("notation", "caret", "text"),
    [
        ("", 0, "a number of neurons"),
        ("64-x", 3, "a number of neurons"),
        ("64-", 3, "a number of neurons"),
        ("64--10", 3, "a number of neurons"),
        ("64 10", 2, "'-' or the end"),
        ("16C-10", 3, "the size of the kernel"),
        ("16C3S-10", 5, "the stride"),
        ("16C3S0-10", 5, "at least 1"),
        ("16C3S1S1-10", 6, "'S', 'P', 'D', 'G', '-' or the end"),
        ("16C3Q1-10", 4, "'S', 'P', 'D', 'G', '-' or the end"),
        ("AP-10", 2, "the size of the window"),
        ("0-10", 0, "at least 1"),
        ("16C3-AP2", 5, "the number of classes"),
        ("64-16C3-10", 3, "no maps"),
        ("15C3G2-10", 0, "groups that divide"),
    ],
)
def test_a_typo_is_pointed_at(notation, caret, text):
    with pytest.raises(UserError, match=text) as caught:
        build(notation, (1, 8, 8), seed=0)
    lines = str(caught.value).splitlines()
    assert lines[1] == f"  {notation}"
    assert lines[2] == f"  {' ' * caret}^"


def test_a_layer_that_does_not_fit_is_named_as_it_was_written():
    with pytest.raises(UserError, match="layer AP3 pools windows of 3 x 3 over maps of 8 x 8"):
        build("4C3-AP3-10", (1, 8, 8), seed=0)
