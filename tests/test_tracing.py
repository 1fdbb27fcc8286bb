"""A module with a forward() of its own is the network that the same parts make as a list; what it may not do is refused
by name."""

import numpy as np
import pytest
import torch
from torch import nn

from base.errors import UserError
from quantize import engine, reference
from quantize.fold import fold
from quantize.scales import quantize
from train.network import SpikingNetwork
from train.neurons import LIF
from train.parts import Readout, Recurrent, Residual, Skip


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.skip = Skip(channels)
        self.lif = LIF()

    def forward(self, spikes):
        return self.lif(self.norm(self.conv(spikes)) + self.skip(spikes))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), LIF())
        self.first, self.second = Block(4), Block(4)
        self.pool = nn.AvgPool2d(2)
        self.dense = Recurrent(16, 6)
        self.lif = LIF()
        self.classes = nn.Linear(6, 3)
        self.readout = Readout()

    def forward(self, image):
        maps = self.pool(self.second(self.first(self.stem(image))))
        hidden = self.lif(self.dense(torch.flatten(self.pool(maps), 1)))
        return self.readout(self.classes(hidden))


def as_a_list(own):
    def block(of):
        return Residual([of.conv, of.norm], [of.skip]), of.lif

    parts = [*own.stem, *block(own.first), *block(own.second), own.pool, nn.AvgPool2d(2), nn.Flatten()]
    return SpikingNetwork((1, 8, 8), [*parts, own.dense, own.lif, own.classes, own.readout])


def binary(*shape):
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_a_traced_module_is_the_network_of_its_parts():
    torch.manual_seed(0)
    own = Network()
    traced, listed = SpikingNetwork((1, 8, 8), own), as_a_list(own)
    assert [stage.name for stage in traced.stages] == ["stem_0", "first_conv", "second_conv", "dense", "classes"]
    spikes = binary(6, 3, 1, 8, 8)
    assert torch.equal(traced(spikes), listed(spikes))
    assert {id(weights) for weights in traced.parameters()} == {id(weights) for weights in own.parameters()}


def test_a_traced_module_becomes_integers_that_every_backend_runs_alike():
    torch.manual_seed(0)
    network = SpikingNetwork((1, 8, 8), Network()).eval()
    integers, _ = quantize(fold(network), network.input_shape, network.payload_bits)
    inputs = binary(6, 3, 1, 8, 8).numpy()
    a, b = reference.run(integers, inputs, states=3), engine.run(integers, inputs, states=3)
    assert sum(raster.sum() for name, raster in a.spikes.items() if name != "classes") > 0
    for name in integers.order:
        assert np.array_equal(a.spikes[name], b.spikes[name])


def of(**layers):
    """A module class whose forward is the lambda `forward`, over the other layers."""
    forward = layers.pop("forward")

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            for name, layer in layers.items():
                self.add_module(name, layer)

        def forward(self, x):
            return forward(self, x)

    return Own()


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (of(a=nn.Linear(4, 4), forward=lambda m, x: torch.relu(m.a(x))), r"Own uses relu, which has no exact integer"),
        (of(a=nn.Linear(4, 4), b=nn.ReLU(), forward=lambda m, x: m.b(m.a(x))), "layer a is followed by b"),
        (of(a=nn.GELU(), forward=lambda m, x: m.a(x)), "layer a: GELU cannot stand here or has no exact integer form"),
        (of(a=nn.Linear(4, 4), s=LIF(), forward=lambda m, x: m.s(m.a(m.s(m.a(x))))), "layer a is called twice"),
        (of(a=nn.Linear(4, 4), s=LIF(), forward=lambda m, x: m.s(m.a(x)) + x), "adds spikes of a, and a sum of spikes"),
        (of(a=nn.Linear(4, 4), forward=lambda m, x: m.a(x) + 1), "yields or uses 1; it may use what its layers yield"),
        (of(a=nn.Linear(4, 4), forward=lambda m, x: m.a(x) * 2), "Own uses mul"),
        (of(a=nn.Linear(4, 4), s=LIF(), forward=lambda m, x: [m.s(m.a(x))]), "Own yields or uses something of type"),
        (of(a=nn.Linear(4, 4), forward=lambda m, x: m.a(x) if x.sum() > 0 else x), "cannot be traced .*control flow"),
        (of(a=nn.Linear(4, 4), forward=lambda m, x: [m.a(step) for step in x]), "without loops over time"),
        (
            of(a=nn.Linear(4, 4), b=nn.Linear(4, 3), s=LIF(), forward=lambda m, x: m.s(m.a(x) + m.b(x))),
            r"adds a branch of shape \[4\] and a shortcut of shape \[3\]",
        ),
        (of(a=nn.Linear(4, 4), forward=lambda m, x: m.a(x)), "layer a is followed by nothing"),
        (
            of(
                a=nn.Linear(4, 4),
                b=nn.Linear(4, 4),
                s=LIF(),
                r=LIF(),
                forward=lambda m, x: (m.r(m.b(x)), m.s(m.a(x)))[1],
            ),
            "Own computes b, which leads nowhere",
        ),
        (
            of(a=nn.Linear(4, 4), f=nn.Flatten(), s=LIF(), forward=lambda m, x: m.f(m.s(m.a(x)))),
            "does not return what its last neurons emit",
        ),
    ],
)
def test_what_a_forward_may_not_do_is_refused_by_name(module, sentence):
    with pytest.raises(UserError, match=sentence):
        SpikingNetwork((4,), module)


def test_a_forward_with_two_inputs_is_refused():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(UserError, match="takes more than one input"):
        SpikingNetwork((4,), Two())
