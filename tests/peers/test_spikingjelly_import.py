"""A module that was trained in SpikingJelly becomes a network with the same spikes, in either of its step modes."""

import numpy as np
import pytest
import torch
from torch import nn

from base.errors import UserError

pytestmark = pytest.mark.peers
neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")

from spikingjelly.activation_based import functional, layer  # noqa: E402

from train.frameworks.finding import take  # noqa: E402
from train.frameworks.spikingjelly import from_spikingjelly  # noqa: E402

HIDDEN = 9


def with_k(k, **options):
    node = neuron.KLIFNode(**options)
    node.k.data.fill_(k)
    return node


NODES = {
    "if": lambda: neuron.IFNode(),
    "if, soft": lambda: neuron.IFNode(v_reset=None, v_threshold=1.5),
    "if, rests below": lambda: neuron.IFNode(v_reset=-0.5),
    "lif": lambda: neuron.LIFNode(tau=2.0, v_threshold=0.6),
    "lif, soft": lambda: neuron.LIFNode(tau=3.0, v_reset=None, v_threshold=0.4),
    "lif, input whole": lambda: neuron.LIFNode(tau=3.0, decay_input=False),
    "lif, rests below": lambda: neuron.LIFNode(tau=2.5, v_reset=-0.3, v_threshold=0.2),
    "lif, detached": lambda: neuron.LIFNode(v_threshold=0.5, detach_reset=True),
    "parametric": lambda: neuron.ParametricLIFNode(init_tau=2.7, v_threshold=0.5),
    "parametric, soft, input whole": lambda: neuron.ParametricLIFNode(v_reset=None, decay_input=False),
    "klif": lambda: with_k(1.3, v_threshold=0.5),
    "klif, soft, input whole": lambda: with_k(0.8, v_reset=None, decay_input=False, tau=3.0),
    "klif, reset scaled": lambda: with_k(1.9, v_reset=None, scale_reset=True, v_threshold=0.5),
}


def binary(*shape):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4).to(torch.uint8)


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", NODES)
def test_every_option_that_has_an_exact_form_keeps_all_spikes(name, mode):
    torch.manual_seed(2)
    dense, node = layer.Linear(12, HIDDEN), NODES[name]()
    dense.weight.data.mul_(3)
    module = nn.Sequential(dense, node)
    functional.set_step_mode(module, mode)
    inputs = binary(100, 4, 12)
    network, _ = from_spikingjelly(module, inputs)
    functional.set_step_mode(module, "m")
    functional.reset_net(module)
    with torch.no_grad():
        expected = module.double()(inputs.double())
    assert np.array_equal(network.double().rasters(inputs)["layer0"].numpy(), expected.numpy())
    assert 0.05 < expected.mean() < 0.95


def convolutional(mode):
    torch.manual_seed(0)
    module = nn.Sequential(
        layer.Conv2d(2, 6, 3, padding=1, bias=False),
        layer.BatchNorm2d(6),
        neuron.IFNode(),
        layer.MaxPool2d(2),
        layer.Conv2d(6, 6, 3, padding=1),
        neuron.IFNode(),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(24, 10),
        neuron.IFNode(v_threshold=0.5),
    )
    functional.set_step_mode(module, mode)
    return module


@pytest.mark.parametrize("mode", ["s", "m"])
def test_its_own_layers_are_torchs_here(mode):
    network, _ = from_spikingjelly(convolutional(mode), binary(20, 3, 2, 8, 8))
    assert {type(part).__module__.split(".")[0] for part in network.modules()} == {"torch", "train"}
    assert all(raster.any() for raster in network.rasters(binary(20, 3, 2, 8, 8)).values())


@pytest.mark.parametrize("mode", ["s", "m"])
def test_what_the_module_itself_emits_is_told_by_population(mode):
    inputs = binary(20, 3, 2, 8, 8)
    found = take(convolutional(mode), inputs[:, :2])
    theirs, ours = found.rasters(inputs), found.network.double().rasters(inputs)
    assert list(theirs) == ["layer0", "layer4", "layer8"]
    assert all(torch.equal(raster, ours[name]) for name, raster in theirs.items())


def test_containers_that_merge_steps_and_samples_are_seen_through():
    torch.manual_seed(0)
    module = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)),
        neuron.IFNode(step_mode="m"),
        layer.SeqToANNContainer(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(24, 10)),
        neuron.IFNode(v_threshold=0.3, step_mode="m"),
    )
    network, _ = from_spikingjelly(module, binary(20, 3, 2, 8, 8))
    assert [stage.name for stage in network.stages] == ["layer0_0", "layer2_2"]
    assert all(raster.any() for raster in network.rasters(binary(20, 3, 2, 8, 8)).values())


def test_a_voltage_equal_to_the_threshold_spikes_as_there():
    module = nn.Sequential(nn.Linear(1, 1, bias=False), neuron.IFNode())
    module[0].weight.data.fill_(0.5)
    network, differences = from_spikingjelly(module, torch.ones(6, 1, 1, dtype=torch.uint8))
    assert network.double().rasters(torch.ones(6, 1, 1))["layer0"].flatten().tolist() == [0, 1, 0, 1, 0, 1]
    assert ("v >= threshold", "v > the float below it") in [(row.theirs, row.ours) for row in differences]


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (
            lambda: neuron.KLIFNode(v_reset=-0.5),
            "layer 1, SpikingJelly's KLIFNode: v_reset = -0.5: KLIF's floor is at 0",
        ),
        (lambda: with_k(4.0), "k = 4, with which no decay here can follow; it may be 1.96"),
        (lambda: neuron.LIFNode(v_reset=1.5), "layer 1, SpikingJelly's LIFNode: threshold = .* must be above 0"),
        (lambda: neuron.QIFNode(), "layer 1 is SpikingJelly's QIFNode, which no neuron here can say"),
        (lambda: neuron.PSN(T=20), "layer 1 is SpikingJelly's PSN, which no neuron here can say"),
    ],
)
def test_every_option_without_an_exact_form_is_refused_with_the_reason(node, text):
    with pytest.raises(UserError, match=text):
        from_spikingjelly(nn.Sequential(nn.Linear(12, HIDDEN), node()), binary(20, 2, 12))
