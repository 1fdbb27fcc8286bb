"""Aware training runs the very integers that its weights become, and learns as floats do where nothing is rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from base.errors import UserError
from quantize import arithmetic, reference
from quantize.aware import AwareNetwork, _fused_gradients, integer_forward, rounded_gradients
from quantize.fold import fold
from quantize.precision import Precision
from quantize.scales import quantize, quantize_each
from train import wiring
from train.architecture import build
from train.network import SpikingNetwork
from train.neurons import LIF
from train.parts import Recurrent, Residual, Skip, SumPool2d, running_affine
from train.scan import Neuron
from train.wiring import INPUT

MAPS = [
    "4C3",
    "4C3-BN",
    "6C3S2-tdBN",
    "4C3D2P2-WS",
    "4C3-MP2",
    "MP2",
    "AP2-4C3",
    "SP2-4C3-BN",
    "[4C3-BN-4C3]",
    "DP0.2-4C3",
]
VECTORS = ["12", "9-BN", "R8", "R8-BN", "[9-WS]", "[6-R7-BN]", "DP0.3-7"]
SHARES = st.sampled_from([0.0, 0.3, 0.9])


@st.composite
def neurons(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["lif", "lif", "klif"]))
    learned = draw(st.booleans())
    return {
        "neuron": kind,
        "scale_reset": kind == "klif" and draw(st.booleans()),
        "alpha": draw(SHARES),
        "beta": draw(st.sampled_from([1 / 4096, 0.5, 0.77, 0.95])),
        "threshold": draw(st.sampled_from([0.3, 1.0])),
        "reset": draw(st.sampled_from(arithmetic.RESETS)),
        "floor": draw(st.booleans()),
        "learn_decay": learned,
        "per_neuron": learned and draw(st.booleans()),
        "width_by": draw(st.sampled_from(["fixed", "psg"])),
        "mask": draw(st.sampled_from([0.0, 0.3])),
        "width": draw(st.sampled_from([0.4, 1.0])),
    }


@st.composite
def architectures(draw: st.DrawFn) -> str:
    maps = draw(st.lists(st.sampled_from(MAPS), max_size=3))
    vectors = draw(st.lists(st.sampled_from(VECTORS), max_size=2))
    return "-".join([*maps, *vectors, "4"])


def learn(network: SpikingNetwork, inputs: torch.Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    network.train()
    for _ in range(steps):
        output = network(inputs)
        optimizer.zero_grad()
        nn.functional.cross_entropy(output.mean(0) * 5, torch.arange(inputs.shape[1]) % 4).backward()
        optimizer.step()
        network.keep_in_range()
    network.eval()


FIXED = Precision(scales="fixed")
PRECISIONS = [
    *(Precision(bits) for bits in (8, 4, 2, "ternary", 1)),
    *(Precision(bits, scales="fixed", calibration="error") for bits in (8, 3)),
    *(Precision(bits, per_channel=True) for bits in (8, 4, 2, "ternary", 1)),
    *(
        Precision(bits, scales="calibrated", calibration=calibration)
        for bits in (8, 1)
        for calibration in ("max", "error")
    ),
]


@example("[4C3-BN-4C3]-4", {}, "spikes", 1, Precision(1, per_channel=True), 0)  # weights [C] of a skip
@given(
    architectures(),
    neurons(),
    st.sampled_from(["spikes", "current"]),
    st.sampled_from([1, 4]),
    st.sampled_from(PRECISIONS),
    st.integers(0, 99),
)
@settings(max_examples=45)
def test_what_runs_in_training_is_what_is_quantized_spike_by_spike(
    notation: str, neuron: dict[str, Any], readout: str, payload_bits: int, precision: Precision, seed: int
) -> None:
    torch.manual_seed(seed)
    try:
        network = build(
            notation, (1, 8, 8), neuron=lambda: LIF(**neuron), readout=readout, payload_bits=payload_bits, seed=seed
        )
    except UserError:  # pooling that does not divide the map, or of graded input
        assume(False)
    inputs = torch.randint(0, 2**payload_bits, (5, 4, 1, 8, 8), dtype=torch.uint8)
    learn(network, inputs, 1)  # norms, biases and decays are none of their initial values any more
    aware = AwareNetwork(network, inputs, precision)
    learn(aware, inputs, 2)
    emitted = aware.spikes(inputs)
    network.clips = aware.clips

    integers, rows = quantize(fold(network), (1, 8, 8), payload_bits, precision)
    recording = reference.run(integers, inputs.numpy())
    assert list(emitted) == list(recording.spikes)
    for name, found in emitted.items():
        expected = recording.spikes[name].astype(np.float32)
        if not integers[name].spiking:
            scale = next(row["scale"] for row in rows if row["population"] == name)
            expected = expected / 64 / np.float32(scale)
        assert np.array_equal(found.detach().numpy(), expected), name


def test_input_that_never_changes_is_computed_once_and_the_same() -> None:
    network = build("4C3-AP2-8-4", (1, 8, 8), payload_bits=4, seed=0)
    inputs = torch.randint(0, 16, (1, 3, 1, 8, 8), dtype=torch.uint8)
    aware, shown = AwareNetwork(network, inputs), inputs.expand(6, *inputs.shape[1:])
    assert torch.equal(aware(shown), aware(shown.clone()))


@given(
    st.integers(0, 4095),
    st.integers(0, 4095),
    st.sampled_from(arithmetic.RESETS),
    st.booleans(),
    st.sampled_from([1, 50, 2000, 32767, 131071]),
    st.sampled_from([20, 1000, 32767, 131072]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150)
def test_both_scans_are_the_integer_neuron(
    decay_u: int, decay_v: int, reset: str, floor: bool, threshold: int, span: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    activation = rng.integers(-span, span + 1, (12, 7))
    bias = rng.integers(-4096, 4096, 7) << int(rng.integers(0, 8))
    shares = [1 - (decay_u + 1) / 4096, 1 - decay_v / 4096]
    kind = (reset.startswith("hard"), floor, reset.endswith("late"))
    neuron = Neuron(*(torch.full((7,), share) for share in shares), float(threshold), *kind)
    shown, drive = torch.from_numpy(activation).float(), torch.from_numpy(bias).float() / 64
    fused, plain = (
        integer_forward(shown.to(kind, copy=True), drive.to(kind), neuron, None)
        for kind in (torch.float32, torch.float64)
    )
    u = v = np.zeros(7, np.int64)
    constants = {"decay_u": decay_u, "decay_v": decay_v, "reset": reset, "floor": floor}
    for t in range(12):
        before = v
        u, v, spikes = arithmetic.lif_step(u, v, activation[t], threshold_mant=threshold, bias=bias, **constants)
        reached = arithmetic.truncate_toward_zero(before * (4096 - decay_v)) + u + bias
        late = 64 * threshold * (before > 64 * threshold) if reset == "soft-late" else 0
        membrane = arithmetic.saturate_voltage(reached - late)
        for found, membranes in (fused, plain):
            assert np.array_equal(found[t].numpy(), spikes)
            assert np.array_equal(membranes[t].numpy() * 64, membrane)


def parts(name: str, neuron: dict[str, Any]) -> list[nn.Module]:
    """Over maps of 2 x 6 x 6."""
    first, last = (LIF(beta=0.5, threshold=1 + 1 / 1024, **neuron) for _ in range(2))
    end = [nn.Flatten(), nn.Linear(27, 5), last]
    match name:
        case "pooling":
            return [nn.Conv2d(2, 3, 3, padding=1), first, nn.AvgPool2d(2), *end]
        case "norm":
            return [nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), first, nn.MaxPool2d(2), *end]
        case "recurrence":
            return [nn.Flatten(), Recurrent(72, 6), first, nn.Linear(6, 5), last]
    block = Residual([nn.Conv2d(2, 2, 3, padding=1)], [Skip(2)])
    return [block, first, SumPool2d(2), nn.Flatten(), nn.Linear(18, 5), last]


def on_the_grid(network: SpikingNetwork) -> SpikingNetwork:
    """The network with parameters that quantization leaves as they are: multiples of 1/64 once they are folded, of
    which the largest weight is 127, and norms that have seen a mean of 0 and a variance of 1. Where half is kept per
    step, no membrane comes nearer to the threshold than 1/1024 in four steps."""
    rng = np.random.default_rng(1)

    def integers(tensor: torch.Tensor, low: int, high: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(low, high, tensor.shape)) / 64

    with torch.no_grad():
        for stage in network.stages:
            for link in stage.links:
                if isinstance(link.synapse, nn.MaxPool2d):
                    continue
                weight = link.synapse.weight
                weight.copy_(integers(weight, -40, 50))
                weight.view(-1)[0] = 127 / 64
                weight.mul_(4 if any(isinstance(part, nn.AvgPool2d) for part in link.before) else 1)
                bias = link.norm.bias if link.norm is not None else getattr(link.synapse, "bias", None)
                if link.norm is not None:
                    link.norm.running_var.fill_(1 - link.norm.eps)
                    link.synapse.bias.zero_()
                if bias is not None:
                    bias.copy_(integers(bias, -8, 8))
            if stage.recurrent is not None:
                stage.recurrent.copy_(integers(stage.recurrent, -60, 60))
    return network.eval()


@pytest.mark.parametrize(
    "neuron",
    [
        {"reset": "hard"},
        {"reset": "soft", "alpha": 0.5, "floor": True},
        {"neuron": "klif", "reset": "soft", "width_by": "psg", "learn_decay": True},
    ],
)
@pytest.mark.parametrize("name", ["pooling", "norm", "recurrence", "residual"])
def test_where_nothing_is_rounded_gradients_are_those_of_the_floats(name: str, neuron: dict[str, Any]) -> None:
    network = on_the_grid(SpikingNetwork((2, 6, 6), parts(name, neuron)))
    inputs = torch.from_numpy(np.random.default_rng(2).random((4, 5, 2, 6, 6)) < 0.3).byte()
    found = {}
    for kind, ran in (("float", network), ("aware", AwareNetwork(network, inputs, FIXED))):
        network.zero_grad()
        emitted, membranes = ran.spikes_and_membranes(inputs)
        first, last = network.stages[0].name, network.stages[-1].name
        (emitted[last][..., 1:].sum() + membranes[first].square().mean()).backward()
        assert all(0 < spikes.mean() < 1 for spikes in emitted.values())
        assert all(p.grad is not None and p.grad.any() for p in network.parameters())
        gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        found[kind] = [*emitted.values(), *membranes.values(), *gradients]
    for theirs, ours in zip(found["float"], found["aware"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_gradients_take_the_mean_that_a_norm_remembers_for_that_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    network = on_the_grid(SpikingNetwork((2, 6, 6), parts("norm", {"reset": "soft"}))).train()
    inputs = torch.from_numpy(np.random.default_rng(2).random((4, 5, 2, 6, 6)) < 0.3).byte()

    def remembered(norm: nn.BatchNorm2d, current: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gain, offset = running_affine(norm)
        taken = gain * current.mean([0, 2, 3])
        return gain, norm.bias - taken + (offset - norm.bias + taken).detach()

    def gradients(ran: SpikingNetwork) -> list[torch.Tensor]:
        network.zero_grad()
        ran(inputs)[..., 1:].sum().backward()
        return [p.grad for p in network.parameters()]

    monkeypatch.setattr(wiring, "batch_affine", remembered)
    theirs = gradients(network)
    ours = gradients(AwareNetwork(network, inputs, FIXED))
    assert all(gradient.any() for gradient in theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_norms_remember_the_mean_of_the_integers_and_the_variance_of_every_fourth_sample_in_floats() -> None:
    network = build("6C3-BN-AP2-8-BN-4", (1, 8, 8), payload_bits=4, neuron=lambda: LIF(neuron="klif"), seed=0)
    inputs = torch.randint(0, 16, (4, 6, 1, 8, 8), dtype=torch.uint8)
    learn(network, inputs, 1)
    aware = AwareNetwork(network, inputs, Precision(2))
    spikes = {INPUT: inputs / 15, **aware.eval().spikes(inputs)}
    network.clips = aware.clips
    each = quantize_each(fold(network), 4, Precision(2))
    integers, _ = quantize(fold(network), (1, 8, 8), 4, Precision(2))
    current_int24 = reference.run(integers, inputs.numpy(), states=6).u
    expected = {}
    for stage, layer in zip(network.stages[:2], each, strict=False):
        (link,), norm = stage.links, stage.links[0].norm
        gain, _ = running_affine(norm)
        activation = torch.from_numpy(current_int24[stage.name] / 64).float().flatten(0, 1)
        axes = [axis for axis in range(activation.dim()) if axis != 1]
        mean = activation.mean(axes) / (float(layer.scale) * stage.neuron.k * gain)
        current = link.conducted(link.pooled(spikes[link.source][:, [0, 4]]).flatten(0, 1))
        new, old = (mean, current.var(axes)), (norm.running_mean, norm.running_var)
        expected[stage.name] = [torch.lerp(before, now, 0.1) for before, now in zip(old, new, strict=True)]
    aware.train()(inputs)
    for stage in network.stages[:2]:
        norm = stage.links[0].norm
        torch.testing.assert_close([norm.running_mean, norm.running_var], expected[stage.name])
    before = norm.running_mean.clone()
    aware.eval()(inputs)
    assert torch.equal(norm.running_mean, before)


def test_a_norm_whose_gain_is_zero_remembers_the_mean_in_floats() -> None:
    network = build("6-BN-4", (5,), payload_bits=4, seed=0)
    norm = network.stages[0].links[0].norm
    norm.weight.data[0] = 0
    inputs = torch.randint(0, 16, (4, 8, 5), dtype=torch.uint8)
    AwareNetwork(network, inputs).train()(inputs)
    mean = (inputs[:, ::4] / 15 @ network.stages[0].synapse.weight.T).mean((0, 1))
    torch.testing.assert_close(norm.running_mean[0], 0.1 * mean[0])
    assert torch.isfinite(norm.running_mean).all()


@pytest.mark.parametrize("shape", [(5, 300), (4, 3, 3, 3), (6,)])
@pytest.mark.parametrize("gains", ["one", "per channel"])
@pytest.mark.parametrize("clips", ["one", "per channel", "none"])
def test_gradients_of_what_was_rounded_equal_their_plain_twin(shape: tuple[int, ...], gains: str, clips: str) -> None:
    generator = torch.Generator().manual_seed(0)
    grad, weight = torch.randn(2, *shape, generator=generator)
    gain, clip = (
        torch.rand(1 if of == "one" else shape[0], generator=generator).numpy() + 0.5 for of in (gains, clips)
    )
    clip = clip if clips != "none" else np.full(1, np.inf, np.float32)
    arguments = (grad, weight, np.rint(3 * weight.numpy()) / 3, gain, clip, -1.125)
    fused, plain = (run(*arguments) for run in (_fused_gradients, rounded_gradients))
    assert torch.equal(fused.of_weight, plain.of_weight)
    torch.testing.assert_close(fused[1:], plain[1:], rtol=1e-5, atol=1e-5)


def test_input_as_a_bias_is_refused() -> None:
    network = build("8-4", (5,), payload_bits=4, input_is_bias=True, seed=0)
    with pytest.raises(UserError, match=r"layer dense1 takes the input as a bias, .* direct = 'graded'"):
        AwareNetwork(network, torch.zeros(1, 1, 5))
