"""The fused scan equals its plain twin, spikes bit for bit; both equal autograd through a step-by-step neuron."""

import itertools
from typing import get_args

import pytest
import torch

from base.errors import UserError
from train.neurons import LIF
from train.scan import Neuron, Reset, _Slope, fused_backward, fused_forward, lif_scan, plain_backward, plain_forward
from train.surrogates import SURROGATES, Backward, surrogate

RESETS = get_args(Reset)
MODES = list(itertools.product((0.0, 0.6), RESETS, (False, True)))


class Spike(torch.autograd.Function):
    """The step function, with a surrogate for its derivatives by the voltage and by the surrogate's width."""

    @staticmethod
    def forward(ctx, v, threshold, width, how, kept, spikes):
        ctx.save_for_backward(v, torch.as_tensor(width, dtype=v.dtype), kept)
        ctx.threshold, ctx.how, ctx.spikes = threshold, how, spikes
        return (v > threshold).to(v.dtype)

    @staticmethod
    def backward(ctx, grad):
        v, width, kept = ctx.saved_tensors
        h = surrogate(ctx.how.shape)(v - ctx.threshold, width)
        if kept is not None:
            h = h * kept / (1 - ctx.how.mask if ctx.how.rescale else 1)
        if ctx.how.dead_below_zero:
            h = torch.where(v > 0, h, 0.0)
        grad_width = -(grad * h * (v - ctx.threshold) / width).sum() / ctx.spikes
        return grad * h, None, grad_width if ctx.needs_input_grad[2] else None, None, None, None


def step_by_step(current, bias, *, alpha, beta, threshold, reset, floor, backward, recurrent=None):
    """The oracle: one step after the other, differentiated by autograd."""
    u = v = gate = torch.zeros_like(current[0])
    spikes, membranes = [], []
    kept = backward.draw((len(current), current[0].numel()))
    width = torch.as_tensor(backward.width, dtype=current.dtype)
    for t, arriving in enumerate(current):
        if recurrent is not None and spikes:
            arriving = arriving + spikes[-1] @ recurrent.T
        u = alpha * u + arriving
        v = beta * v + u
        if bias is not None:
            v = v + bias
        if reset.endswith("late"):
            v = v * (1 - gate) if reset == "hard-late" else v - threshold * gate
        membranes.append(v)
        now = width[t] if width.dim() else width
        s = Spike.apply(v, threshold, now, backward, None if kept is None else kept[t].view(v.shape), current.numel())
        if floor:
            v = torch.relu(v)
        gate = s.detach() if backward.detach_reset else s
        if reset in ("hard", "soft"):
            v = v * (1 - gate) if reset == "hard" else v - threshold * gate
        spikes.append(s)
    return torch.stack(spikes), torch.stack(membranes)


def neuron_of(alpha, beta, threshold, reset, floor):
    return Neuron(alpha, beta, threshold, reset.startswith("hard"), floor, reset.endswith("late"))


def random_case(seed, shape, bias_shape, dtype):
    generator = torch.Generator().manual_seed(seed)
    current = torch.randn(shape, generator=generator, dtype=dtype) * 0.8
    bias = None if bias_shape is None else torch.randn(bias_shape, generator=generator, dtype=dtype) * 0.3
    weights = torch.randn(shape, generator=generator, dtype=dtype)
    return current, bias, weights


def spikes_and_gradients(scan, current, bias, weights, **constants):
    leaves = [leaf.clone().requires_grad_() for leaf in (current, bias) if leaf is not None]
    spikes, _ = scan(leaves[0], leaves[1] if bias is not None else None, **constants)
    return spikes.detach(), torch.autograd.grad((spikes * weights).sum(), leaves)


SHAPES = [
    ((7, 3, 5), (5,)),
    ((1, 4, 6), (6,)),
    ((9, 1, 3), None),
    ((5, 2, 3, 4, 4), (3, 1, 1)),
    ((4, 5, 1031), (1031,)),  # a tile of neurons ends inside a sample
]


