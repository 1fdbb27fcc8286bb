"""The scan over time of a layer of leaky integrate-and-fire neurons, forward and backward, as ONE autograd function.

Without recurrence, on the CPU in float32, it is a pair of fused Numba kernels; otherwise, and as the kernels'
oracle, a plain torch twin. Both do the same float operations in the same order (no fused multiply-add), so their
spikes are equal bit for bit.
"""

from __future__ import annotations

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

from train.surrogates import Surrogate

Reset = Literal["hard", "soft"]

TILE = 1024  # neurons whose state stays in the first-level cache for all steps
WORTH_A_THREAD = 1 << 16  # state updates below which handing work to another thread costs more than it saves


Share = float | Tensor  # of current or voltage kept per step: one for all neurons, or [M], one for each


class _Neuron(NamedTuple):
    alpha: Share
    beta: Share
    threshold: float
    hard: bool
    floor: bool


def lif_scan(
    current: Tensor,
    bias: Tensor | None,
    *,
    alpha: Share,
    beta: Share,
    threshold: float,
    reset: Reset,
    floor: bool,
    surrogate: Surrogate,
    width: float,
    recurrent: Tensor | None = None,
) -> Tensor:
    """Spikes (0 or 1, in the current's dtype) of neurons that start from u = v = 0.

    Shapes: current and result [T, B, *shape]; bias, alpha and beta anything that broadcasts to [*shape]; recurrent
    [N, N] for neurons of shape (N,), or None. Each step, in this order (docs/arithmetic.md, in floats):

        u = alpha * u + current[t] + recurrent s[t - 1]     the bias does not pass through u
        v = beta * v + u + bias
        s = v > threshold                         strictly
        v = max(v, 0)                             only with `floor`; it decides no spike, thresholds being above 0
        v = 0 where s (hard), v - threshold * s (soft)

    Backward takes h = surrogate(v - threshold, width) for ds/dv, v being the membrane before the reset, and follows the
    reset too (Yang, arXiv 2011.09964): dv[t+1]/dv[t] = beta * ((1 - s) - v * h) for hard reset,
    beta * (1 - threshold * h) for soft. Where the floor holds the membrane, h is still that of v below it, so that a
    neuron which never gets above 0 can learn to.
    """
    return _Scan.apply(current, bias, alpha, beta, recurrent, (threshold, reset == "hard", floor), surrogate, width)


