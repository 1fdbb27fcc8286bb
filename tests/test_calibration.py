"""Where weights are clipped: found on samples, learned by aware training, or each channel's own."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from base.errors import UserError
from deploy.lava import models
from quantize import engine, reference
from quantize.aware import AwareNetwork
from quantize.calibration import calibrate
from quantize.fold import FoldedConnection, FoldedLayer, fold
from quantize.grids import COARSE, FINE, clipped, levels
from quantize.integer_network import INPUT
from quantize.precision import BITS, Bits, Precision
from quantize.scales import quantize
from train.architecture import build
from train.checkpoint import load_weights, save_weights
from train.datasets import Dataset, Samples, load
from train.encoding import Encoding, encode_all
from train.network import SpikingNetwork
from train.neurons import LIF
from train.trainer import calibration_inputs, evaluate, fit
from train.training import Training

some_widths = pytest.mark.parametrize("bits", [8, 3, 2, "ternary", 1])


def network_and_inputs(notation: str = "4C3-BN-AP2-R8-3", **neuron: float) -> tuple[SpikingNetwork, torch.Tensor]:
    network = build(notation, (1, 6, 6), neuron=lambda: LIF(**neuron), payload_bits=4, seed=3).eval()
    return network, torch.randint(0, 16, (5, 7, 1, 6, 6), generator=torch.manual_seed(1), dtype=torch.uint8)


def error_in_membranes(layer: FoldedLayer, spikes: torch.Tensor, weight: np.ndarray) -> float:
    """Of one connection with other weights, spikes [T, B, ...]: step by step, in float64, and nothing is ever reset."""
    (connection,) = layer.connections
    lost = torch.from_numpy(weight - connection.weight)
    u = v = torch.zeros(spikes.shape[1], *layer.shape, dtype=torch.float64)
    total = 0.0
    for shown in spikes.double():
        u = layer.alpha * u + (F.conv2d(shown, lost, **connection.geometry) if connection.geometry else shown @ lost.T)
        v = layer.beta * v + u
        total += v.square().sum().item()
    return total


@some_widths
def test_the_clip_of_least_error_in_the_membranes_is_taken(bits: Bits) -> None:
    network, inputs = network_and_inputs("4C3S2-6", alpha=0.4, beta=0.8)
    emitted = {INPUT: inputs, **network.spikes(inputs)}
    for layer in calibrate(network, inputs, Precision(bits)):
        (connection,) = layer.connections
        rows, spikes = connection.weight.reshape(1, -1), emitted[connection.source].detach()
        spikes = spikes if connection.geometry else spikes.flatten(2)
        assert connection.clip is not None

        def error(clip: np.ndarray) -> float:
            weight = clipped(rows, np.reshape(clip, 1), bits).reshape(connection.weight.shape)  # noqa: B023
            return error_in_membranes(layer, spikes, weight)  # noqa: B023

        largest = np.abs(rows).max()
        close = FINE[np.isin(np.log2(FINE) * 16, [-1, 1])]
        tried = [*largest * COARSE, *np.minimum(connection.clip * close, largest)]
        assert error(connection.clip) <= 1.00001 * min(map(error, tried))


def digits_of(samples: int) -> Dataset:
    digits = load("digits")
    return replace(digits, train=Samples(digits.train.values[:samples], digits.train.labels[:samples]))


def test_on_few_bits_membranes_choose_better_than_weights_do(tmp_path: Path) -> None:
    digits, encoding = digits_of(700), Encoding("rate", steps=8)
    network = build("32-10", digits.shape, seed=0)
    fit(network, digits, encoding, Training(epochs=10), tmp_path)
    inputs, right = encode_all(digits.test.values, encoding), {}
    for calibration in ("membrane", "error", "max"):
        layers = calibrate(network, calibration_inputs(digits, encoding), Precision(2, calibration=calibration))
        integers, _ = quantize(layers, digits.shape, 1, Precision(2))
        counts = engine.run(integers, inputs).spikes[integers.output].sum(0, dtype=int)
        right[calibration] = (counts.argmax(1) == digits.test.labels).mean()
    assert right["membrane"] > right["error"] > right["max"]


def test_without_samples_a_calibration_by_membranes_is_refused() -> None:
    network, _ = network_and_inputs()
    with pytest.raises(UserError, match=r"layer 'conv1': calibration = 'membrane' takes samples; .*'error'"):
        quantize(fold(network), network.input_shape, 4, Precision())


def test_clips_that_were_learned_are_saved_and_found_again(tmp_path: Path) -> None:
    network, inputs = network_and_inputs()
    network.clips = AwareNetwork(network, inputs, Precision(4, per_channel=True)).clips
    assert network.clips is not None
    with torch.no_grad():
        for parameter in network.clips.values():
            parameter += 0.25
    save_weights(network, tmp_path / "weights.safetensors")
    again, _ = network_and_inputs()
    load_weights(again, tmp_path / "weights.safetensors")
    learned, found = fold(network), calibrate(again, inputs, Precision(4))
    for ours, theirs in zip(learned, found, strict=True):
        for kept, loaded in zip(ours.connections, theirs.connections, strict=True):
            assert kept.clip is not None
            assert loaded.clip is not None
            assert kept.clip.shape == loaded.clip.shape
            assert np.array_equal(kept.clip, loaded.clip)


@pytest.mark.parametrize("bits", BITS)
def test_a_channel_of_its_own_scale_has_a_threshold_of_its_own_on_every_backend(bits: Bits) -> None:
    network, inputs = network_and_inputs(alpha=0.3)
    precision = Precision(bits, per_channel=True)
    integers, rows = quantize(calibrate(network, inputs, precision), network.input_shape, 4, precision)
    assert [integers[name].threshold_mant.size for name in ("conv1", "recurrent2", "dense3")] == [4, 8, 3]
    recordings = [run(integers, inputs.numpy(), 7) for run in (reference.run, engine.run, models.run)]
    for one, other in combinations(recordings, 2):
        for name in integers.order:
            assert np.array_equal(one.spikes[name], other.spikes[name])
            assert np.array_equal(one.v[name], other.v[name])
    assert ".." in str(rows[0]["threshold_mant"])


def test_every_channel_fills_its_levels_unless_it_is_too_weak() -> None:
    weight = np.array([[1.0, -0.5], [0.25, 0.125], [0.001, 0.0], [0.0, 0.0]])
    plain = FoldedLayer("a", (4,), (FoldedConnection(INPUT, weight),), np.zeros(4), 0.0, 0.9, 1.0)
    precision = Precision(calibration="max", per_channel=True)
    integers, _ = quantize([plain], (2,), 1, precision)
    (connection,) = integers.connections
    assert connection.weight.tolist() == [[254, -128], [254, 128], [4, 0], [0, 0]]
    thresholds = integers["a"].threshold_mant
    assert np.array_equal(thresholds[1:], [4 * thresholds[0], 16 * thresholds[0], 16 * thresholds[0]])


@some_widths
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_learned_clip_has_the_gradient_of_its_step_size(bits: Bits, per_channel: bool) -> None:
    """Against autograd through step * round(clip(w / step)), rounding passed straight through, for an output that is
    linear in the weights."""
    network, inputs = network_and_inputs("3", beta=0.5)
    network = SpikingNetwork((36,), [torch.nn.Linear(36, 3, bias=False), LIF(beta=0.5)], payload_bits=1)
    shown = (inputs.flatten(2) > 7).byte()
    aware = AwareNetwork(network, shown, Precision(bits, per_channel=per_channel, calibration="error"))
    assert aware.clips is not None
    with torch.no_grad():
        aware.clips["dense1"] -= 0.1  # no weight lies on its clip
    _, membranes = aware.spikes_and_membranes(shown[:1])
    membranes["dense1"].square().sum().backward()

    weight = network.get_submodule("dense1").get_parameter("weight").detach().double().requires_grad_()
    logarithm = aware.clips["dense1"].detach().double()[0].requires_grad_()
    least, most = levels(bits)
    step = (2.0**logarithm).reshape(-1, 1) / most
    on_levels = (weight / step).clamp(least, most)
    if bits == 1:
        on_grid = step * weight.sign() + (weight - weight.detach())
    else:
        on_grid = step * (on_levels + (on_levels.round() - on_levels).detach())
    (shown[0].double() @ on_grid.T).square().sum().backward()
    clip = aware.clips["dense1"].grad
    assert clip is not None
    assert logarithm.grad is not None
    learned = network.get_submodule("dense1").get_parameter("weight").grad
    assert learned is not None
    assert weight.grad is not None
    torch.testing.assert_close(learned.double(), weight.grad, rtol=0.02, atol=1e-3)
    all_of_a_step = (weight.grad.abs() * step).sum().item()  # what the parts, of either sign, could add up to
    torch.testing.assert_close(clip[0].double(), logarithm.grad, rtol=0.02, atol=0.01 * all_of_a_step)


@pytest.mark.parametrize("scales", ["learned", "fixed"])
def test_clips_move_only_where_they_are_learned(scales: str, tmp_path: Path) -> None:
    few, encoding = digits_of(256), Encoding("rate", steps=4)
    network = build("12-10", few.shape, seed=0)
    precision = Precision(3, scales=scales)
    start = AwareNetwork(network, calibration_inputs(few, encoding), precision).clips
    training = Training(epochs=0, aware_epochs=2)
    fit(network, few, encoding, training, tmp_path, aware=lambda *given: AwareNetwork(*given, precision))
    assert start is not None
    assert network.clips is not None
    moved = {name: not torch.equal(start[name], network.clips[name]) for name in start}
    assert moved == dict.fromkeys(start, scales == "learned")


def test_a_network_with_norms_can_learn_as_integers_from_scratch(tmp_path: Path) -> None:
    digits, encoding = load("digits"), Encoding("rate", steps=8)
    network = build("32-BN-10", digits.shape, seed=0)
    training = Training(epochs=0, aware_epochs=10, aware_learning_rate=0.01)
    fit(network, digits, encoding, training, tmp_path, aware=lambda *given: AwareNetwork(*given, Precision(4)))
    aware = AwareNetwork(network, calibration_inputs(digits, encoding), Precision(4))
    assert evaluate(aware, digits.test, encoding) > 0.9


@pytest.mark.parametrize("reset", ["hard", "soft-late"])
def test_the_reach_of_voltages_is_that_of_the_float_network(reset: str) -> None:
    network = build("12-4", (6,), neuron=lambda: LIF(alpha=0.3, beta=0.9, reset=reset), seed=1)
    inputs = (torch.rand(9, 20, 6, generator=torch.Generator().manual_seed(0)) < 0.6).byte()
    _, membranes = network.eval().spikes_and_membranes(inputs)
    layers = calibrate(network, inputs, Precision(range="calibrated"))
    for layer in layers:
        assert layer.reach is not None
        assert layer.reach[1] == pytest.approx(membranes[layer.name].detach().abs().max().item(), rel=1e-4)
    quantize(layers, network.input_shape, 1, Precision(range="calibrated"))
    with pytest.raises(UserError, match=r"quantize.range = 'calibrated' takes samples, .* set range = 'proven'"):
        AwareNetwork(network, inputs, Precision(range="calibrated"))
