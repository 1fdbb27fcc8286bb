"""The scan over time of a layer of leaky integrate-and-fire neurons, forward and backward, as ONE autograd function.

On the CPU in float32 it is a pair of compiled kernels (`train/kernels.py`); otherwise, and as the kernels' oracle, a
plain torch twin. Both do the same float operations in the same order (no fused multiply-add), so their spikes and
membranes are equal bit for bit; gradients differ in the last digits of h alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from train import kernels, sparse
from train.sparse import Geometry, Product
from train.surrogates import SURROGATES, Backward
from train.threads import fusible, in_parts

Reset = Literal["hard", "soft", "hard-late", "soft-late"]

Share = float | Tensor  # of current or voltage kept per step, or a bias: one for all neurons, or [M], one for each


class Neuron(NamedTuple):
    """Shares, threshold, and how they are reset, of flattened neurons."""

    alpha: Share
    beta: Share
    threshold: float
    hard: bool
    floor: bool
    late: bool = False

    @property
    def skips(self) -> bool:
        """Whether the step after a spike is lost: a hard late reset clears what arrives in it too."""
        return self.hard and self.late


class _Slope(NamedTuple):
    """A Backward in one call: its widths [T], what its mask keeps [T, M], and whether the width wants a gradient."""

    backward: Backward
    widths: Tensor
    kept: Tensor | None = None
    learned: bool = False


class _Gradients(NamedTuple):
    """current [T, M]; bias [M], summed over time; width, a scalar, if it was wanted."""

    current: Tensor
    bias: Tensor
    width: Tensor | None


Forward = Callable[[Tensor, Share, Neuron, Tensor | None], tuple[Tensor, Tensor]]


def lif_scan(
    current: Tensor,
    bias: Tensor | None,
    *,
    alpha: Share,
    beta: Share,
    threshold: float,
    reset: Reset,
    floor: bool,
    backward: Backward,
    recurrent: Tensor | None = None,
    synapse: Product | None = None,
    forward: Forward | None = None,
) -> tuple[Tensor, Tensor]:
    """Spikes (0 or 1, in the current's dtype) of neurons that start from u = v = 0, and their membranes.

    Shapes: current and results [T, B, *shape]; bias, alpha and beta anything that broadcasts to [*shape]; recurrent
    [N, N] for neurons of shape (N,), or None. synapse: of which the current is the product with what is given in its
    place, maps [T, B, ...] of any type; a layer is then one step for autograd, and its current needs no memory of its
    own. Each step, in this order (docs/arithmetic.md, in floats):

        u = alpha * u + current[t] + recurrent s[t - 1]     the bias does not pass through u
        v = beta * v + u + bias
        v = 0 where s[t - 1] (hard-late), v - threshold * s[t - 1] (soft-late)
        s = v > threshold                         strictly; this v is the membrane that is returned
        v = max(v, 0)                             only with `floor`; it decides no spike, thresholds being above 0
        v = 0 where s (hard), v - threshold * s (soft)

    A late reset is that of snnTorch's `reset_delay`: a hard one loses what arrives in its step, a soft one subtracts
    what no leak has shrunk.

    `backward` says what h = ds/dv is, a function of v - threshold, v being the membrane, and whether the reset is
    followed too (Yang, arXiv 2011.09964): dv[t+1]/dv[t] = beta * ((1 - s) - v * h) for hard reset,
    beta * (1 - threshold * h) for soft; late, beta * (1 - s) - (beta * v + u + bias) * h, the bracket being that of
    step t + 1, and beta - threshold * h; detached, without h. Where the floor holds the membrane, h is still that of v
    below it, so that a neuron which never gets above 0 can learn to.

    A width that is learned gets -(v - threshold) / width * h times the gradient of s, through the reset too, as if s
    were h's primitive (after PSG, arXiv 2304.13289): the mean over neurons and steps, since the sum would grow with the
    layer.

    forward: what computes the steps in another arithmetic, like `float_forward`; None for this one in floats. The
    backward pass is the same, on the membranes that it returns.
    """
    constants = (threshold, *_kind(reset, floor))
    weight, geometry = synapse or (None, None)
    how = (backward, constants, geometry, forward or float_forward)
    return _Scan.apply(current, bias, alpha, beta, recurrent, weight, backward.width, *how)


def after_reset(membrane: Tensor, *, threshold: float, reset: Reset, floor: bool) -> Tensor:
    """The voltage that neurons keep of their membrane, the one that decided whether they spike."""
    return _after_reset(membrane, Neuron(0.0, 0.0, threshold, *_kind(reset, floor)))


def _kind(reset: Reset, floor: bool) -> tuple[bool, bool, bool]:
    """The last fields of a Neuron: hard, floor, late."""
    return reset.startswith("hard"), floor, reset.endswith("-late")


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        bias: Tensor | None,
        alpha: Share,
        beta: Share,
        recurrent: Tensor | None,
        weight: Tensor | None,
        width: float | Tensor,
        backward: Backward,
        constants: tuple[float, bool, bool, bool],
        geometry: Geometry | None,
        forward: Forward,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # a membrane that nothing looks at costs nothing
        ctx.known = None
        if weight is not None:
            current, ctx.known = sparse.product(current, weight, geometry)
        maps = ctx.known.maps if ctx.known else None
        flat = _rows(current)
        if weight is None and fusible(flat):
            flat = flat.clone()  # that of others is not overwritten
        neuron = Neuron(_flat(alpha, current), _flat(beta, current), *constants)
        drive = _flat(0.0 if bias is None else bias, current)
        spikes, membrane = forward(flat, drive, neuron, recurrent)
        kept = backward.draw(flat.shape) if any(ctx.needs_input_grad) else None
        kept = None if kept is None else kept.to(current.device)
        heard = spikes if recurrent is not None or neuron.skips else None
        ctx.save_for_backward(membrane, kept, recurrent, heard, maps, weight)
        ctx.known = ctx.known and ctx.known._replace(maps=None)
        ctx.neuron, ctx.drive, ctx.width, ctx.how = neuron, drive, width, backward
        ctx.geometry, ctx.shape, ctx.last = geometry, current.shape, _channels_last(current)
        ctx.shapes = [x.shape if isinstance(x, Tensor) else None for x in (bias, alpha, beta)]
        decided = _deciding(membrane, neuron, spikes)
        return _unrolled(spikes, ctx.shape, ctx.last), _unrolled(decided, ctx.shape, ctx.last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        membrane, kept, recurrent, heard, maps, weight = ctx.saved_tensors
        neuron, needed = ctx.neuron, ctx.needs_input_grad
        widths = torch.as_tensor(ctx.width, dtype=membrane.dtype, device=membrane.device).expand(len(membrane))
        slope = _Slope(ctx.how, widths, kept, learned=needed[6])
        grad_spikes, grad_membrane = (None if grad is None else _rows(grad, ctx.last) for grad in grads)
        if grad_spikes is None:
            grad_spikes = torch.zeros_like(membrane)
        run = fused_backward if fusible(membrane) else plain_backward
        found = run(grad_spikes, grad_membrane, membrane, neuron, slope, recurrent, heard)
        shares: tuple[Tensor | None, Tensor | None] = (None, None)
        if any(needed[2:4]):
            shares = share_gradients(found.current, membrane, ctx.drive, neuron, heard)
        back = [
            _unrolled(grad[None], (1, *ctx.shape[1:]), ctx.last)[0].sum_to_size(shape)
            if grad is not None and shape is not None
            else None
            for grad, shape in zip((found.bias, *shares), ctx.shapes, strict=True)
        ]
        grad_recurrent: Tensor | None = None
        grad_weight: Tensor | None = None
        grad_current = _unrolled(found.current, ctx.shape, ctx.last)
        grad_reached: Tensor | None = grad_current
        if recurrent is not None:
            neurons = len(recurrent)
            grad_recurrent = found.current[1:].reshape(-1, neurons).T @ heard[:-1].reshape(-1, neurons)
        if weight is not None:
            known = ctx.known._replace(maps=maps)
            grad_reached, grad_weight = sparse.gradients(
                grad_current, weight, ctx.geometry, known, needed[0], needed[5]
            )
        return grad_reached, *back, grad_recurrent, grad_weight, found.width, None, None, None, None


def _channels_last(current: Tensor) -> bool:
    """Whether channels of a current [T, B, C, H, W] are the last in memory, as convolutions leave them."""
    return current.dim() == 5 and not current.is_contiguous() and current.movedim(2, -1).is_contiguous()


def _rows(values: Tensor, last: bool | None = None) -> Tensor:
    """Values [T, B, *shape] as [T, M], neurons in the order of the memory, or with their channels last."""
    last = _channels_last(values) if last is None else last
    return (values.movedim(2, -1) if last else values).reshape(len(values), -1)


def _unrolled(rows: Tensor, shape: tuple[int, ...], last: bool) -> Tensor:
    """What `_rows` made of values of that shape, as they were."""
    if not last:
        return rows.view(shape)
    steps, batch, channels, *side = shape
    return rows.view(steps, batch, *side, channels).movedim(-1, 2)


def _flat(values: Share, current: Tensor) -> Share:
    """What broadcasts to a step of current [T, B, *shape], as [M]; a number stays one."""
    if not isinstance(values, Tensor):
        return values
    over = values.detach().to(current).expand(current.shape[1:])
    return _rows(over[None], _channels_last(current))[0]


def share_gradients(
    grad_current: Tensor, membrane: Tensor, bias: Share, neuron: Neuron, spikes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of alpha and of beta, [M] each, from gradients of the current and membranes, [T, M] each.

    d alpha = sum of du[t] * u[t-1] and d beta = sum of dv[t] * v[t-1], v after the reset; u, v and dv follow from what
    is at hand: du = grad_current, dv[t] = du[t] - alpha * du[t+1], u[t] = membrane[t] - bias - beta * v[t-1], and plus
    what a soft late reset has subtracted. spikes: see `plain_backward`.
    """
    after = _after_reset(_deciding(membrane, neuron, spikes), neuron)[:-1]
    grad_v = grad_current[1:].clone()
    grad_v[:-1] -= neuron.alpha * grad_current[2:]
    u = membrane - bias
    u[1:] -= neuron.beta * after
    if neuron.late and not neuron.hard:
        u[1:] += neuron.threshold * (membrane[:-1] > neuron.threshold)
    return (grad_current[1:] * u[:-1]).sum(0), (grad_v * after).sum(0)


def _after_reset(membrane: Tensor, neuron: Neuron) -> Tensor:
    v = membrane.clamp(min=0) if neuron.floor else membrane
    if neuron.late:
        return v
    return torch.where(membrane > neuron.threshold, 0.0 if neuron.hard else v - neuron.threshold, v)


def _deciding(membrane: Tensor, neuron: Neuron, spikes: Tensor | None) -> Tensor:
    """The membranes [T, M] that decide the spikes: a hard late reset puts 0 where there was a spike a step before."""
    if not neuron.skips:
        return membrane
    assert spikes is not None
    deciding = membrane.clone()
    deciding[1:][spikes[:-1] > 0] = 0
    return deciding


def float_forward(current: Tensor, bias: Share, neuron: Neuron, recurrent: Tensor | None) -> tuple[Tensor, Tensor]:
    """`plain_forward`, compiled where that is possible."""
    return (fused_forward if fusible(current) else plain_forward)(current, bias, neuron, recurrent)


def heard_from(spikes: Tensor, recurrent: Tensor) -> Tensor:
    """What neurons of a step of spikes [M] add to each other's current at the next, [M]."""
    return F.linear(spikes.view(-1, len(recurrent)), recurrent).view(-1)


def plain_forward(
    current: Tensor, bias: Share, neuron: Neuron, recurrent: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Spikes, and membranes before floor and reset, [T, M] each, of current [T, M] and a bias; on any device.

    Those are the membranes that decide, but for what a hard late reset puts to 0: there the backward pass needs them.
    With `recurrent` [N, N] the M neurons are M / N samples of a population of N.
    """
    spikes, membranes = torch.empty_like(current), torch.empty_like(current)
    u = v = torch.zeros_like(current[0])
    fired = torch.zeros_like(u, dtype=torch.bool)
    for t, arriving in enumerate(current):
        if recurrent is not None and t > 0:
            arriving = arriving + heard_from(spikes[t - 1], recurrent)
        u = neuron.alpha * u + arriving
        v = neuron.beta * v + u + bias
        if neuron.late and not neuron.hard:
            v = torch.where(fired, v - neuron.threshold, v)
        membranes[t] = v
        if neuron.late and neuron.hard:
            v = torch.where(fired, 0.0, v)
        fired = v > neuron.threshold
        spikes[t] = fired
        v = _after_reset(v, neuron)
    return spikes, membranes


def plain_backward(
    grad_spikes: Tensor,
    grad_membrane: Tensor | None,
    membrane: Tensor,
    neuron: Neuron,
    slope: _Slope,
    recurrent: Tensor | None = None,
    spikes: Tensor | None = None,
) -> _Gradients:
    """From gradients [T, M] of spikes and, if there are any, of the membranes that decide; on any device.

    spikes: [T, M], what the forward pass returned, for hard late resets and otherwise not looked at.
    """
    reached, membrane = membrane, _deciding(membrane, neuron, spikes)
    how, distance = slope.backward, membrane - neuron.threshold
    h = how.slope(membrane, neuron.threshold, slope.widths, slope.kept)
    grad_current, error = torch.empty_like(membrane), torch.empty_like(membrane)
    grad_u = grad_v = grad_bias = late_cost = torch.zeros_like(membrane[0])
    for t in reversed(range(len(membrane))):
        after_reset = neuron.beta * grad_v
        floored = membrane[t].clamp(min=0) if neuron.floor else membrane[t]
        error[t] = grad_spikes[t]
        if recurrent is not None and t + 1 < len(membrane):
            error[t] += heard_from(grad_current[t + 1], recurrent.T)
        if not how.detach_reset:
            now = after_reset * (floored if neuron.hard else neuron.threshold)
            error[t] -= late_cost if neuron.late else now
        gated = after_reset * (membrane[t] <= neuron.threshold) if neuron.hard and not neuron.late else after_reset
        if neuron.floor:
            gated = gated * (membrane[t] > 0)
        grad_v = gated + error[t] * h[t]
        if grad_membrane is not None:
            grad_v = grad_v + grad_membrane[t]
        late_cost = grad_v * (reached[t] if neuron.hard else neuron.threshold)
        if neuron.skips and t > 0:
            grad_v = torch.where(membrane[t - 1] > neuron.threshold, 0.0, grad_v)
        grad_u = grad_v + neuron.alpha * grad_u
        grad_bias = grad_bias + grad_v
        grad_current[t] = grad_u
    grad_width = -(error * h * distance).mean() / slope.widths[0] if slope.learned else None
    return _Gradients(grad_current, grad_bias, grad_width)


def fused_forward(
    current: Tensor,
    bias: Share,
    neuron: Neuron,
    recurrent: Tensor | None = None,
    kernel: Callable[..., None] = kernels.forward,
    heard: Callable[[Tensor, Tensor], Tensor] = heard_from,
    precision: type = np.float32,
) -> tuple[Tensor, Tensor]:
    """`plain_forward` in one pass over memory, contiguous float32 on the CPU; the membranes overwrite the current.

    kernel, heard, precision: what steps and what the neurons hear of each other in another arithmetic, and its state.
    """
    steps, neurons = current.shape
    spikes = torch.empty_like(current)
    state: np.ndarray = np.zeros((2, neurons), precision)
    arrays = (current.numpy(), _array(bias), spikes.numpy(), state)
    constants = (_array(neuron.alpha), _array(neuron.beta), np.float32(neuron.threshold), *neuron[3:])
    if recurrent is None:
        in_parts(kernel, neurons, current.numel(), 0, steps, *arrays, *constants)
        return spikes, current
    for t in range(steps):
        if t > 0:
            current[t] += heard(spikes[t - 1], recurrent)
        in_parts(kernel, neurons, neurons, t, t + 1, *arrays, *constants)
    return spikes, current


def fused_backward(
    grad_spikes: Tensor,
    grad_membrane: Tensor | None,
    membrane: Tensor,
    neuron: Neuron,
    slope: _Slope,
    recurrent: Tensor | None = None,
    spikes: Tensor | None = None,
) -> _Gradients:
    """`plain_backward` in one pass over memory, h computed on the way; float32 on the CPU."""
    how, (steps, neurons) = slope.backward, membrane.shape
    grad_spikes = grad_spikes.contiguous() if recurrent is None else grad_spikes.clone()
    grad_current, grad_bias = torch.empty_like(membrane), membrane.new_zeros(neurons)
    moment = torch.zeros_like(grad_bias) if slope.learned else torch.empty(0)
    absent = torch.empty(0, 0)
    extra, heard = (absent if x is None else x for x in (grad_membrane, spikes))
    kept = absent.bool() if slope.kept is None else slope.kept
    arrays = [_array(x) for x in (grad_spikes, extra, membrane, slope.widths, kept, heard)]
    arrays += [_array(x) for x in (grad_current, grad_bias, moment)] + [np.zeros((3, neurons), np.float32)]
    constants = (_array(neuron.alpha), _array(neuron.beta), np.float32(neuron.threshold), *neuron[3:])
    flags = (list(SURROGATES).index(how.shape), np.float32(how.gain), how.detach_reset, how.dead_below_zero)
    if recurrent is None:
        in_parts(kernels.backward, neurons, membrane.numel(), 0, steps, *arrays, *constants, *flags)
    else:
        for t in reversed(range(steps)):
            if t + 1 < steps:
                grad_spikes[t] += heard_from(grad_current[t + 1], recurrent.T)
            in_parts(kernels.backward, neurons, neurons, t, t + 1, *arrays, *constants, *flags)
    grad_width = -moment.sum() / (slope.widths[0] * membrane.numel()) if slope.learned else None
    return _Gradients(grad_current, grad_bias, grad_width)


def _array(values: Share) -> np.ndarray:
    """As kernels take it: in float32 too, since torch multiplies a float32 tensor by a number in float32."""
    return values.detach().contiguous().numpy() if isinstance(values, Tensor) else np.array([values], np.float32)
