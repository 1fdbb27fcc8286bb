"""Training whose forward pass is the chip's arithmetic: what it learns, the integers do, spike by spike.

Before every forward pass the weights are folded and quantized as for the chip, by the same two functions. Synapses and
neurons then compute with these integers, in floats that hold them exactly, in units of activation (64 of the state):

    forward     docs/arithmetic.md, "One step"; dropout's scaled sums are rounded down like shifted ones
    backward    the surrogate's, on the membranes v / 64, its width times the population's scale; what is rounded,
                weights, biases, decays and shifted sums, passes its gradient straight through (Bengio et al.,
                arXiv 1308.3432), and the scale counts as a constant

Norms use the statistics that they remember; their gains and offsets are trained. For the next update they remember the
mean of the integers' currents, which a few weights on another level move, and the variance of those that unrounded
weights make of every fourth sample: what a norm brings to a usual size must not depend on which weights that size
rounds to 0.
float32 is exact: `scales.quantize` lets no activation leave 16 bits, at 8 bits of fraction or less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from base.errors import UserError
from quantize.arithmetic import STATE_LIMIT, STATE_SHIFT
from quantize.calibration import calibrate
from quantize.fold import FoldedLayer, fold, pooling, unfolded
from quantize.grids import levels
from quantize.precision import EIGHT_BITS, Bits, Precision
from quantize.scales import Quantized, quantize_each
from train.kernels import TILE, fill
from train.network import SpikingNetwork
from train.neurons import LIF
from train.parts import Skip, SumPool2d, over_channels, remember, running_affine, statistics
from train.scan import Neuron, Share, State, fused_forward, heard_from, lif_scan
from train.sparse import Product
from train.threads import fusible
from train.wiring import INPUT, Link, Norm, Stage, unchanging

STATE_UNIT = 1 << STATE_SHIFT
SAMPLED = 4  # one of so many samples is looked at by the norms


def check(network: SpikingNetwork, precision: Precision) -> None:
    """Raises UserError for a network that aware training does not know, and where scales would depend on samples."""
    if network.input_is_bias:
        raise UserError(
            f"layer {network.stages[0].name} takes the input as a bias, which aware training does not know; set "
            "direct = 'graded', or aware_epochs = 0"
        )
    if precision.range == "calibrated":
        raise UserError(
            "quantize.range = 'calibrated' takes samples, which aware training does not look at before every update; "
            "set range = 'proven', or aware_epochs = 0"
        )


class AwareNetwork(SpikingNetwork):
    """The parts of a spiking network, the same modules by the same names, that run as the integers they would become.

    precision: of the weights. inputs: [T, B, *input_shape], by which `precision.calibration` clips them. A readout's
    currents are the integers divided by 64 and by its population's scale.
    Raises UserError for a network whose input is a bias, and for a calibrated range; its forward pass as `fold` and
    `quantize` do.
    """

    def __init__(self, network: SpikingNetwork, inputs: Tensor, precision: Precision = EIGHT_BITS) -> None:
        nn.Module.__init__(self)
        check(network, precision)
        precision.check(stage.name for stage in network.stages)
        self.precision = precision
        self.input_shape, self.payload_bits, self.input_is_bias = network.input_shape, network.payload_bits, False
        self.input_unit = 1.0
        self.register_buffer("time_weights", network.time_weights)
        self.stages = network.stages
        for name, part in network.named_children():
            self.add_module(name, part)
        self.clips = None
        if precision.scales != "calibrated":
            self.clips = self._clips(calibrate(network, inputs, precision))

    def _clips(self, layers: tuple[FoldedLayer, ...]) -> nn.ParameterDict:
        """The clips of all that can be learned, as parameters; none is 0."""
        learned, clips = self.precision.scales == "learned", nn.ParameterDict()
        for stage, layer in zip(self.stages, layers, strict=True):
            if stage.neuron is not None:
                found = np.stack([np.asarray(connection.clip) for connection in layer.connections])
                logarithms = torch.from_numpy(np.log2(np.where(found, found, 1.0))).float()
                clips[stage.name] = nn.Parameter(logarithms, learned)
        return clips

    def prepared(self) -> tuple[Stage, ...]:
        """The stages with the integers of the present weights."""
        each = {found.population.name: found for found in quantize_each(fold(self), self.payload_bits, self.precision)}
        return tuple(
            stage
            if stage.neuron is None
            else _IntegerStage(
                **vars(stage),
                integers=each[stage.name],
                bits=self.precision.of(stage.name),
                payload_max=(1 << self.payload_bits) - 1,
                clips=None if self.clips is None else self.clips[stage.name],
            )
            for stage in self.stages
        )

    def extra_repr(self) -> str:
        return repr(self.precision)


class Reaching(NamedTuple):
    """What reaches the synapse of a link, [T, B, ...], or once of what never changes; its weights as integers; and its
    bias, not yet rounded, if it has one."""

    maps: Tensor
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, kw_only=True)
class _IntegerStage(Stage):
    """A stage and what quantization made of it, with as many bits for each weight. clips: see SpikingNetwork."""

    integers: Quantized
    bits: Bits
    payload_max: int
    clips: Tensor | None

    def forward(self, spikes: Mapping[str, Tensor], state: State | None = None) -> tuple[Tensor, Tensor | None]:
        assert state is None, "Training refuses to recompute the steps of integers"
        neuron, population = self.neuron, self.integers.population
        recurrent = self.recurrent
        if recurrent is not None:
            recurrent = self._on_grid(self._scaled(recurrent), -1, self.integers.grids[-1].weight)
        reaching = [self._reaching(place, spikes[link.source]) for place, link in enumerate(self.links)]
        biases = [bias for *_, bias in reaching if bias is not None]
        bias = _rounded_to(sum(biases[1:], start=biases[0]), population.bias / STATE_UNIT) if biases else None
        if not isinstance(neuron, LIF):
            currents = self._activation(reaching, spikes)
            return (currents if bias is None else currents + bias) / self._largest_scale, None
        threshold = float(population.threshold_mant.max())
        (maps, weight, _), (link, *others) = reaching[0], self.links
        steps, forward, synapse = len(spikes[link.source]), integer_forward, None
        how = neuron.backward(steps, self.current_spread)
        if population.threshold_mant.ndim:
            # The scan has one threshold, so each neuron's units are stretched until its own is that one.
            own = torch.from_numpy(population.threshold_mant.astype(np.float32)).to(reaching[0][1])
            forward = partial(integer_forward, own=Own(own.expand(population.shape).flatten(), recurrent))
            stretch = threshold / own
            arriving = (self._activation(reaching, spikes) * stretch).contiguous()  # in the order of the thresholds
            bias = None if bias is None else bias * stretch
            recurrent = None if recurrent is None else recurrent * stretch.unsqueeze(1)
        elif others or isinstance(link.synapse, Skip) or len(maps) < steps or isinstance(link.norm, Norm):
            arriving = self._activation(reaching, spikes)
        else:
            arriving, synapse = maps, Product(weight, link.geometry)
        emitted, membrane = lif_scan(
            arriving,
            bias,
            alpha=_rounded_share(neuron.alpha, population.alpha),
            beta=_rounded_share(neuron.beta, population.beta),
            threshold=threshold,
            reset=neuron.reset,
            floor=neuron.floor,
            backward=replace(how, width=self._largest_scale * how.width),
            recurrent=recurrent,
            synapse=synapse,
            forward=forward,
        )
        return emitted, membrane

    def in_floats(self, membrane: Tensor) -> Tensor:
        return membrane / self._largest_scale

    @property
    def _largest_scale(self) -> float:
        return float(self.integers.scale.max())

    def _scaled(self, values: Tensor) -> Tensor:
        """Floats [O, ...] in units of activation, KLIF's k included."""
        return over_channels(self._gain, values.dim()) * values

    @cached_property
    def _scale(self) -> Tensor:
        """From floats to activations, [1] or [O], in the weights' precision."""
        return torch.from_numpy(self.integers.scale.reshape(-1)).to(self.links[0].synapse.get_parameter("weight"))

    @property
    def _gain(self) -> Tensor:
        """What floats are multiplied by on their way to activations, [1] or [O]."""
        k = self.neuron.k if isinstance(self.neuron, LIF) else None
        return self._scale if k is None else self._scale * k

    def _reaching(self, place: int, spikes: Tensor) -> Reaching:
        """Of the link of that place, and of spikes [T, B, *source]."""
        link = self.links[place]
        weight, bias = self._folded(link)
        weight = self._on_grid(weight, place, unfolded(link, self.integers.grids[place].weight))
        summing = tuple(SumPool2d(part.kernel_size) if isinstance(part, nn.AvgPool2d) else part for part in link.before)
        maps = replace(link, before=summing).pooled(spikes[:1] if unchanging(spikes) else spikes)
        return Reaching(maps, weight, None if bias is None else over_channels(bias, len(self.output_shape)))

    def _activation(self, reaching: list[Reaching], spikes: Mapping[str, Tensor]) -> Tensor:
        """The sum of all links' activations, [T, B, *shape], each rounded down by itself and shown to its norm."""
        arriving = []
        for link, (maps, weight, _) in zip(self.links, reaching, strict=True):
            activation = _Floor.apply(link.conducted(maps.flatten(0, 1), weight))
            if isinstance(link.norm, Norm) and link.norm.training:
                self._remember(link, link.norm, maps, activation)
            activation = activation.unflatten(0, maps.shape[:2])
            arriving.append(activation.expand(len(spikes[link.source]), *activation.shape[1:]))
        return sum(arriving[1:], start=arriving[0])

    @torch.no_grad()
    def _remember(self, link: Link, norm: Norm, pooled: Tensor, activation: Tensor) -> None:
        """Statistics for the norm, of activations [T * B, *shape] made from pooled spikes [T, B, *source]."""
        unrounded = self._share(link) * link.conducted(pooled[:, ::SAMPLED].flatten(0, 1))
        mean, variance = statistics(unrounded)
        gain, _ = running_affine(norm)
        unit = self._gain * gain
        of_integers = activation.mean([0, *range(2, activation.dim())]) / unit
        mean = torch.where(unit == 0, mean, of_integers)
        remember(norm, mean, variance, unrounded.numel() // len(mean))

    def _folded(self, link: Link) -> tuple[Tensor, Tensor | None]:
        """Weights in the shape of the link's synapse, and bias [O], in units of activation: what was rounded, for its
        gradient. A window's share of `fold` is in the weights; its spikes are summed."""
        weight = link.standardised(link.synapse.get_parameter("weight"))
        bias = getattr(link.synapse, "bias", None)
        gain = self._gain * self._share(link)
        if isinstance(link.norm, Norm):
            of_norm, offset = running_affine(link.norm)
            gain, bias = gain * of_norm, offset if bias is None else offset + of_norm * bias
        return over_channels(gain, weight.dim()) * weight, None if bias is None else self._scaled(bias)

    def _share(self, link: Link) -> float:
        """What one unit of a source, its payload or a spike of a window, is to the synapse in floats."""
        _, share = pooling(link)
        return share / self.payload_max if link.source == INPUT else share

    def _on_grid(self, scaled: Tensor, place: int, mantissas: np.ndarray) -> Tensor:
        """A connection's weights, in units of activation, as the integers they became.

        The clip learns as its logarithm (Jain et al., arXiv 1903.08066), by the gradient that its step size has where
        rounding passes the weights' straight through (LSQ, Esser et al., arXiv 1902.08153): of a weight w on level q,
        q - w / step, and of a clipped one the level, which the weight itself then learns nothing of.
        """
        unit = 2.0 ** self.integers.grids[place].exponent
        integers = torch.from_numpy(np.multiply(mantissas, unit, dtype=np.float32, order="C")).to(scaled)
        if self.clips is None or not self.clips.requires_grad:
            return _Straight.apply(scaled, integers)
        clip = self.clips[place]
        return _LearnedClip.apply(scaled, integers, clip, self._scale if clip.dim() else self._scale[0], self.bits)


def _rounded_share(share: Share, rounded: np.ndarray) -> Share:
    return _rounded_to(share, rounded) if isinstance(share, Tensor) else float(rounded)


def _rounded_to(scaled: Tensor, integers: np.ndarray) -> Tensor:
    """The integers, or their multiples of a power of two, with the gradient of what they were rounded from."""
    return _Straight.apply(scaled, torch.from_numpy(np.asarray(integers, np.float32)).to(scaled).expand(scaled.shape))


class _Straight(torch.autograd.Function):
    """What values were rounded to; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _LearnedClip(torch.autograd.Function):
    """What weights times `scale` were rounded to, with a gradient for the base-2 logarithm of their clip, [] or [O]."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, rounded: Tensor, clip: Tensor, scale: Tensor, bits: Bits) -> Tensor:
        ctx.save_for_backward(weights, rounded, scale * clip.exp2())
        ctx.bits = bits
        return rounded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, rounded, clip = ctx.saved_tensors  # all in units of activation
        if ctx.bits == 1:
            of_weights, rows = grad, (grad * rounded).reshape(len(grad), -1).sum(1)
        else:
            least, most = levels(ctx.bits)
            run = _fused_clip_gradients if fusible(grad) else clip_gradients
            of_weights, rows = run(grad, weights, rounded, clip.expand(len(grad)), least / most)
        return of_weights, None, math.log(2) * (rows if clip.dim() else rows.sum()), None, None


def clip_gradients(grad: Tensor, weights: Tensor, rounded: Tensor, clip: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Gradients of weights [O, ...] clipped at least * clip and clip [O], and of each row's clip, times that clip."""
    reach = over_channels(clip, weights.dim())
    of_weights = grad * ((weights <= reach) & (weights >= reach * least))
    return of_weights, (grad * rounded - of_weights * weights).reshape(len(grad), -1).sum(1)


def _fused_clip_gradients(
    grad: Tensor, weights: Tensor, rounded: Tensor, clip: Tensor, least: float
) -> tuple[Tensor, Tensor]:
    of_weights, rows = torch.empty_like(grad, memory_format=torch.contiguous_format), torch.empty(len(grad))
    flat = [x.detach().reshape(len(grad), -1).numpy() for x in (grad, weights, rounded)]
    _clip_kernel(*flat, clip.numpy(), (clip * least).numpy(), of_weights.view(len(grad), -1).numpy(), rows.numpy())
    return of_weights, rows


@njit(cache=True, nogil=True, fastmath={"reassoc"})  # a sum of its own order is many times as fast
def _clip_kernel(grad, weights, rounded, most, least, of_weights, rows):  # type: ignore[no-untyped-def]
    for row in range(len(grad)):
        total, high, low = np.float32(0), most[row], least[row]
        error, weight, level, passed = grad[row], weights[row], rounded[row], of_weights[row]
        for i in range(len(error)):
            inside = error[i] if low <= weight[i] <= high else np.float32(0)
            passed[i] = inside
            total += error[i] * level[i] - inside * weight[i]
        rows[row] = total


class _Floor(torch.autograd.Function):
    """Rounding down; the gradient passes through."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.floor()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Own(NamedTuple):
    """Of neurons whose thresholds differ: these [N], and the recurrent weights, in each neuron's own units."""

    thresholds: Tensor
    recurrent: Tensor | None


def integer_forward(
    activation: Tensor, bias: Share, neuron: Neuron, recurrent: Tensor | None, own: Own | None = None
) -> tuple[Tensor, Tensor]:
    """Spikes, and membranes as of `plain_forward`, [T, M] each, of activations [T, M]: `arithmetic.lif_step`.

    Activations are rounded down. Membranes, threshold and bias [M] are in units of activation. The shares are multiples
    of 1/4096. recurrent: [N, N] in units of activation too, whose sums are rounded down. See `Forward` of
    train/scan.py.
    own: where thresholds differ; all other arguments, and the membranes returned, are then stretched until each
    neuron's threshold is the one of `neuron`, and membranes, exact quotients rounded, stay on their side of it.
    """
    threshold: float | Tensor = STATE_UNIT * neuron.threshold
    if own is not None:
        shrink = (own.thresholds.double() / neuron.threshold).repeat(activation.shape[1] // len(own.thresholds))
        activation = (activation * shrink).round().to(activation)
        bias = (STATE_UNIT * bias * shrink).round().to(activation) / STATE_UNIT
        threshold, recurrent = STATE_UNIT * (neuron.threshold * shrink).round(), own.recurrent
    if fusible(activation):
        levels = np.atleast_1d(np.asarray(threshold, np.float64))
        return fused_forward(activation, bias, neuron, recurrent, partial(_kernel, levels), _heard, np.float64)
    spikes, membranes = torch.empty_like(activation), torch.empty_like(activation)
    alpha, beta = (torch.as_tensor(share, dtype=torch.float64) for share in (neuron.alpha, neuron.beta))
    drive = STATE_UNIT * torch.as_tensor(bias, dtype=torch.float64)
    u = v = torch.zeros_like(activation[0], dtype=torch.float64)
    fired = torch.zeros_like(v, dtype=torch.bool)
    for t, arriving in enumerate(activation):
        if recurrent is not None and t > 0:
            arriving = arriving + _heard(spikes[t - 1], recurrent)
        u = (alpha * u).trunc() + STATE_UNIT * arriving.double().floor()
        u = torch.where(u > STATE_LIMIT, u - 2 * STATE_LIMIT, torch.where(u <= -STATE_LIMIT, u + 2 * STATE_LIMIT, u))
        v = (beta * v).trunc() + u + drive
        if neuron.late and not neuron.hard:
            v = torch.where(fired, v - threshold, v)
        v = v.clamp(-(STATE_LIMIT - 1), STATE_LIMIT - 1)
        membranes[t] = v * neuron.threshold / threshold
        if neuron.late and neuron.hard:
            v = torch.where(fired, 0.0, v)
        fired = v > threshold
        spikes[t] = fired
        if neuron.floor:
            v = v.clamp(min=0)
        if not neuron.late:
            v = torch.where(fired, 0.0 if neuron.hard else v - threshold, v)
    return spikes, membranes


def _heard(spikes: Tensor, recurrent: Tensor) -> Tensor:
    return heard_from(spikes, recurrent).floor()


@njit(cache=True, nogil=True)
def _kernel(  # type: ignore[no-untyped-def]
    levels, first, last, begin, end, activation, bias, spikes, state, alpha, beta, threshold, hard, floor, late
):  # fmt: skip
    """Integers in float64: vector instructions multiply these, and 24 by 12 bits are exact. Casts cut towards zero.

    levels: the thresholds in units of the state, one [1] or each neuron's [M]. The rest is as in train/kernels.py.
    """
    u, v, kept = np.empty(TILE, np.float64), np.empty(TILE, np.float64), np.empty(TILE, np.float64)
    keep_u, keep_v, drive = np.empty(TILE, np.float64), np.empty(TILE, np.float64), np.empty(TILE, np.float64)
    limit, one, zero = np.float64(STATE_LIMIT), np.float32(1), np.float32(0)
    level, stretched = np.empty(TILE, np.float64), np.float64(threshold)
    for start in range(first, last, TILE):
        stop = min(start + TILE, last)
        size = stop - start
        fill(u, state[0], start, stop)
        fill(v, state[1], start, stop)
        fill(drive, bias, start, stop)
        fill(keep_u, alpha, start, stop)
        fill(keep_v, beta, start, stop)
        fill(level, levels, start, stop)
        for t in range(begin, end):
            pre, fired = activation[t, start:stop], spikes[t, start:stop]
            for i in range(size):
                u[i] = np.int32(keep_u[i] * u[i]) + np.float64(STATE_UNIT) * math.floor(pre[i])
            for i in range(size):
                u[i] = u[i] - 2 * limit if u[i] > limit else (u[i] + 2 * limit if u[i] <= -limit else u[i])
            if late:
                kept[:] = v
            for i in range(size):
                v[i] = np.int32(keep_v[i] * v[i]) + u[i] + np.float64(STATE_UNIT) * drive[i]
            if late and not hard:
                for i in range(size):
                    v[i] = v[i] - level[i] if kept[i] > level[i] else v[i]
            for i in range(size):
                v[i] = min(max(v[i], 1 - limit), limit - 1)
            if len(levels) > 1:
                for i in range(size):
                    pre[i] = np.float32(v[i] * stretched / level[i])
            else:
                for i in range(size):
                    pre[i] = np.float32(v[i] / STATE_UNIT)
            if late and hard:
                for i in range(size):
                    v[i] = 0.0 if kept[i] > level[i] else v[i]
            for i in range(size):
                fired[i] = one if v[i] > level[i] else zero
            if floor:
                for i in range(size):
                    v[i] = max(v[i], 0.0)
            if not late:
                for i in range(size):
                    v[i] = (0.0 if hard else v[i] - level[i]) if v[i] > level[i] else v[i]
        for i in range(size):
            state[0, start + i], state[1, start + i] = u[i], v[i]
