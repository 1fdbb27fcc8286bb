"""The scan over time of a layer of leaky integrate-and-fire neurons, forward and backward, as ONE autograd function.

On the CPU in float32 it is a pair of compiled kernels (`train/kernels.py`); otherwise, and as the kernels' oracle, a
plain torch twin. Both do the same float operations in the same order (no fused multiply-add), so their spikes and
membranes are equal bit for bit; gradients differ in the last digits of h alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from train import kernels, sparse
from train.sparse import Geometry, Product
from train.surrogates import SURROGATES, Backward, Width
from train.threads import fusible, in_parts

Reset = Literal["hard", "soft", "hard-late", "soft-late"]
HARD_AND_LATE: dict[Reset, tuple[bool, bool]] = {
    "hard": (True, False),
    "soft": (False, False),
    "hard-late": (True, True),
    "soft-late": (False, True),
}

PLACES = {shape: place for place, shape in enumerate(SURROGATES)}
NOTHING, NO_MASK, NOBODY = np.empty((0, 0), np.float32), np.empty((0, 0), bool), np.empty(0, np.float32)  # for kernels

# Of current or voltage kept per step, or a bias: one for all neurons, or [N], one for each of a sample's, of which the
# M of a batch are so many times the same.
Share = float | Tensor


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


@dataclass
class State:
    """What neurons go on from: of their current, voltage and spikes after some step those that they remember, [up to 3,
    B, *shape]; zeros [1, B, *shape] at rest. A scan leaves here what they are like after its own steps.

    Its gradient is no derivative but what the backward pass of later steps hands on to that of earlier ones: gradients
    of current and voltage before they decay, and what a late reset costs.
    """

    neurons: Tensor


class _Slope(NamedTuple):
    """A Backward in one call: its width, one for all steps, a number or [1], or [T]; what its mask keeps, [T, M]; and
    whether the width wants a gradient."""

    backward: Backward
    widths: Width
    kept: Tensor | None = None
    learned: bool = False


class _Layout(NamedTuple):
    """How what neurons have, [T, B, *shape], lies in rows [T, M]: as it is, or with the channels of maps last."""

    shape: tuple[int, ...]  # [B, *shape]
    last: bool

    def rows(self, values: Tensor) -> Tensor:
        return (values.movedim(2, -1) if self.last else values).reshape(values.shape[0], -1)

    def unrolled(self, rows: Tensor) -> Tensor:
        """What `rows` made of values, as they were; of a single row too."""
        if not self.last:
            return rows.view(-1, *self.shape)
        batch, channels, *side = self.shape
        return rows.view(-1, batch, *side, channels).movedim(-1, 2)

    def each(self, values: Share, like: Tensor) -> Share:
        """What broadcasts to [*shape], as [N]; a number stays one."""
        if not isinstance(values, Tensor):
            return values
        over = values.to(like).expand(self.shape[1:])
        return (over.movedim(0, -1) if self.last else over).reshape(-1)


class _Gradients(NamedTuple):
    """current [T, M]; bias [M], summed over time; width, a scalar, if it was wanted."""

    current: Tensor
    bias: Tensor
    width: Tensor | None


Forward = Callable[..., tuple[Tensor, Tensor]]  # of current, bias, neuron, recurrent and perhaps a state


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
    state: State | None = None,
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

    state: what the neurons start from instead, and where they leave what they end with: two scans that share one are
    one scan, with its gradients but for those of alpha, beta and width.
    """
    hard, late = HARD_AND_LATE[reset]
    weight, geometry = synapse or (None, None)
    how = _How(backward, threshold, hard, floor, late, geometry, forward or float_forward)
    before = None if state is None else state.neurons
    spikes, membrane, after = _Scan.apply(current, bias, alpha, beta, recurrent, weight, backward.width, before, how)
    if state is not None:
        state.neurons = after
    return spikes, membrane


def after_reset(membrane: Tensor, *, threshold: float, reset: Reset, floor: bool) -> Tensor:
    """The voltage that neurons keep of their membrane, the one that decided whether they spike."""
    hard, late = HARD_AND_LATE[reset]
    return _after_reset(membrane, Neuron(0.0, 0.0, threshold, hard, floor, late))


