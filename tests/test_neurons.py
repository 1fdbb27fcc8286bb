"""What the one LIF can be told: how wide its surrogate is, what is dropped of it, and to be a KLIF."""

import math

import pytest
import torch
from torch import nn

from base.errors import UserError
from train.architecture import build
from train.modes import dropping_out
from train.network import SpikingNetwork
from train.neurons import LIF
from train.parts import Residual, TdBN

CHOICES = [
    {"width": 2.0, "surrogate": "slayer"},
    {"mask": 0.5},
    {"mask": 0.5, "rescale": True},
    {"detach_reset": True},
    {"width_by": "psg"},
    {"width_by": "mpd-agl"},
]


def inputs(steps=6):
    return (torch.rand(steps, 5, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.4).float()


def network_of(notation="6C3-BN-12-tdBN-4", **settings):
    return build(notation, (1, 8, 8), neuron=lambda: LIF(**settings), seed=0)


@pytest.mark.parametrize("choice", CHOICES)
def test_no_choice_of_a_backward_changes_a_spike(choice):
    plain, other = network_of(), network_of(**choice)
    expected, spikes = plain.spikes(inputs()), other.spikes(inputs())
    assert all(torch.equal(spikes[name], expected[name]) for name in expected)
    assert all(0 < raster.mean() < 1 for raster in expected.values())


def gradients(network, *key):
    with dropping_out(network, *key):
        output = network(inputs())
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(output.square().mean(0).sum(), parameters), strict=True))