@pytest.mark.parametrize(("alpha", "reset", "floor"), MODES)
@pytest.mark.parametrize(("shape", "bias_shape"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scan_equals_autograd_through_a_step_by_step_neuron(alpha, reset, floor, shape, bias_shape, dtype):
    constants = {"alpha": alpha, "beta": 0.85, "threshold": 0.7, "reset": reset, "floor": floor}
    constants["backward"] = Backward("arctan", 1.3)
    case = random_case(hash((alpha, reset == "hard", floor)) % 1000, shape, bias_shape, dtype)
    spikes, gradients = spikes_and_gradients(lif_scan, *case, **constants)
    expected_spikes, expected_gradients = spikes_and_gradients(step_by_step, *case, **constants)
    assert 0 < spikes.mean() < 1
    assert spikes.dtype == dtype
    assert torch.equal(spikes, expected_spikes)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=2e-4 if dtype == torch.float32 else 1e-10, atol=1e-5)


KINDS = list(itertools.product(RESETS, (False, True)))
SHARES = [((), (6,)), ((6,), ()), ((6,), (6,)), ((2, 1, 1), (2, 3, 1))]


@pytest.mark.parametrize(("reset", "floor"), KINDS)
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
    constants = {"threshold": 0.7, "reset": reset, "floor": floor, "backward": Backward("arctan", 1.3)}

    def run(scan):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        recurrent = own[4] if recurrence else None
        spikes, _ = scan(own[0], own[1], alpha=own[2], beta=own[3], recurrent=recurrent, **constants)
        return spikes.detach(), torch.autograd.grad((spikes * weights).sum(), own)

    spikes, gradients = run(lif_scan)
    expected_spikes, expected_gradients = run(step_by_step)
    assert 0 < spikes.mean() < 1
    assert torch.equal(spikes, expected_spikes)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=2e-4 if dtype == torch.float32 else 1e-9, atol=2e-5)


@pytest.mark.parametrize(("reset", "floor"), KINDS)
def test_fused_kernels_equal_their_twins_with_decays_of_every_neuron(reset, floor):
    alpha, beta = torch.rand(2, 1500, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    neuron = neuron_of(alpha, beta, 0.9, reset, floor)
    current, bias, grad = random_case(4, (12, 1500), (1500,), torch.float32)
    spikes, membrane = fused_forward(current.clone(), bias, neuron)
    assert all(map(torch.equal, (spikes, membrane), plain_forward(current, bias, neuron)))
    slope = _Slope(Backward("arctan", 1.0), torch.ones(12))
    for fused, plain in zip(
        fused_backward(grad, None, membrane, neuron, slope, spikes=spikes)[:2],
        plain_backward(grad, None, membrane, neuron, slope, spikes=spikes)[:2],
        strict=True,
    ):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)


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
    neuron = neuron_of(alpha, 0.9, 1.1, reset, floor)
    for seed, steps in ((0, 1), (1, 2), (2, 33)):
        current, bias, grad = random_case(seed, (steps, neurons), (neurons,), torch.float32)
        spikes, membrane = fused_forward(current.clone(), bias, neuron)
        expected_spikes, expected_membrane = plain_forward(current, bias, neuron)
        assert torch.equal(spikes, expected_spikes)
        assert torch.equal(membrane, expected_membrane)
        slope = _Slope(Backward("triangular", 1.0), torch.ones(steps))  # the one shape rounded alike in both
        for fused, plain in zip(
            fused_backward(grad, None, membrane, neuron, slope, spikes=spikes)[:2],
            plain_backward(grad, None, membrane, neuron, slope, spikes=spikes)[:2],
            strict=True,
        ):
            assert torch.equal(fused, plain)


BACKWARDS = [
    {"mask": mask, "rescale": rescale, "detach_reset": detached, "dead_below_zero": dead}
    for (mask, rescale), detached, dead in itertools.product(
        ((0.0, False), (0.4, False), (0.4, True)), (False, True), (False, True)
    )
]
WIDTHS = ["a number", "learned", "one for each step"]