class _How(NamedTuple):
    """What a scan is told beside tensors."""

    backward: Backward
    threshold: float
    hard: bool
    floor: bool
    late: bool
    geometry: Geometry | None
    forward: Forward


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
        before: Tensor | None,
        how: _How,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)  # a membrane that nothing looks at costs nothing
        maps = None
        if weight is not None:
            current, maps, ctx.known = sparse.product(current, weight, how.geometry)
        layout = _Layout(current.shape[1:], _channels_last(current))
        flat = layout.rows(current)
        if weight is None and fusible(flat):
            flat = flat.clone()  # that of others is not overwritten
        shares = layout.each(alpha, flat), layout.each(beta, flat)
        neuron, forward = Neuron(*shares, how.threshold, how.hard, how.floor, how.late), how.forward
        drive = layout.each(0.0 if bias is None else bias, flat)
        listens = recurrent is not None or neuron.skips
        after = earlier = left = None
        if before is not None:
            after = flat.new_zeros(3, flat.shape[1])
            after[_remembered(neuron, recurrent)] = layout.rows(before)
            earlier = after[2].clone() if listens else None
            forward = partial(forward, state=after)
        spikes, membrane = forward(flat, drive, neuron, recurrent)
        kept = how.backward.draw(flat.shape) if any(ctx.needs_input_grad) else None
        if kept is not None:
            kept = kept.to(current.device)
        ctx.save_for_backward(membrane, kept, recurrent, spikes if listens else None, earlier, maps, weight)
        ctx.neuron, ctx.drive, ctx.width, ctx.how, ctx.layout = neuron, drive, width, how, layout
        ctx.shapes = [x.shape if isinstance(x, Tensor) else None for x in (bias, alpha, beta)]
        decided = _deciding(membrane, neuron, spikes, earlier) if neuron.skips else membrane
        if after is not None:
            left = layout.unrolled(after[_remembered(neuron, recurrent)].clone())
        return layout.unrolled(spikes), layout.unrolled(decided), left

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        membrane, kept, recurrent, heard, earlier, maps, weight = ctx.saved_tensors
        neuron, layout, width, needed = ctx.neuron, ctx.layout, ctx.width, ctx.needs_input_grad
        widths = width.reshape(-1) if isinstance(width, Tensor) else width
        slope = _Slope(ctx.how.backward, widths, kept, learned=needed[6])
        grad_spikes, grad_membrane, handed = (None if grad is None else layout.rows(grad) for grad in grads)
        if grad_spikes is None:
            grad_spikes = torch.zeros_like(membrane)
        run = fused_backward if fusible(membrane) else plain_backward
        state = None
        if needed[7] or handed is not None:
            state = membrane.new_zeros(3, membrane.shape[1])
            if handed is not None:
                state[_remembered(neuron, recurrent)] = handed
        found = run(grad_spikes, grad_membrane, membrane, neuron, slope, recurrent, heard, earlier, state)
        of_neurons: tuple[Tensor | None, ...] = (found.bias, None, None)
        if any(needed[2:4]):
            of_neurons = (found.bias, *share_gradients(found.current, membrane, ctx.drive, neuron, heard))
        back = [
            None if grad is None or shape is None else layout.unrolled(grad).sum_to_size(shape)
            for grad, shape in zip(of_neurons, ctx.shapes, strict=True)
        ]
        grad_recurrent: Tensor | None = None
        grad_weight: Tensor | None = None
        grad_current = layout.unrolled(found.current)
        grad_reached: Tensor | None = grad_current
        if recurrent is not None:
            neurons = len(recurrent)
            grad_recurrent = found.current[1:].reshape(-1, neurons).T @ heard[:-1].reshape(-1, neurons)
            if earlier is not None:
                grad_recurrent += found.current[0].view(-1, neurons).T @ earlier.view(-1, neurons)
        if weight is not None:
            grad_reached, grad_weight = sparse.gradients(
                grad_current, maps, weight, ctx.how.geometry, ctx.known, needed[0], needed[5]
            )
        grad_before: Tensor | None = None
        if needed[7]:
            assert state is not None
            grad_before = layout.unrolled(state[_remembered(neuron, recurrent)].clone())
        return grad_reached, *back, grad_recurrent, grad_weight, found.width, grad_before, None


def _remembered(neuron: Neuron, recurrent: Tensor | None) -> slice:
    """Which of current, voltage and spikes, and of what `State` hands on in their place, later steps look at."""
    heard = recurrent is not None
    current = heard or isinstance(neuron.alpha, Tensor) or neuron.alpha != 0
    return slice(0 if current else 1, 3 if heard or neuron.late else 2)


def _channels_last(current: Tensor) -> bool:
    """Whether channels of a current [T, B, C, H, W] are the last in memory, as convolutions leave them."""
    return current.dim() == 5 and not current.is_contiguous() and current.movedim(2, -1).is_contiguous()