def test_a_mask_is_drawn_from_its_key_and_in_training_alone():
    plain, masked = network_of("12-4"), network_of("12-4", mask=0.5)
    first, again, other = (gradients(masked, *key)["dense1.weight"] for key in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    before = torch.get_rng_state()
    assert torch.equal(gradients(masked.eval())["dense1.weight"], gradients(plain)["dense1.weight"])
    assert torch.equal(before, torch.get_rng_state())


def test_the_membrane_comes_with_the_spikes():
    network = network_of("12-4", reset="soft")
    spikes, membranes = network.spikes_and_membranes(inputs())
    assert list(membranes) == ["dense1", "dense2"]
    for name, membrane in membranes.items():
        assert torch.equal(spikes[name] > 0, membrane > 1.0)
    assert list(build("12-4", (1, 8, 8), readout="current", seed=0).spikes_and_membranes(inputs())[1]) == ["dense1"]


# Widths that are learned: PSG


@pytest.mark.parametrize("surrogate", ["arctan", "triangular"])
def test_a_width_is_learned_as_the_mean_over_spikes_of_a_smooth_primitive(surrogate):
    neuron = LIF(surrogate=surrogate, width=1.5, width_by="psg", beta=1.0).double()
    current = torch.tensor([[[0.3, 0.9, 1.7, 2.2]]], dtype=torch.float64)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((neuron(current) * weights).sum(), [neuron.width])

    def primitive(x, width):
        if surrogate == "arctan":
            return torch.atan(math.pi * x / width) / math.pi
        return x / width - x * x.abs() / (2 * width**2) if surrogate == "triangular" else None

    step, x = 1e-6, current[0, 0] - 1.0
    changed = (primitive(x, 1.5 + step) - primitive(x, 1.5 - step)) / (2 * step)
    assert gradient.item() == pytest.approx((changed * weights).mean().item(), rel=1e-5)


@pytest.mark.parametrize(("moved", "kept"), [(-3.0, 0.8), (0.1, 0.8), (100.0, 16.0), (5.0, 5.0)])
def test_a_learned_width_stays_within_its_thresholds(moved, kept):
    neuron = LIF(threshold=2.0, width=3.0, width_by="psg")
    nn.init.constant_(neuron.width, moved)
    neuron.keep_in_range()
    assert neuron.width.item() == pytest.approx(kept)


# Widths that follow the norm: MPD-AGL


def widths_of(stage, monkeypatch):
    """The widths [T] that a population's backward pass is told."""
    told = []
    monkeypatch.setattr("train.neurons.lif_scan", lambda *_, backward, **__: told.append(backward.width))
    stage.neuron.scan(torch.zeros(4, 1, *stage.output_shape), None, None, stage.current_spread)
    return told[0]


@pytest.mark.parametrize("gain", [1.0, 0.3, 2.0])
@pytest.mark.parametrize("norm", ["BN", "tdBN"])
def test_widths_follow_the_gain_of_the_norm_and_the_leak(norm, gain, monkeypatch):
    threshold, beta = 0.5, 0.6
    network = network_of(f"6-{norm}-4", width_by="mpd-agl", threshold=threshold, beta=beta)
    nn.init.constant_(network.stages[0].links[0].norm.weight, gain * (threshold if norm == "BN" else 1.0))
    first = 2 * threshold * gain
    widths = widths_of(network.stages[0], monkeypatch)
    assert not widths.requires_grad
    torch.testing.assert_close(widths, torch.tensor([first] + [first * math.sqrt(1 + beta**2)] * 3))


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_a_gain_that_gives_no_width_gives_the_least(gain, monkeypatch):
    network = network_of("6-tdBN-4", width_by="mpd-agl", threshold=2.0)
    nn.init.constant_(network.stages[0].links[0].norm.weight, gain)
    torch.testing.assert_close(widths_of(network.stages[0], monkeypatch), torch.full((4,), 0.2))


def test_a_population_without_a_norm_keeps_the_width_it_was_given(monkeypatch):
    network = network_of("6-BN-4", width_by="mpd-agl", width=1.25)
    assert widths_of(network.stages[1], monkeypatch) == 1.25


def test_the_variances_of_several_norms_add_up():
    block = Residual([nn.Linear(6, 5), TdBN(5, 2.0)], shortcut=[nn.Linear(6, 5), nn.BatchNorm1d(5)])
    network = SpikingNetwork((6,), [block, LIF(width_by="mpd-agl")])
    assert network.stages[0].current_spread == pytest.approx(math.sqrt(2.0**2 + 1))


def test_learned_leaks_count_with_their_mean():
    neuron = LIF(beta=torch.tensor([0.2, 0.6]))
    assert neuron.spread_gain == pytest.approx(math.sqrt(1 + 0.4**2))


# KLIF


def klif_step_by_step(current, k, beta, threshold, reset, scale_reset):
    """KLIF as it is written down, not folded."""
    voltage, spikes = torch.zeros_like(current[0]), []
    for arriving in current:
        scaled = torch.relu(k * (beta * voltage + arriving))
        spikes.append((scaled > threshold).to(current.dtype))
        after = scaled * (1 - spikes[-1]) if reset == "hard" else scaled - threshold * spikes[-1]
        voltage = after / k if scale_reset else after
    return torch.stack(spikes)


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("scale_reset", [False, True])
@pytest.mark.parametrize("k", [0.6, 1.0, 1.3])
def test_klif_fires_the_spikes_of_its_own_equations(reset, scale_reset, k):
    neuron = LIF(beta=0.5, neuron="klif", scale_reset=scale_reset, reset=reset).double()
    nn.init.constant_(neuron.k, k)
    current = torch.randn(40, 3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.2
    spikes = neuron(current)
    assert torch.equal(spikes, klif_step_by_step(current, k, 0.5, 1.0, reset, scale_reset))
    assert 0.05 < spikes.mean() < 0.5


def test_a_klif_of_k_one_and_no_voltage_below_zero_is_a_lif():
    current = torch.rand(20, 3, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    spikes = [LIF(neuron=neuron, beta=0.5)(current) for neuron in ("klif", "lif")]
    assert torch.equal(*spikes)
    klif, lif = (torch.autograd.grad(raster[10:].sum(), current)[0] for raster in spikes)
    assert torch.equal(klif, lif)
    assert lif.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "moved", "kept"),
    [
        ({"beta": 0.5}, 3.0, 1.96),
        ({"beta": 0.5}, -1.0, 0.1),
        ({"beta": 0.5}, 1.5, 1.5),
        ({"beta": 0.5, "scale_reset": True}, 30.0, 10.0),
        ({"beta": torch.tensor([0.5, 0.98])}, 3.0, 1.0),
    ],
)
def test_k_stays_where_the_chip_has_a_decay_for_it(settings, moved, kept):
    neuron = LIF(neuron="klif", **settings)
    nn.init.constant_(neuron.k, moved)
    neuron.keep_in_range()
    assert neuron.k.item() == pytest.approx(kept)


def test_k_starts_at_one_or_where_the_leak_lets_it():
    assert LIF(neuron="klif").k.item() == 1.0
    assert LIF(neuron="klif", beta=1.0).k.item() == pytest.approx(0.98)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"neuron": "kliff"}, "did you mean 'klif'"),
        ({"scale_reset": True}, "set neuron = 'klif'"),
        ({"width_by": "mpd"}, "unknown width_by 'mpd'"),
        ({"width_by": "psg", "width": 0.3}, "between 0.4 and 8"),
        ({"mask": 1.0}, "mask = 1.0"),
        ({"mask": -0.1}, "mask = -0.1"),
        ({"rescale": True}, "rescale = true without a mask"),
    ],
)
def test_what_a_neuron_cannot_be_is_refused(wrong, text):
    with pytest.raises(UserError, match=text):
        LIF(**wrong)


def test_widths_by_norms_are_refused_where_there_are_none():
    with pytest.raises(UserError, match="'mpd-agl' in a network without norms"):
        network_of("6-4", width_by="mpd-agl")
