"""The fused scan equals its plain twin bit for bit; both equal autograd through a step-by-step neuron."""

import itertools

import pytest
import torch

from base.errors import UserError
from train.neurons import LIF
from train.scan import _Neuron, fused_backward, fused_forward, lif_scan, plain_backward, plain_forward
from train.surrogates import surrogate

MODES = list(itertools.product((0.0, 0.6), ("hard", "soft"), (False, True)))


class Spike(torch.autograd.Function):
    """The step function, with a surrogate for its derivative."""

    @staticmethod
    def forward(ctx, distance, shape, width):
        ctx.save_for_backward(distance)
        ctx.shape, ctx.width = shape, width
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, grad):
        (distance,) = ctx.saved_tensors
        return grad * ctx.shape(distance, ctx.width), None, None


def step_by_step(current, bias, *, alpha, beta, threshold, reset, floor, surrogate, width, recurrent=None):
    """The oracle: one step after the other, differentiated by autograd."""
    u = v = torch.zeros_like(current[0])
    spikes = []
    for arriving in current:
        if recurrent is not None and spikes:
            arriving = arriving + spikes[-1] @ recurrent.T
        u = alpha * u + arriving
        v = beta * v + u
        if bias is not None:
            v = v + bias
        s = Spike.apply(v - threshold, surrogate, width)
        if floor:
            v = torch.relu(v)
        v = v * (1 - s) if reset == "hard" else v - threshold * s
        spikes.append(s)
    return torch.stack(spikes)


def random_case(seed, shape, bias_shape, dtype):
    generator = torch.Generator().manual_seed(seed)
    current = torch.randn(shape, generator=generator, dtype=dtype) * 0.8
    bias = None if bias_shape is None else torch.randn(bias_shape, generator=generator, dtype=dtype) * 0.3
    weights = torch.randn(shape, generator=generator, dtype=dtype)
    return current, bias, weights


def spikes_and_gradients(scan, current, bias, weights, **constants):
    leaves = [leaf.clone().requires_grad_() for leaf in (current, bias) if leaf is not None]
    spikes = scan(leaves[0], leaves[1] if bias is not None else None, **constants)
    return spikes.detach(), torch.autograd.grad((spikes * weights).sum(), leaves)


SHAPES = [
    ((7, 3, 5), (5,)),
    ((1, 4, 6), (6,)),
    ((9, 1, 3), None),
    ((5, 2, 3, 4, 4), (3, 1, 1)),
    ((4, 3, 1031), (1031,)),
]


