"""The scan over time of a layer of leaky integrate-and-fire neurons, forward and backward, as ONE autograd function.

Without recurrence, on the CPU in float32, it is a pair of fused Numba kernels; otherwise, and as the kernels'
oracle, a plain torch twin. Both do the same float operations in the same order (no fused multiply-add), so their
spikes and membranes are equal bit for bit; gradients differ in the last digits of h alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional as F

from train.surrogates import SURROGATES, Backward

Reset = Literal["hard", "soft", "hard-late", "soft-late"]

TRIANGULAR, RECTANGULAR, SIGMOID, FAST_SIGMOID, ARCTAN, SLAYER = range(len(SURROGATES))  # their places there

TILE = 1024  # neurons whose state stays in the first-level cache for all steps
WORTH_A_THREAD = 1 << 16  # state updates below which handing work to another thread costs more than it saves


Share = float | Tensor  # of current or voltage kept per step: one for all neurons, or [M], one for each


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


Forward = Callable[[Tensor, Tensor, Neuron, Tensor | None], tuple[Tensor, Tensor]]


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
    forward: Forward | None = None,
) -> tuple[Tensor, Tensor]:
    """Spikes (0 or 1, in the current's dtype) of neurons that start from u = v = 0, and their membranes.

    Shapes: current and results [T, B, *shape]; bias, alpha and beta anything that broadcasts to [*shape]; recurrent
    [N, N] for neurons of shape (N,), or None. Each step, in this order (docs/arithmetic.md, in floats):

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

    forward: what computes the steps in another arithmetic, like `plain_forward`; None for this one in floats. The
    backward pass is the same, on the membranes that it returns.
    """
    constants = (threshold, *_kind(reset, floor))
    return _Scan.apply(
        current, bias, alpha, beta, recurrent, backward.width, backward, constants, forward or float_forward
    )


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
        width: float | Tensor,
        backward: Backward,
        constants: tuple[float, bool, bool, bool],
        forward: Forward,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # a membrane that nothing looks at costs nothing
        flat, shape = current.reshape(len(current), -1), current.shape[1:]
        flat_bias, flat_alpha, flat_beta = (
            torch.as_tensor(0.0 if x is None else x, dtype=current.dtype, device=current.device)
            .expand(shape)
            .reshape(-1)
            for x in (bias, alpha, beta)
        )
        neuron = Neuron(flat_alpha, flat_beta, *constants)
        spikes, membrane = forward(flat, flat_bias, neuron, recurrent)
        widths = torch.as_tensor(width, dtype=current.dtype, device=current.device).expand(len(flat))
        kept = backward.draw(flat.shape) if any(ctx.needs_input_grad) else None
        kept = None if kept is None else kept.to(current.device)
        heard = spikes if recurrent is not None or neuron.skips else None
        ctx.save_for_backward(membrane, flat_bias, flat_alpha, flat_beta, widths, kept, recurrent, heard)
        ctx.constants, ctx.how, ctx.shape = constants, backward, current.shape
        ctx.shapes = [x.shape if isinstance(x, Tensor) else None for x in (bias, alpha, beta)]
        return spikes.view(current.shape), _deciding(membrane, neuron, spikes).view(current.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        membrane, flat_bias, alpha, beta, widths, kept, recurrent, heard = ctx.saved_tensors
        neuron = Neuron(alpha, beta, *ctx.constants)
        slope = _Slope(ctx.how, widths, kept, learned=ctx.needs_input_grad[5])
        grad_spikes, grad_membrane = (None if grad is None else grad.reshape(membrane.shape) for grad in grads)
        if grad_spikes is None:
            grad_spikes = torch.zeros_like(membrane)
        if recurrent is None and fusible(membrane):
            found = fused_backward(grad_spikes, grad_membrane, membrane, neuron, slope, heard)
        else:
            found = plain_backward(grad_spikes, grad_membrane, membrane, neuron, slope, recurrent, heard)
        shares: tuple[Tensor | None, Tensor | None] = (None, None)
        if any(ctx.needs_input_grad[2:4]):
            shares = share_gradients(found.current, membrane, flat_bias, neuron, heard)
        back = [
            grad.view(ctx.shape[1:]).sum_to_size(shape) if grad is not None and shape is not None else None
            for grad, shape in zip((found.bias, *shares), ctx.shapes, strict=True)
        ]
        grad_recurrent = None
        if recurrent is not None:
            neurons = len(recurrent)
            grad_recurrent = found.current[1:].reshape(-1, neurons).T @ heard[:-1].reshape(-1, neurons)
        return found.current.view(ctx.shape), *back, grad_recurrent, found.width, None, None, None


def share_gradients(
    grad_current: Tensor, membrane: Tensor, bias: Tensor, neuron: Neuron, spikes: Tensor | None = None
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


def float_forward(current: Tensor, bias: Tensor, neuron: Neuron, recurrent: Tensor | None) -> tuple[Tensor, Tensor]:
    """`plain_forward`, fused where that is possible."""
    if recurrent is None and fusible(current):
        return fused_forward(current, bias, neuron)
    return plain_forward(current, bias, neuron, recurrent)


def plain_forward(
    current: Tensor, bias: Tensor, neuron: Neuron, recurrent: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Spikes, and membranes before floor and reset, [T, M] each, of current [T, M] and bias [M]; on any device.

    Those are the membranes that decide, but for what a hard late reset puts to 0: there the backward pass needs them.
    With `recurrent` [N, N] the M neurons are M / N samples of a population of N.
    """
    spikes, membranes = torch.empty_like(current), torch.empty_like(current)
    u = v = torch.zeros_like(bias)
    fired = torch.zeros_like(bias, dtype=torch.bool)
    for t, arriving in enumerate(current):
        if recurrent is not None and t > 0:
            arriving = arriving + F.linear(spikes[t - 1].view(-1, len(recurrent)), recurrent).view(-1)
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
            error[t] += (grad_current[t + 1].view(-1, len(recurrent)) @ recurrent).view(-1)
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
    current: Tensor, bias: Tensor, neuron: Neuron, kernel: Callable[..., None] | None = None
) -> tuple[Tensor, Tensor]:
    """`plain_forward`, or what another kernel computes, in one pass over memory; float32 on the CPU."""
    spikes, membranes = torch.empty_like(current), torch.empty_like(current)
    arrays = [tensor.detach().contiguous().numpy() for tensor in (current, bias)] + [spikes.numpy(), membranes.numpy()]
    _over_neurons(kernel or _forward_kernel, current, *arrays, *_constants(neuron, current.shape[1]))
    return spikes, membranes