def share_gradients(
    grad_current: Tensor, membrane: Tensor, bias: Share, neuron: Neuron, spikes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of alpha and of beta, [M] each, from gradients of the current and membranes, [T, M] each.

    d alpha = sum of du[t] * u[t-1] and d beta = sum of dv[t] * v[t-1], v after the reset; u, v and dv follow from what
    is at hand: du = grad_current, dv[t] = du[t] - alpha * du[t+1], u[t] = membrane[t] - bias - beta * v[t-1], and plus
    what a soft late reset has subtracted. spikes: see `plain_backward`.
    """
    neuron, bias = of_all(neuron, bias, membrane.shape[1])
    after = _after_reset(_deciding(membrane, neuron, spikes), neuron)[:-1]
    grad_v = grad_current[1:].clone()
    grad_v[:-1] -= neuron.alpha * grad_current[2:]
    u = membrane - bias
    u[1:] -= neuron.beta * after
    if neuron.late and not neuron.hard:
        u[1:] += neuron.threshold * (membrane[:-1] > neuron.threshold)
    return (grad_current[1:] * u[:-1]).sum(0), (grad_v * after).sum(0)


def of_all(neuron: Neuron, bias: Share, neurons: int) -> tuple[Neuron, Share]:
    """Shares and bias of so many neurons, [M]."""
    alpha, beta, drive = (
        share.repeat(neurons // len(share)) if isinstance(share, Tensor) else share
        for share in (neuron.alpha, neuron.beta, bias)
    )
    return neuron._replace(alpha=alpha, beta=beta), drive


def _after_reset(membrane: Tensor, neuron: Neuron) -> Tensor:
    v = membrane.clamp(min=0) if neuron.floor else membrane
    if neuron.late:
        return v
    return torch.where(membrane > neuron.threshold, 0.0 if neuron.hard else v - neuron.threshold, v)


def _deciding(membrane: Tensor, neuron: Neuron, spikes: Tensor | None, earlier: Tensor | None = None) -> Tensor:
    """The membranes [T, M] that decide the spikes: a hard late reset puts 0 where there was a spike a step before;
    earlier: spikes [M] of the step before all."""
    if not neuron.skips:
        return membrane
    assert spikes is not None
    deciding = membrane.clone()
    deciding[1:][spikes[:-1] > 0] = 0
    if earlier is not None:
        deciding[0][earlier > 0] = 0
    return deciding


def float_forward(
    current: Tensor, bias: Share, neuron: Neuron, recurrent: Tensor | None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`plain_forward`, compiled where that is possible."""
    return (fused_forward if fusible(current) else plain_forward)(current, bias, neuron, recurrent, state=state)


def heard_from(spikes: Tensor, recurrent: Tensor) -> Tensor:
    """What neurons of a step of spikes [M] add to each other's current at the next, [M]."""
    return F.linear(spikes.view(-1, len(recurrent)), recurrent).view(-1)


def plain_forward(
    current: Tensor, bias: Share, neuron: Neuron, recurrent: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Spikes, and membranes before floor and reset, [T, M] each, of current [T, M] and a bias; on any device.

    Those are the membranes that decide, but for what a hard late reset puts to 0: there the backward pass needs them.
    With `recurrent` [N, N] the M neurons are M / N samples of a population of N. state [3, M]: what they start from
    instead of rest, left as it is after these steps.
    """
    neuron, bias = of_all(neuron, bias, current.shape[1])
    spikes, membranes = torch.empty_like(current), torch.empty_like(current)
    u, v, before = current.new_zeros(3, current.shape[1]) if state is None else state
    fired = before > 0
    for t, arriving in enumerate(current):
        if recurrent is not None and (t > 0 or state is not None):
            arriving = arriving + heard_from(spikes[t - 1] if t > 0 else before, recurrent)
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
    if state is not None:
        state.copy_(torch.stack([u, v, spikes[-1]]))
    return spikes, membranes


def plain_backward(
    grad_spikes: Tensor,
    grad_membrane: Tensor | None,
    membrane: Tensor,
    neuron: Neuron,
    slope: _Slope,
    recurrent: Tensor | None = None,
    spikes: Tensor | None = None,
    earlier: Tensor | None = None,
    state: Tensor | None = None,
) -> _Gradients:
    """From gradients [T, M] of spikes and, if there are any, of the membranes that decide; on any device.

    spikes: [T, M], what the forward pass returned, for hard late resets and otherwise not looked at; earlier [M]: those
    of the step before, if there was one. state [3, M]: what later steps hand on, left as these steps do (see `State`).
    """
    neuron, _ = of_all(neuron, 0.0, membrane.shape[1])
    reached, membrane = membrane, _deciding(membrane, neuron, spikes, earlier)
    how, distance = slope.backward, membrane - neuron.threshold
    widths = torch.as_tensor(slope.widths, dtype=membrane.dtype, device=membrane.device).reshape(-1)
    h = how.slope(membrane, neuron.threshold, widths, slope.kept)
    grad_current, error = torch.empty_like(membrane), torch.empty_like(membrane)
    grad_bias = torch.zeros_like(membrane[0])
    grad_u, grad_v, late_cost = torch.zeros_like(membrane[:1]).expand(3, -1) if state is None else state
    for t in reversed(range(len(membrane))):
        after_reset = neuron.beta * grad_v
        floored = membrane[t].clamp(min=0) if neuron.floor else membrane[t]
        error[t] = grad_spikes[t]
        if recurrent is not None:
            error[t] += heard_from(grad_u, recurrent.T)
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
        elif neuron.skips and earlier is not None:
            grad_v = torch.where(earlier > 0, 0.0, grad_v)
        grad_u = grad_v + neuron.alpha * grad_u
        grad_bias = grad_bias + grad_v
        grad_current[t] = grad_u
    if state is not None:
        state.copy_(torch.stack([grad_u, grad_v, late_cost]))
    grad_width = -(error * h * distance).mean() / widths[0] if slope.learned else None
    return _Gradients(grad_current, grad_bias, grad_width)


def fused_forward(
    current: Tensor,
    bias: Share,
    neuron: Neuron,
    recurrent: Tensor | None = None,
    kernel: Callable[..., None] = kernels.forward,
    heard: Callable[[Tensor, Tensor], Tensor] = heard_from,
    precision: type = np.float32,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`plain_forward` in one pass over memory, contiguous float32 on the CPU; the membranes overwrite the current.

    kernel, heard, precision: what steps and what the neurons hear of each other in another arithmetic, and its state.
    """
    steps, neurons = current.shape
    spikes, remembering = torch.empty_like(current), 1 if recurrent is None else neurons
    kept: np.ndarray = np.zeros((2, remembering), precision) if state is None else state.numpy()
    arrays = (current.numpy(), _array(bias), spikes.numpy(), kept)
    constants = (_array(neuron.alpha), _array(neuron.beta), np.float32(neuron.threshold), *neuron[3:])
    if recurrent is None:
        in_parts(kernel, neurons, steps * neurons, 0, steps, *arrays, *constants)
    else:
        for t in range(steps):
            if t > 0:
                current[t] += heard(spikes[t - 1], recurrent)
            elif state is not None:
                current[t] += heard(state[2], recurrent)
            in_parts(kernel, neurons, neurons, t, t + 1, *arrays, *constants)
    if state is not None:
        state[2] = spikes[-1]
    return spikes, current


def fused_backward(
    grad_spikes: Tensor,
    grad_membrane: Tensor | None,
    membrane: Tensor,
    neuron: Neuron,
    slope: _Slope,
    recurrent: Tensor | None = None,
    spikes: Tensor | None = None,
    earlier: Tensor | None = None,
    state: Tensor | None = None,
) -> _Gradients:
    """`plain_backward` in one pass over memory, h computed on the way; float32 on the CPU."""
    how, (steps, neurons) = slope.backward, membrane.shape
    grad_spikes = grad_spikes.contiguous() if recurrent is None else grad_spikes.clone()
    grad_current, grad_bias = torch.empty_like(membrane), np.zeros(neurons, np.float32)
    moment = np.zeros(neurons if slope.learned else 0, np.float32)
    following = np.zeros((3, 1 if recurrent is None else neurons), np.float32) if state is None else state.numpy()
    before = np.zeros(neurons, np.float32) if neuron.skips else NOBODY
    arrays = (
        *(grad_spikes.numpy(), NOTHING if grad_membrane is None else _array(grad_membrane), membrane.numpy()),
        *(_array(slope.widths), NO_MASK if slope.kept is None else slope.kept.numpy()),
        *(NOTHING if spikes is None else spikes.numpy(), before if earlier is None else earlier.numpy()),
        *(grad_current.numpy(), grad_bias, moment, following),
    )
    constants = (_array(neuron.alpha), _array(neuron.beta), np.float32(neuron.threshold), *neuron[3:])
    flags = (PLACES[how.shape], np.float32(how.gain), how.detach_reset, how.dead_below_zero)
    if recurrent is None:
        in_parts(kernels.backward, neurons, steps * neurons, 0, steps, *arrays, *constants, *flags)
    else:
        for t in reversed(range(steps)):
            grad_spikes[t] += heard_from(torch.from_numpy(following[0]), recurrent.T)
            in_parts(kernels.backward, neurons, neurons, t, t + 1, *arrays, *constants, *flags)
    grad_width = None
    if slope.learned:
        assert isinstance(slope.widths, Tensor)
        grad_width = -torch.from_numpy(moment).sum() / (slope.widths[0] * membrane.numel())
    return _Gradients(grad_current, torch.from_numpy(grad_bias), grad_width)


def _array(values: Share) -> np.ndarray:
    """As kernels take it: in float32 too, since torch multiplies a float32 tensor by a number in float32."""
    return values.contiguous().numpy() if isinstance(values, Tensor) else _single(values)


@lru_cache
def _single(value: float) -> np.ndarray:
    """Made once: nothing writes into it."""
    return np.array([value], np.float32)