def width_of(kind, steps, dtype):
    if kind == "learned":
        return torch.tensor(1.3, dtype=dtype, requires_grad=True)
    return 1.3 if kind == "a number" else torch.linspace(0.6, 1.7, steps, dtype=dtype)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", SURROGATES)
def test_every_backward_equals_its_plain_twin(shape, width, reset):
    current, bias, grad = random_case(6, (9, 1100), (1100,), torch.float32)
    grad_membrane = random_case(7, (9, 1100), None, torch.float32)[2]
    widths = torch.as_tensor(width_of(width, 9, torch.float32)).detach().expand(9)
    for options, floor, looked_at in itertools.product(BACKWARDS, (False, True), (False, True)):
        neuron = neuron_of(0.3, 0.85, 0.8, reset, floor)
        spikes, membrane = fused_forward(current.clone(), bias, neuron)
        how = Backward(shape, 1.0, **options)
        slope = _Slope(how, widths, how.draw(membrane.shape), learned=width == "learned")
        arguments = (grad, grad_membrane if looked_at else None, membrane, neuron, slope)
        fused, plain = fused_backward(*arguments, spikes=spikes), plain_backward(*arguments, spikes=spikes)
        assert (fused.width is None) == (width != "learned")
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("dtype", "recurrence"), [(torch.float32, False), (torch.float64, True)])
def test_every_backward_equals_autograd_and_leaves_the_forward_alone(reset, width, dtype, recurrence):
    current, bias, weights = random_case(12, (5, 30, 6), (6,), dtype)
    grad_membrane = random_case(13, (5, 30, 6), None, dtype)[2]
    recurrent = random_case(14, (6, 6), None, dtype)[0] * 0.5 if recurrence else None
    seen = []
    for options, floor in itertools.product(BACKWARDS, (False, True)):

        def run(scan):
            own = [leaf.clone().requires_grad_() for leaf in (current, bias, recurrent) if leaf is not None]
            chosen = width_of(width, 5, dtype)
            how = Backward("arctan", chosen, **options)  # noqa: B023
            torch.manual_seed(3)
            constants = {"alpha": 0.2, "beta": 0.85, "threshold": 0.7, "reset": reset, "floor": floor}  # noqa: B023
            heard = own[2] if recurrence else None
            spikes, membranes = scan(own[0], own[1], backward=how, recurrent=heard, **constants)
            own += [chosen] if width == "learned" else []
            aim = (spikes * weights).sum() + (membranes * grad_membrane).sum()
            return spikes.detach(), membranes.detach(), torch.autograd.grad(aim, own)

        spikes, membranes, gradients = run(lif_scan)
        expected_spikes, expected_membranes, expected_gradients = run(step_by_step)
        assert torch.equal(spikes, expected_spikes)
        assert torch.equal(membranes, expected_membranes)
        seen.append((spikes, membranes, floor))
        for gradient, expected in zip(gradients, expected_gradients, strict=True):
            tolerance = {"rtol": 2e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
            torch.testing.assert_close(gradient, expected, **tolerance)
    for spikes, membranes, floor in seen:
        first = next(other for other in seen if other[2] == floor)
        assert torch.equal(spikes, first[0])
        assert torch.equal(membranes, first[1])


def test_a_mask_of_one_lets_no_gradient_below_the_last_spikes():
    current, _, weights = random_case(15, (6, 4, 10), None, torch.float32)
    constants = {"alpha": 0.0, "beta": 0.9, "threshold": 0.7, "reset": "hard", "floor": False}
    leaf = current.clone().requires_grad_()
    hidden, _ = lif_scan(leaf, None, backward=Backward("arctan", 1.0, mask=1.0), **constants)
    readout = torch.randn(10, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    below, at = torch.autograd.grad(((hidden @ readout) * weights).sum(), [leaf, readout])
    assert torch.equal(below, torch.zeros_like(below))
    assert at.abs().sum() > 0


def test_a_gradient_of_the_membrane_alone_reaches_the_current():
    current = torch.tensor([0.5, 0.25]).view(2, 1, 1).requires_grad_()
    constants = {"alpha": 0.0, "beta": 0.5, "threshold": 1.0, "reset": "hard", "floor": False}
    _, membrane = lif_scan(current, None, backward=Backward("triangular", 0.25), **constants)
    assert membrane.flatten().tolist() == [0.5, 0.5]
    (gradient,) = torch.autograd.grad(membrane[1].sum(), current)
    assert gradient.flatten().tolist() == [0.5, 1.0]


def test_threads_do_not_change_a_bit():
    neuron = Neuron(0.5, 0.9, 1.0, True, False)
    current, bias, _ = random_case(5, (16, 40_000), (40_000,), torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(fused_forward(current.clone(), bias, neuron))
    finally:
        torch.set_num_threads(before)
    for spikes, membrane in results[1:]:
        assert torch.equal(spikes, results[0][0])
        assert torch.equal(membrane, results[0][1])


def test_input_that_is_not_contiguous_gives_the_same_spikes_and_gradients():
    constants = {"alpha": 0.3, "beta": 0.9, "threshold": 1.0, "reset": "hard", "floor": False}
    constants["backward"] = Backward("triangular", 1.0)
    current, bias, weights = random_case(3, (6, 4, 10), (10,), torch.float32)
    strided = current.transpose(0, 2).contiguous().transpose(0, 2)
    assert not strided.is_contiguous()
    spikes, gradients = spikes_and_gradients(lif_scan, strided, bias, weights, **constants)
    expected_spikes, expected_gradients = spikes_and_gradients(lif_scan, current, bias, weights, **constants)
    assert torch.equal(spikes, expected_spikes)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("first", [0.4, 0.9, 1.2])
def test_gradient_over_one_step_is_that_of_the_four_formulas(reset, detached, first):
    # Yang, arXiv 2011.09964; seen through the second spike alone: d s[1] / d x[0] = h(v[1]) * dv[1]/dv[0].
    beta, threshold = 0.8, 1.0
    current = torch.tensor([first, 0.6], dtype=torch.float64).view(2, 1, 1).requires_grad_()
    how = Backward("triangular", 1.0, detach_reset=detached)
    spikes, _ = lif_scan(current, None, alpha=0, beta=beta, threshold=threshold, reset=reset, floor=False, backward=how)
    (gradient,) = torch.autograd.grad(spikes[1].sum(), current)
    s = first > threshold
    slope = 0 if detached else 1 - abs(first - threshold)
    after = first * (1 - s) if reset == "hard" else first - threshold * s
    jacobian = beta * ((1 - s) - first * slope) if reset == "hard" else beta * (1 - threshold * slope)
    second_slope = max(0, 1 - abs(beta * after + 0.6 - threshold))
    assert gradient[0].item() == pytest.approx(second_slope * jacobian)
    assert gradient[1].item() == pytest.approx(second_slope)


@pytest.mark.parametrize(
    ("reset", "voltages"),
    [
        ("hard", [2.5, 0.5, 0.75]),
        ("soft", [2.5, 1.25, 0.625]),
        ("hard-late", [2.5, 0, 0.5]),
        ("soft-late", [2.5, 0.75, 0.875]),
    ],
)
def test_a_late_reset_acts_one_step_after_the_spike_on_what_has_leaked_and_arrived(reset, voltages):
    current = torch.tensor([2.5, 0.5, 0.5]).view(3, 1, 1)
    constants = {"alpha": 0.0, "beta": 0.5, "threshold": 1.0, "reset": reset, "floor": False}
    spikes, membranes = lif_scan(current, None, backward=Backward("triangular", 1.0), **constants)
    assert membranes.flatten().tolist() == voltages
    assert spikes.flatten().tolist() == [v > 1 for v in voltages]


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