@pytest.mark.parametrize(("alpha", "reset", "floor"), MODES)
@pytest.mark.parametrize(("shape", "bias_shape"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scan_equals_autograd_through_a_step_by_step_neuron(alpha, reset, floor, shape, bias_shape, dtype):
    constants = {"alpha": alpha, "beta": 0.85, "threshold": 0.7, "reset": reset, "floor": floor, "width": 1.3}
    constants["surrogate"] = surrogate("arctan")
    case = random_case(hash((alpha, reset == "hard", floor)) % 1000, shape, bias_shape, dtype)
    spikes, gradients = spikes_and_gradients(lif_scan, *case, **constants)
    expected_spikes, expected_gradients = spikes_and_gradients(step_by_step, *case, **constants)
    assert 0 < spikes.mean() < 1
    assert spikes.dtype == dtype
    assert torch.equal(spikes, expected_spikes)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=2e-4 if dtype == torch.float32 else 1e-10, atol=1e-5)


RESETS = list(itertools.product(("hard", "soft"), (False, True)))
SHARES = [((), (6,)), ((6,), ()), ((6,), (6,)), ((2, 1, 1), (2, 3, 1))]


@pytest.mark.parametrize(("reset", "floor"), RESETS)
@pytest.mark.parametrize(("alpha_shape", "beta_shape"), SHARES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decays_and_recurrent_weights_get_the_gradient_of_autograd(reset, floor, alpha_shape, beta_shape, dtype):
    recurrence = len(alpha_shape) < 3
    shape = (2, 3, 2) if len(alpha_shape) == 3 else (6,)
    generator = torch.Generator().manual_seed(len(alpha_shape) + 2 * len(beta_shape))
    current, bias, weights = random_case(11, (8, 3, *shape), shape, dtype)
    leaves = [current, bias]
    leaves += [0.2 + 0.7 * torch.rand(s, generator=generator, dtype=dtype) for s in (alpha_shape, beta_shape)]
    leaves += [torch.randn(6, 6, generator=generator, dtype=dtype) * 0.4] * recurrence
    constants = {"threshold": 0.7, "reset": reset, "floor": floor, "surrogate": surrogate("arctan"), "width": 1.3}

    def run(scan):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        recurrent = own[4] if recurrence else None
        spikes = scan(own[0], own[1], alpha=own[2], beta=own[3], recurrent=recurrent, **constants)
        return spikes.detach(), torch.autograd.grad((spikes * weights).sum(), own)

    spikes, gradients = run(lif_scan)
    expected_spikes, expected_gradients = run(step_by_step)
    assert 0 < spikes.mean() < 1
    assert torch.equal(spikes, expected_spikes)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=2e-4 if dtype == torch.float32 else 1e-9, atol=2e-5)


@pytest.mark.parametrize(("reset", "floor"), RESETS)
def test_fused_kernels_equal_their_twins_with_decays_of_every_neuron(reset, floor):
    alpha, beta = torch.rand(2, 1500, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    neuron = _Neuron(alpha, beta, 0.9, reset == "hard", floor)
    current, bias, grad = random_case(4, (12, 1500), (1500,), torch.float32)
    spikes, membrane = fused_forward(current, bias, neuron)
    slope = surrogate("arctan")(membrane - neuron.threshold, 1.0)
    fused = (spikes, membrane, *fused_backward(grad, membrane, slope, neuron))
    plain = (*plain_forward(current, bias, neuron), *plain_backward(grad, membrane, slope, neuron))
    assert all(map(torch.equal, fused, plain))


def test_learned_decays_start_where_they_are_told_and_never_leave_the_chips_range():
    neuron = LIF(beta=0.8, alpha=0.3, learn_decay=True, per_neuron=True)
    neuron.spread_over((5,))
    torch.testing.assert_close(neuron.beta, torch.full((5,), 0.8))
    torch.testing.assert_close(neuron.alpha, torch.full((5,), 0.3))
    for logit in (1e4, -1e4):
        torch.nn.init.constant_(neuron.beta_logit, logit)
        torch.nn.init.constant_(neuron.alpha_logit, logit)
        assert ((neuron.beta >= 1 / 4096) & (neuron.beta <= 1)).all()
        assert ((neuron.alpha >= 0) & (neuron.alpha <= 4095 / 4096)).all()


def test_a_neuron_without_synaptic_current_or_leak_stays_so():
    neuron = LIF(beta=1.0, alpha=0.0, learn_decay=True)
    assert (neuron.alpha, neuron.beta, list(neuron.parameters())) == (0.0, 1.0, [])


@pytest.mark.smoke
@pytest.mark.parametrize(("alpha", "reset", "floor"), MODES)
@pytest.mark.parametrize("neurons", [1, 37, 1024, 5001])
def test_fused_kernels_equal_their_plain_twins_bit_for_bit(alpha, reset, floor, neurons):
    neuron = _Neuron(alpha, 0.9, 1.1, reset == "hard", floor)
    for seed, steps in ((0, 1), (1, 2), (2, 33)):
        current, bias, grad = random_case(seed, (steps, neurons), (neurons,), torch.float32)
        spikes, membrane = fused_forward(current, bias, neuron)
        expected_spikes, expected_membrane = plain_forward(current, bias, neuron)
        assert torch.equal(spikes, expected_spikes)
        assert torch.equal(membrane, expected_membrane)
        slope = surrogate("triangular")(membrane - neuron.threshold, 1.0)
        for fused, plain in zip(
            fused_backward(grad, membrane, slope, neuron), plain_backward(grad, membrane, slope, neuron), strict=True
        ):
            assert torch.equal(fused, plain)


def test_threads_do_not_change_a_bit():
    neuron = _Neuron(0.5, 0.9, 1.0, True, False)
    current, bias, _ = random_case(5, (16, 40_000), (40_000,), torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(fused_forward(current, bias, neuron))
    finally:
        torch.set_num_threads(before)
    for spikes, membrane in results[1:]:
        assert torch.equal(spikes, results[0][0])
        assert torch.equal(membrane, results[0][1])


def test_input_that_is_not_contiguous_gives_the_same_spikes_and_gradients():
    constants = {"alpha": 0.3, "beta": 0.9, "threshold": 1.0, "reset": "hard", "floor": False, "width": 1.0}
    constants["surrogate"] = surrogate("triangular")
    current, bias, weights = random_case(3, (6, 4, 10), (10,), torch.float32)
    strided = current.transpose(0, 2).contiguous().transpose(0, 2)
    assert not strided.is_contiguous()
    spikes, gradients = spikes_and_gradients(lif_scan, strided, bias, weights, **constants)
    expected_spikes, expected_gradients = spikes_and_gradients(lif_scan, current, bias, weights, **constants)
    assert torch.equal(spikes, expected_spikes)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("first", [0.4, 0.9, 1.2])
def test_gradient_over_one_step_follows_the_reset(reset, first):
    # Yang, arXiv 2011.09964; seen through the second spike alone: d s[1] / d x[0] = h(v[1]) * dv[1]/dv[0].
    beta, threshold, width = 0.8, 1.0, 1.0
    h = surrogate("triangular")
    current = torch.tensor([first, 0.6], dtype=torch.float64).view(2, 1, 1).requires_grad_()
    spikes = lif_scan(
        current, None, alpha=0, beta=beta, threshold=threshold, reset=reset, floor=False, surrogate=h, width=width
    )
    (gradient,) = torch.autograd.grad(spikes[1].sum(), current)
    s = first > threshold
    slope = 1 - abs(first - threshold)
    after = first * (1 - s) if reset == "hard" else first - threshold * s
    jacobian = beta * ((1 - s) - first * slope) if reset == "hard" else beta * (1 - threshold * slope)
    second_slope = max(0, 1 - abs(beta * after + 0.6 - threshold))
    assert gradient[0].item() == pytest.approx(second_slope * jacobian)
    assert gradient[1].item() == pytest.approx(second_slope)


def test_bias_enters_the_voltage_and_not_the_current():
    # With memory in the current, a bias passing through u would grow: 0.5, 1.25, ... Here v = 0.5, 1.0, then 1.5.
    spikes = LIF(beta=1.0, alpha=0.5, threshold=1.2)(torch.zeros(3, 1, 1), torch.tensor([0.5]))
    assert spikes.flatten().tolist() == [0, 0, 1]


def test_a_voltage_equal_to_the_threshold_does_not_spike():
    spikes = LIF(beta=1.0, threshold=1.0)(torch.tensor([1.0, 0.0, 2.0**-20]).view(3, 1, 1))
    assert spikes.flatten().tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"beta": 0.0}, "beta = 0.0"),
        ({"beta": 1.01}, "beta = 1.01"),
        ({"beta": float("nan")}, "beta = nan"),
        ({"alpha": 1.0}, "alpha = 1.0"),
        ({"alpha": -0.1}, "alpha = -0.1"),
        ({"threshold": 0.0}, "threshold = 0.0"),
        ({"reset": "sotf"}, "did you mean 'soft'"),
        ({"width": 0}, "width = 0"),
        ({"surrogate": "arctangent"}, "did you mean 'arctan'"),
        ({"beta": torch.tensor([0.5, 1.5])}, "beta = tensor"),
        ({"per_neuron": True}, "per_neuron = true without learn_decay"),
    ],
)
def test_parameters_the_chip_cannot_hold_are_refused(wrong, text):
    with pytest.raises(UserError, match=text):
        LIF(**wrong)


def test_the_ends_of_the_chips_range_are_allowed():
    LIF(beta=1 / 4096, alpha=4095 / 4096)
    LIF(beta=1.0, alpha=0.0)