def fused_backward(
    grad_spikes: Tensor,
    grad_membrane: Tensor | None,
    membrane: Tensor,
    neuron: Neuron,
    slope: _Slope,
    spikes: Tensor | None = None,
) -> _Gradients:
    """`plain_backward` in one pass over memory, h computed on the way; float32 on the CPU."""
    how = slope.backward
    grad_current, grad_bias = torch.empty_like(membrane), torch.empty_like(membrane[0])
    moment = torch.zeros_like(grad_bias) if slope.learned else torch.empty(0)
    absent = torch.empty(0, 0)
    extra, kept, heard = (absent if x is None else x for x in (grad_membrane, slope.kept, spikes))
    inputs = (grad_spikes, extra, membrane, slope.widths, kept.bool(), heard)
    arrays = [x.detach().contiguous().numpy() for x in inputs]
    arrays += [x.numpy() for x in (grad_current, grad_bias, moment)]
    constants = _constants(neuron, len(grad_bias))
    flags = (list(SURROGATES).index(how.shape), np.float32(how.gain), how.detach_reset, how.dead_below_zero)
    _over_neurons(_backward_kernel, membrane, *arrays, *constants, *flags)
    grad_width = -moment.sum() / (slope.widths[0] * membrane.numel()) if slope.learned else None
    return _Gradients(grad_current, grad_bias, grad_width)


