"""A module of whatever framework is found by name, taken over, told apart by what it computes, and made stock."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

from base.errors import UserError
from train.frameworks.finding import find, framework_of, identity, take
from train.frameworks.stock import as_stock
from train.network import SpikingNetwork
from train.neurons import LIF
from train.parts import Readout

NAMES = (f"found_module_{number}" for number in itertools.count())  # Python imports a name once


def spikes(*shape, seed=1):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4).to(torch.uint8)


def leaky(**options):
    torch.manual_seed(0)
    layers = [nn.Linear(12, 9), nn.Linear(9, 4)]
    for layer in layers:
        layer.weight.data.mul_(3)
    neurons = [snn.Leaky(0.9, init_hidden=True, **options) for _ in layers]
    return nn.Sequential(layers[0], neurons[0], layers[1], neurons[1])


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a module into the current folder, and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text):
        name = next(NAMES)
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_a_module_or_what_a_function_returns_is_found_in_the_current_folder(written):
    name = written("from torch import nn\nnet = nn.Linear(2, 3)\ndef made(): return nn.Linear(4, 5)\n")
    assert find(f"{name}:net").out_features == 3
    assert find(f"{name}:made").out_features == 5


@pytest.mark.parametrize(
    ("text", "asked", "says"),
    [
        ("", "{}", "is not of the form my_module:net"),
        ("", "{}:", "is not of the form my_module:net"),
        ("", "not_there_at_all:net", "there is no module 'not_there_at_all' in"),
        ("import not_there_either", "{}:net", r"ended with ModuleNotFoundError: No module named 'not_there_either'"),
        ("x = 1\ny = x / 0", "{}:net", r"ended with ZeroDivisionError: division by zero \(.*\.py, line 2\); mend"),
        ("trained = 1", "{}:traind", r"\.py'> has no 'traind'; did you mean 'trained'\?"),
        ("def net(): raise OSError('no weights')", "{}:net", r"calling net\(\) ended with OSError: no weights"),
        ("def net(folder): pass", "{}:net", "missing 1 required positional argument: 'folder'"),
        ("net = 3", "{}:net", "is a int; it must be a torch module, or a function without arguments"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_is_told_in_a_sentence(written, text, asked, says):
    with pytest.raises(UserError, match=says):
        find(asked.format(written(text)))


def test_the_framework_is_that_of_the_neurons_classes():
    class Own(snn.Leaky):
        pass

    assert framework_of(leaky()).name == "snnTorch"
    assert framework_of(nn.Sequential(nn.Linear(2, 2), Own(0.9))).name == "snnTorch"
    with pytest.raises(UserError, match="Sequential has no neurons of snnTorch, SpikingJelly or Norse"):
        framework_of(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))


def test_a_network_of_this_project_is_taken_as_it_is():
    network = SpikingNetwork((12,), [nn.Linear(12, 3), LIF()])
    inputs = spikes(8, 5, 12)
    found = take(network, inputs)
    assert found.network is network
    assert not found.differences
    assert np.array_equal(found.rasters(inputs)["dense1"], network.double().rasters(inputs)["dense1"])
    with pytest.raises(UserError, match=r"takes 1-bit input of shape \[12\], and is given 1-bit input of shape \[13\]"):
        take(network, spikes(8, 5, 13))
    with pytest.raises(UserError, match=r"is given 4-bit input"):
        take(network, inputs, payload_bits=4)


@pytest.mark.parametrize("last", ["neurons", "readout"])
def test_what_the_module_itself_emits_is_told_by_population(last):
    module = leaky() if last == "neurons" else leaky()[:3]
    inputs = spikes(20, 6, 12)
    found = take(module, inputs[:, :2])
    theirs, ours = found.rasters(inputs), found.network.double().rasters(inputs)
    assert list(theirs) == ["layer0", "layer2"]
    assert 0.05 < theirs["layer0"].float().mean() < 0.9
    assert torch.equal(theirs["layer0"], ours["layer0"])
    if last == "neurons":
        assert torch.equal(theirs["layer2"], ours["layer2"])
    else:
        torch.testing.assert_close(theirs["layer2"], ours["layer2"], rtol=1e-12, atol=1e-12)


def test_the_identity_follows_weights_neurons_and_wiring_and_nothing_else():
    class Skipping(nn.Module):
        def __init__(self, skips):
            super().__init__()
            self.conv1, self.lif1, self.conv2, self.lif2 = nn.Conv2d(1, 1, 1), LIF(), nn.Conv2d(1, 1, 1), LIF()
            self.skip, self.flat, self.dense, self.lif3 = nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(4, 2), LIF()
            self.skips = skips

        def forward(self, image):
            first = self.lif1(self.conv1(image))
            second = self.lif2(self.conv2(first) + self.skip(first if self.skips else image))
            return self.lif3(self.dense(self.flat(second)))

    inputs = spikes(8, 3, 12)
    same, other = (identity(take(leaky(), shown).network) for shown in (inputs, spikes(8, 3, 12, seed=2)))
    assert same == other
    moved, slower = leaky(), leaky()
    moved[0].weight.data[0, 0] += 1e-3
    slower[3].beta.fill_(0.8)
    changed = [identity(take(module, inputs).network) for module in (moved, slower, leaky(reset_mechanism="zero"))]
    wired = []
    for skips in (True, False):
        torch.manual_seed(0)
        wired.append(identity(SpikingNetwork((1, 2, 2), Skipping(skips))))
    assert len({same, *changed, *wired}) == 6


def test_stock_neurons_reset_hard_at_once_without_a_floor_with_the_same_weights():
    inputs = spikes(20, 6, 12)
    found = take(leaky(), inputs)
    stock, differences = as_stock(found.network, found.differences)
    assert {(lif.reset, lif.floor) for lif in stock.neurons.values()} == {("hard", False)}
    assert [(row.population, row.what, row.theirs, row.ours) for row in differences] == [
        ("layer0", "reset", "subtract, a step late", "hard"),
        ("layer2", "reset", "subtract, a step late", "hard"),
    ]
    assert {lif.reset for lif in found.network.neurons.values()} == {"soft-late"}
    expected = SpikingNetwork((12,), [found.module[0], LIF(0.9), found.module[2], LIF(0.9)])
    ran, by_hand = stock.rasters(inputs), expected.rasters(inputs)
    assert torch.equal(ran["layer0"], by_hand["dense1"])
    assert torch.equal(ran["layer2"], by_hand["dense2"])


@pytest.mark.parametrize("scale_reset", [False, True])
def test_klif_made_stock_is_the_same_as_long_as_no_voltage_is_below_zero(scale_reset):
    lif = LIF(0.7, threshold=0.8, neuron="klif", scale_reset=scale_reset)
    lif.k.data.fill_(1.2)
    network = SpikingNetwork((12,), [nn.Linear(12, 9, bias=False), lif]).double()
    network.dense1.weight.data.abs_()
    stock, differences = as_stock(network)
    inputs = spikes(30, 6, 12)
    assert [row.what for row in differences] == ["floor"]
    assert stock.neurons["dense1"].k is None
    assert torch.equal(stock.double().rasters(inputs)["dense1"], network.rasters(inputs)["dense1"])
    assert 0.05 < network.rasters(inputs)["dense1"].float().mean() < 0.9


def test_stock_neurons_of_a_population_share_their_decays():
    lif = LIF(beta=torch.tensor([0.25, 0.5, 0.75]), alpha=0.5)
    stock, differences = as_stock(SpikingNetwork((4,), [nn.Linear(4, 3), lif]))
    assert [(row.what, row.ours) for row in differences] == [("decays", "their mean")]
    assert (stock.neurons["dense1"].beta, stock.neurons["dense1"].alpha) == (0.5, 0.5)


def test_stock_neurons_stay_what_they_are():
    network = SpikingNetwork((4,), [nn.Linear(4, 3), LIF(0.9, surrogate="slayer"), nn.Linear(3, 2), Readout()])
    stock, differences = as_stock(network)
    assert differences == []
    assert identity(stock) == identity(network)
