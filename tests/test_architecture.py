"""The notation gives the network it says, from the seed alone; a typo is pointed at."""

from functools import partial

import pytest
import torch
from torch import nn

from base.errors import UserError
from train.architecture import build
from train.neurons import LIF
from train.parts import Recurrent, ScaledWS, Skip, SumPool2d, TdBN
from train.presets import PRESETS, expand


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


def test_the_richer_notation_becomes_populations_and_their_links():
    network = build("8C3-BN-MP2-DP0.2-[8C3-BN-8C3-tdBN]-[16C3S2-BN]-R12-tdBN-10", (1, 8, 8), seed=0)
    assert [(stage.name, stage.output_shape) for stage in network.stages] == [
        ("conv1", (8, 8, 8)),
        ("pool2", (8, 4, 4)),
        ("residual3_conv1", (8, 4, 4)),
        ("residual3", (8, 4, 4)),
        ("residual4", (16, 2, 2)),
        ("recurrent5", (12,)),
        ("dense6", (10,)),
    ]
    by_name = {stage.name: stage for stage in network.stages}
    joined = {name: [(link.source, type(link.synapse)) for link in stage.links] for name, stage in by_name.items()}
    assert joined["residual3"] == [("residual3_conv1", nn.Conv2d), ("pool2", Skip)]
    assert joined["residual4"] == [("residual3", nn.Conv2d), ("residual3", nn.Conv2d)]
    across = by_name["residual4"].links[1]
    assert (across.synapse.kernel_size, across.synapse.stride, type(across.norm)) == ((1, 1), (2, 2), nn.BatchNorm2d)
    assert joined["recurrent5"] == [("residual4", Recurrent)]
    assert type(by_name["recurrent5"].links[0].norm) is TdBN
    assert [part.p for part in by_name["residual3_conv1"].links[0].before] == [0.2]


def test_a_current_readout_has_no_neurons():
    network = build("8-4", (6,), readout="current", seed=0)
    assert [stage.spiking for stage in network.stages] == [True, False]
    with pytest.raises(UserError, match="'spikes' or as 'current'"):
        build("8-4", (6,), readout="voltage", seed=0)


def test_tdbn_takes_the_threshold_of_its_neurons():
    network = build("8-tdBN-4", (6,), neuron=partial(LIF, threshold=0.3), seed=0)
    assert network.stages[0].links[0].norm.threshold == 0.3


def test_standardised_weights_start_with_the_gain_that_their_threshold_needs():
    first, last = build("8-WS-4", (6,), neuron=partial(LIF, threshold=0.3), seed=0).stages
    assert type(first.links[0].norm) is ScaledWS
    assert first.links[0].norm.gain.tolist() == [pytest.approx(0.3)] * 8
    assert last.links[0].norm is None


@pytest.mark.parametrize("threshold", [0.01, 30.0])
@pytest.mark.parametrize(
    "notation", ["16C3-BN-[16C3-BN-16C3-BN]-10", "8C3-tdBN-MP2-R32-BN-[32-16]-10", "16C3-WS-MP2-32-WS-10-WS"]
)
def test_fresh_weights_of_richer_networks_make_every_population_spike(notation, threshold):
    network = build(notation, (1, 8, 8), neuron=partial(LIF, threshold=threshold), seed=0)
    spikes = torch.bernoulli(torch.full((16, 32, 1, 8, 8), 0.3), generator=torch.Generator().manual_seed(0))
    for name, raster in network.rasters(spikes).items():
        assert 0 < raster.float().mean() < 0.8, name


@pytest.mark.parametrize(
    ("notation", "caret", "text"),
    [
        ("BN-10", 0, "before its norm"),
        ("16C3-AP2-BN-10", 9, "before its norm"),
        ("16C3-BN-BN-10", 8, "before its norm"),
        ("16C3-AP2-BN", 9, "before its norm"),
        ("DP-10", 2, "the share to drop"),
        ("DP1.0-10", 2, "the share to drop"),
        ("DP0.2.1-10", 2, "the share to drop"),
        ("16C3-[16C3-10", 13, "']', the end of the block"),
        ("16C3-[16C3]]-10", 11, "'-' or the end"),
        ("16C3-[]-10", 6, "a number of neurons"),
        ("16C3-[16C3-AP2]-10", 11, "as last layer of a block"),
        ("16C3-[16C3 ]-10", 10, "'G', '-' or ']'"),
        ("16C3-[16C3]", 5, "the number of classes"),
        ("R-10", 1, "recurrent neurons"),
        ("64-MP2-10", 3, "no maps"),
        ("4C3-[4C3P0-4C3]-10", 4, "cannot be reached by a stride"),
    ],
)
def test_a_typo_in_the_richer_notation_is_pointed_at(notation, caret, text):
    with pytest.raises(UserError) as caught:
        build(notation, (1, 7, 7), seed=0)
    assert text in str(caught.value)
    assert str(caught.value).splitlines()[2] == f"  {' ' * caret}^"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_network_for_small_and_larger_inputs(name):
    for shape in ((1, 8, 8), (2, 32, 32)):
        network = build(expand(name, shape, 10), shape, seed=0)
        assert network.stages[-1].output_shape == (10,)


def test_a_preset_leaves_out_only_pooling_of_single_pixels():
    assert expand("vggsnn", (2, 48, 48), 11).endswith("512C3-BN-AP2-11")
    assert expand("vggsnn", (1, 8, 8), 10).endswith("512C3-BN-512C3-BN-10")
    assert expand("16C3-10", (1, 8, 8), 10) == "16C3-10"