def fusible(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _constants(neuron: Neuron, neurons: int) -> tuple[np.ndarray, np.ndarray, np.float32, bool, bool, bool]:
    # torch multiplies a float32 tensor by a Python number in float32; Numba would go through float64 for a float64 one.
    alpha, beta = (torch.as_tensor(share, dtype=torch.float32).detach() for share in (neuron.alpha, neuron.beta))
    shares = [share.expand(neurons).contiguous().numpy() for share in (alpha, beta)]
    return shares[0], shares[1], np.float32(neuron.threshold), neuron.hard, neuron.floor, neuron.late


def _over_neurons(kernel: Callable[..., None], like: Tensor, *arguments: Any) -> None:
    """Run a kernel on all neurons of a [T, M] tensor, on as many threads as torch itself may use."""
    neurons = like.shape[1]
    threads = max(1, min(torch.get_num_threads(), like.numel() // WORTH_A_THREAD))
    edges = [neurons * part // threads for part in range(threads + 1)]
    elsewhere = [_pool().submit(kernel, a, b, *arguments) for a, b in pairwise(edges[1:])]
    kernel(edges[0], edges[1], *arguments)
    for part in elsewhere:
        part.result()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="scan")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child inherits the pool but none of its threads


# The inner loops are kept apart, each over rows that start at index 0: with few arrays in a loop LLVM can check that
# they do not overlap and uses vector instructions, which makes the kernels several times faster.


@njit(cache=True, nogil=True)
def _forward_kernel(first, last, current, bias, spikes, membranes, alpha, beta, threshold, hard, floor, late):  # type: ignore[no-untyped-def]
    zero, one = np.float32(0), np.float32(1)
    u, v = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for start in range(first, last, TILE):
        stop = min(start + TILE, last)
        size = stop - start
        drive, keep_u, keep_v = bias[start:stop], alpha[start:stop], beta[start:stop]
        u[:] = zero
        v[:] = zero
        for t in range(current.shape[0]):
            arriving, fired, pre = current[t, start:stop], spikes[t, start:stop], membranes[t, start:stop]
            for i in range(size):
                u[i] = keep_u[i] * u[i] + arriving[i]
            for i in range(size):
                pre[i] = keep_v[i] * v[i] + u[i] + drive[i]
            if late:
                if not hard:
                    for i in range(size):
                        pre[i] = pre[i] - threshold if v[i] > threshold else pre[i]
                for i in range(size):
                    v[i] = zero if hard and v[i] > threshold else pre[i]
                for i in range(size):
                    fired[i] = one if v[i] > threshold else zero
            else:
                for i in range(size):
                    fired[i] = one if pre[i] > threshold else zero
                for i in range(size):
                    v[i] = (zero if hard else pre[i] - threshold) if pre[i] > threshold else pre[i]
            if floor:
                for i in range(size):
                    v[i] = zero if v[i] < zero else v[i]


@njit(cache=True, nogil=True)
def _slope_kernel(shape, membrane, threshold, width, h):  # type: ignore[no-untyped-def]
    """The shapes of train/surrogates.py, at distances of membranes from the threshold."""
    zero, one = np.float32(0), np.float32(1)
    peak, size = one / width, len(membrane)
    for i in range(size):
        h[i] = abs(membrane[i] - threshold)
    if shape == TRIANGULAR:
        fall = one / (width * width)
        for i in range(size):
            h[i] = peak - h[i] * fall
        for i in range(size):
            h[i] = h[i] if h[i] > zero else zero
    elif shape == RECTANGULAR:
        half = width / np.float32(2)
        for i in range(size):
            h[i] = peak if h[i] < half else zero
    elif shape == SIGMOID:
        steep = np.float32(4) * peak
        for i in range(size):
            h[i] = math.exp(-steep * h[i])
        for i in range(size):
            h[i] = steep * h[i] / ((one + h[i]) * (one + h[i]))
    elif shape == FAST_SIGMOID:
        steep = np.float32(2) * peak
        for i in range(size):
            h[i] = peak / ((one + steep * h[i]) * (one + steep * h[i]))
    elif shape == ARCTAN:
        steep = np.float32(math.pi) * peak
        for i in range(size):
            h[i] = peak / (one + steep * h[i] * (steep * h[i]))
    elif shape == SLAYER:
        steep = np.float32(2) * peak
        for i in range(size):
            h[i] = peak * math.exp(-steep * h[i])


@njit(cache=True, nogil=True)
def _backward_kernel(  # type: ignore[no-untyped-def]
    first, last, grad_spikes, grad_membrane, membrane, widths, kept, spikes, grad_current, grad_bias, moment,
    alpha, beta, threshold, hard, floor, late, shape, gain, detached, dead_below_zero,
):  # fmt: skip
    zero = np.float32(0)
    h, error = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    grad_u, grad_v = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    skips, deciding, late_cost = hard and late, np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for start in range(first, last, TILE):
        stop = min(start + TILE, last)
        size = stop - start
        total, keep_u, keep_v = grad_bias[start:stop], alpha[start:stop], beta[start:stop]
        total[:] = zero
        grad_u[:] = zero
        grad_v[:] = zero
        late_cost[:] = zero
        for t in range(membrane.shape[0] - 1, -1, -1):
            arriving, pre, leaving = grad_spikes[t, start:stop], membrane[t, start:stop], grad_current[t, start:stop]
            reached = pre
            if skips and t > 0:
                before, pre = spikes[t - 1, start:stop], deciding[:size]
                for i in range(size):
                    pre[i] = zero if before[i] > zero else reached[i]
            _slope_kernel(shape, pre, threshold, widths[t], h)
            if len(kept) > 0:
                left = kept[t, start:stop]
                for i in range(size):
                    h[i] = h[i] * gain if left[i] else zero
            if dead_below_zero:
                for i in range(size):
                    h[i] = h[i] if pre[i] > zero else zero
            if late:
                for i in range(size):
                    error[i] = arriving[i] - (zero if detached else late_cost[i])
            else:
                for i in range(size):
                    level = zero if floor and pre[i] <= zero else pre[i]
                    cost = zero if detached else level if hard else threshold
                    error[i] = arriving[i] - keep_v[i] * grad_v[i] * cost
            for i in range(size):
                stopped = (floor and pre[i] <= zero) or (hard and not late and pre[i] > threshold)
                grad_v[i] = (zero if stopped else keep_v[i] * grad_v[i]) + error[i] * h[i]
            if len(moment) > 0:
                moments = moment[start:stop]
                for i in range(size):
                    moments[i] += error[i] * h[i] * (pre[i] - threshold)
            if len(grad_membrane) > 0:
                extra = grad_membrane[t, start:stop]
                for i in range(size):
                    grad_v[i] += extra[i]
            if late:
                for i in range(size):
                    late_cost[i] = grad_v[i] * (reached[i] if hard else threshold)
            if skips and t > 0:
                for i in range(size):
                    grad_v[i] = zero if before[i] > zero else grad_v[i]
            for i in range(size):
                grad_u[i] = grad_v[i] + keep_u[i] * grad_u[i]
            for i in range(size):
                total[i] += grad_v[i]
            leaving[:] = grad_u[:size]