def after_reset(membrane: Tensor, *, threshold: float, reset: Reset, floor: bool) -> Tensor:
    """The voltage that neurons keep of their membrane, the one that decided whether they spike."""
    return _after_reset(membrane, _Neuron(0.0, 0.0, threshold, reset == "hard", floor))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        bias: Tensor | None,
        alpha: Share,
        beta: Share,
        recurrent: Tensor | None,
        constants: tuple[float, bool, bool],
        surrogate: Surrogate,
        width: float,
    ) -> Tensor:
        flat, shape = current.reshape(len(current), -1), current.shape[1:]
        flat_bias, flat_alpha, flat_beta = (
            torch.as_tensor(0.0 if x is None else x, dtype=current.dtype, device=current.device)
            .expand(shape)
            .reshape(-1)
            for x in (bias, alpha, beta)
        )
        neuron = _Neuron(flat_alpha, flat_beta, *constants)
        if recurrent is None and _fusible(flat):
            spikes, membrane = fused_forward(flat, flat_bias, neuron)
        else:
            spikes, membrane = plain_forward(flat, flat_bias, neuron, recurrent)
        ctx.save_for_backward(
            membrane, flat_bias, flat_alpha, flat_beta, recurrent, None if recurrent is None else spikes
        )
        ctx.constants, ctx.surrogate, ctx.width, ctx.shape = constants, surrogate, width, current.shape
        ctx.shapes = [x.shape if isinstance(x, Tensor) else None for x in (bias, alpha, beta)]
        return spikes.view(current.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        membrane, flat_bias, alpha, beta, recurrent, heard = ctx.saved_tensors
        neuron = _Neuron(alpha, beta, *ctx.constants)
        slope = ctx.surrogate(membrane - neuron.threshold, ctx.width)
        arriving = grads[0].reshape(membrane.shape)
        if recurrent is None and _fusible(membrane):
            grad_current, grad_bias = fused_backward(arriving, membrane, slope, neuron)
        else:
            grad_current, grad_bias = plain_backward(arriving, membrane, slope, neuron, recurrent)
        found: list[Tensor | None] = [grad_bias, None, None]
        if any(ctx.needs_input_grad[2:4]):
            found[1:] = share_gradients(grad_current, membrane, flat_bias, neuron)
        back = [
            grad.view(ctx.shape[1:]).sum_to_size(shape) if grad is not None and shape is not None else None
            for grad, shape in zip(found, ctx.shapes, strict=True)
        ]
        grad_recurrent = None
        if recurrent is not None:
            neurons = len(recurrent)
            grad_recurrent = grad_current[1:].reshape(-1, neurons).T @ heard[:-1].reshape(-1, neurons)
        return grad_current.view(ctx.shape), *back, grad_recurrent, None, None, None


def share_gradients(grad_current: Tensor, membrane: Tensor, bias: Tensor, neuron: _Neuron) -> tuple[Tensor, Tensor]:
    """Gradients of alpha and of beta, [M] each, from gradients of the current and membranes, [T, M] each.

    d alpha = sum of du[t] * u[t-1] and d beta = sum of dv[t] * v[t-1], v after the reset; u, v and dv follow from what
    is at hand: du = grad_current, dv[t] = du[t] - alpha * du[t+1], u[t] = membrane[t] - bias - beta * v[t-1].
    """
    after = _after_reset(membrane, neuron)[:-1]
    grad_v = grad_current[1:].clone()
    grad_v[:-1] -= neuron.alpha * grad_current[2:]
    u = membrane - bias
    u[1:] -= neuron.beta * after
    return (grad_current[1:] * u[:-1]).sum(0), (grad_v * after).sum(0)


def _after_reset(membrane: Tensor, neuron: _Neuron) -> Tensor:
    v = membrane.clamp(min=0) if neuron.floor else membrane
    return torch.where(membrane > neuron.threshold, 0.0 if neuron.hard else v - neuron.threshold, v)


def plain_forward(
    current: Tensor, bias: Tensor, neuron: _Neuron, recurrent: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Spikes, and membranes before floor and reset, [T, M] each, of current [T, M] and bias [M]; on any device.

    With `recurrent` [N, N] the M neurons are M / N samples of a population of N.
    """
    spikes, membranes = torch.empty_like(current), torch.empty_like(current)
    u = v = torch.zeros_like(bias)
    for t, arriving in enumerate(current):
        if recurrent is not None and t > 0:
            arriving = arriving + F.linear(spikes[t - 1].view(-1, len(recurrent)), recurrent).view(-1)
        u = neuron.alpha * u + arriving
        v = neuron.beta * v + u + bias
        fired = v > neuron.threshold
        spikes[t], membranes[t] = fired, v
        v = _after_reset(v, neuron)
    return spikes, membranes


def plain_backward(
    grad_spikes: Tensor, membrane: Tensor, slope: Tensor, neuron: _Neuron, recurrent: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of the current [T, M] and of the bias [M] (summed over time), from [T, M] each."""
    grad_current = torch.empty_like(membrane)
    grad_u = grad_v = grad_bias = torch.zeros_like(membrane[0])
    for t in reversed(range(len(membrane))):
        after_reset = neuron.beta * grad_v
        floored = membrane[t].clamp(min=0) if neuron.floor else membrane[t]
        arriving = grad_spikes[t]
        if recurrent is not None and t + 1 < len(membrane):
            arriving = arriving + (grad_current[t + 1].view(-1, len(recurrent)) @ recurrent).view(-1)
        grad_s = arriving - after_reset * (floored if neuron.hard else neuron.threshold)
        kept = after_reset * (membrane[t] <= neuron.threshold) if neuron.hard else after_reset
        if neuron.floor:
            kept = kept * (membrane[t] > 0)
        grad_v = kept + grad_s * slope[t]
        grad_u = grad_v + neuron.alpha * grad_u
        grad_bias = grad_bias + grad_v
        grad_current[t] = grad_u
    return grad_current, grad_bias


def fused_forward(current: Tensor, bias: Tensor, neuron: _Neuron) -> tuple[Tensor, Tensor]:
    """`plain_forward` in one pass over memory; float32 on the CPU."""
    spikes, membranes = torch.empty_like(current), torch.empty_like(current)
    arrays = [tensor.detach().contiguous().numpy() for tensor in (current, bias)] + [spikes.numpy(), membranes.numpy()]
    _over_neurons(_forward_kernel, current, *arrays, *_constants(neuron, current.shape[1]))
    return spikes, membranes


def fused_backward(grad_spikes: Tensor, membrane: Tensor, slope: Tensor, neuron: _Neuron) -> tuple[Tensor, Tensor]:
    """`plain_backward` in one pass over memory; float32 on the CPU."""
    grad_current, grad_bias = torch.empty_like(membrane), torch.empty_like(membrane[0])
    arrays = [tensor.detach().contiguous().numpy() for tensor in (grad_spikes, membrane, slope)]
    _over_neurons(
        _backward_kernel,
        membrane,
        *arrays,
        grad_current.numpy(),
        grad_bias.numpy(),
        *_constants(neuron, len(grad_bias)),
    )
    return grad_current, grad_bias


def _fusible(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _constants(neuron: _Neuron, neurons: int) -> tuple[np.ndarray, np.ndarray, np.float32, bool, bool]:
    # torch multiplies a float32 tensor by a Python number in float32; Numba would go through float64 for a float64 one.
    alpha, beta = (torch.as_tensor(share, dtype=torch.float32).detach() for share in (neuron.alpha, neuron.beta))
    shares = [share.expand(neurons).contiguous().numpy() for share in (alpha, beta)]
    return shares[0], shares[1], np.float32(neuron.threshold), neuron.hard, neuron.floor


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
def _forward_kernel(first, last, current, bias, spikes, membranes, alpha, beta, threshold, hard, floor):  # type: ignore[no-untyped-def]
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
            for i in range(size):
                fired[i] = one if pre[i] > threshold else zero
            for i in range(size):
                v[i] = (zero if hard else pre[i] - threshold) if pre[i] > threshold else pre[i]
            if floor:
                for i in range(size):
                    v[i] = zero if v[i] < zero else v[i]


@njit(cache=True, nogil=True)
def _backward_kernel(  # type: ignore[no-untyped-def]
    first, last, grad_spikes, membrane, slope, grad_current, grad_bias, alpha, beta, threshold, hard, floor
):
    zero = np.float32(0)
    grad_u, grad_v = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for start in range(first, last, TILE):
        stop = min(start + TILE, last)
        size = stop - start
        total, keep_u, keep_v = grad_bias[start:stop], alpha[start:stop], beta[start:stop]
        total[:] = zero
        grad_u[:] = zero
        grad_v[:] = zero
        for t in range(membrane.shape[0] - 1, -1, -1):
            arriving, pre, h = grad_spikes[t, start:stop], membrane[t, start:stop], slope[t, start:stop]
            leaving = grad_current[t, start:stop]
            for i in range(size):
                after_reset = keep_v[i] * grad_v[i]
                held = floor and pre[i] <= zero
                kept = zero if held or (hard and pre[i] > threshold) else after_reset
                level = zero if held else pre[i]
                grad_v[i] = kept + (arriving[i] - after_reset * (level if hard else threshold)) * h[i]
            for i in range(size):
                grad_u[i] = grad_v[i] + keep_u[i] * grad_u[i]
            for i in range(size):
                total[i] += grad_v[i]
            leaving[:] = grad_u[:size]
