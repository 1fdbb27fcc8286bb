"""Training whose forward pass is the chip's arithmetic: what it learns, the integers do, spike by spike.

Before every forward pass the weights are folded and quantized as for the chip, by the same two functions. Synapses then
compute with these integers in floats that hold them exactly, in units of activation (64 of the state), and neurons in
32 bits:

    forward     docs/arithmetic.md, "One step"; dropout's scaled sums are rounded down like shifted ones
    backward    the surrogate's, on the membranes v / 64, its width times the population's scale; what is rounded,
                weights, biases, decays and shifted sums, passes its gradient straight through (Bengio et al.,
                arXiv 1308.3432), and the scale counts as a constant

Norms use the statistics that they remember; their gains and offsets are trained. For the next update they remember the
mean of the integers' currents, which a few weights on another level move, and the variance of those that unrounded
weights make of every fourth sample: what a norm brings to a usual size must not depend on which weights that size
rounds to 0. The gradient takes the mean for that of the batch at hand: what moves all currents of a channel alike is
taken off again by the next updates, and weights that learn of it grow without end (Ioffe and Szegedy, arXiv 1502.03167,
section 2).
float32 is exact: `scales.quantize` lets no activation leave 16 bits, at 8 bits of fraction or less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from base.errors import UserError
from quantize.arithmetic import DECAY_UNITY, STATE_LIMIT, STATE_SHIFT
from quantize.calibration import calibrate
from quantize.engine import decayed
from quantize.fold import FoldedLayer, fold, pooling, unfolded
from quantize.grids import largest_of, levels
from quantize.precision import EIGHT_BITS, Bits, Precision
from quantize.scales import Quantized, quantize_each
from train.kernels import fill
from train.network import SpikingNetwork
from train.neurons import LIF
from train.parts import SumPool2d, over_channels, remember, running_affine, statistics
from train.scan import Neuron, Share, State, fused_forward, heard_from, lif_scan, of_all
from train.sparse import Product
from train.surrogates import valued
from train.threads import fusible
from train.wiring import INPUT, Link, Norm, Stage, unchanging

STATE_UNIT = 1 << STATE_SHIFT
TILE = 1024  # neurons whose state stays in the first-level cache for all steps
ACTIVATION = np.float32(1 / STATE_UNIT)  # of a unit of the state
UNCLIPPED = np.full(1, np.inf, np.float32)
OF_LOGARITHM = math.log(2)  # how a power of 2 changes with its exponent, in powers
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
        self._summing = {stage.name: tuple(map(_summing, stage.links)) for stage in self.stages}
        self._shares = {stage.name: _shares(stage, (1 << self.payload_bits) - 1) for stage in self.stages}
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
        layers = fold(self)
        each = quantize_each(layers, self.payload_bits, self.precision)
        made = {
            stage.name: self._made(stage, layer, integers)
            for stage, layer, integers in zip(self.stages, layers, each, strict=True)
            if stage.neuron is not None
        }
        floats = [x for one in made.values() for x in (one.clips, one.bias, *one.gains, *one.weights)]
        rounded = iter(_Rounded.apply(tuple(made.values()), *floats))
        return tuple(
            _IntegerStage(
                **vars(stage),
                summing=self._summing[stage.name],
                made=made[stage.name],
                bias=next(rounded),
                weights=list(islice(rounded, len(made[stage.name].weights))),
            )
            if stage.name in made
            else stage
            for stage in self.stages
        )

    def _made(self, stage: Stage, layer: FoldedLayer, integers: Quantized) -> _Made:
        learned = self.clips if self.precision.scales == "learned" else None
        folded = [grid.weight for grid in integers.grids]
        return _Made(
            layer,
            integers,
            self.precision.of(stage.name),
            [*map(unfolded, stage.links, folded), *folded[len(stage.links) :]],
            self._shares[stage.name],
            None if learned is None else learned[stage.name],
            *_floats(stage),
        )

    def extra_repr(self) -> str:
        return repr(self.precision)


class _Made(NamedTuple):
    """What quantization made of a population, with as many bits for each weight, and of what. Of its connections, in
    the shape of their synapses, mantissas and weights; what one unit of a source counts, `shares`; the other floats as
    `_floats` has them. clips: those that learn of SpikingNetwork's."""

    layer: FoldedLayer
    integers: Quantized
    bits: Bits
    mantissas: list[np.ndarray]
    shares: list[float]
    clips: Tensor | None
    bias: Tensor | None
    gains: list[Tensor | None]
    weights: list[Tensor]

    def units(self, share: float = 1.0) -> np.ndarray:
        """What brings floats, of a source that counts so much, to units of activation, but for `gains`: float32 [1] or
        [O]."""
        return (share * self.integers.scale.reshape(-1)).astype(np.float32)

    def clip(self, place: int) -> np.ndarray:
        """Beyond which of a connection's weights, in units of activation, no gradient passes: float32 [1] or [O], and
        infinite where none is clipped or no clip learns."""
        if self.clips is None:
            return UNCLIPPED
        clip = (self.integers.scale.reshape(-1) * self.layer.connections[place].clip).astype(np.float32)
        return np.full_like(clip, np.inf) if self.bits == 1 else clip


def _floats(stage: Stage) -> tuple[Tensor | None, list[Tensor | None], list[Tensor]]:
    """With their gradients the bias [O] of a population, if it has one; of every connection by what KLIF and a norm
    multiply its weights, [] or [O], if anything does; and these weights in the shape of its synapse."""
    k = stage.neuron.k if isinstance(stage.neuron, LIF) else None
    biases: list[Tensor] = []
    gains: list[Tensor | None] = []
    weights: list[Tensor] = []
    for link in stage.links:
        bias: Tensor | None = getattr(link.synapse, "bias", None)
        gain: Tensor | None = k
        if isinstance(link.norm, Norm):
            of_norm, offset = running_affine(link.norm)
            if link.norm.training:  # what it takes off has a gradient of its own: see `_activation`
                offset = torch.zeros_like(of_norm) if link.norm.bias is None else link.norm.bias
            bias = offset if bias is None else offset + of_norm * bias
            gain = of_norm if k is None else k * of_norm
        weights.append(link.standardised(link.synapse.get_parameter("weight")))
        gains.append(gain)
        if bias is not None:
            biases.append(bias if k is None else k * bias)
    if (recurrent := stage.recurrent) is not None:
        weights.append(recurrent)
        gains.append(k)
    return sum(biases[1:], start=biases[0]) if biases else None, gains, weights


@dataclass(frozen=True, kw_only=True)
class _IntegerStage(Stage):
    """A stage with a bias [O], or None, and weights that are integers in units of activation. summing: its links, where
    poolings add the spikes of a window up."""

    summing: tuple[Link, ...]
    made: _Made
    bias: Tensor | None
    weights: list[Tensor]

    def forward(self, spikes: Mapping[str, Tensor], state: State | None = None) -> tuple[Tensor, Tensor | None]:
        assert state is None, "Training refuses to recompute the steps of integers"
        neuron, integers, (link, *others) = self.neuron, self.made.integers, self.links
        bias, weights = self.bias, self.weights
        if bias is not None:
            bias = over_channels(bias, len(self.output_shape))
        if not isinstance(neuron, LIF):
            currents, bias = self._activation(bias, spikes)
            return (currents if bias is None else currents + bias) / self._largest_scale, None
        recurrent = weights[-1] if len(weights) > len(self.links) else None
        threshold, arriving = largest_of(integers.threshold_mant), spikes[link.source]
        how = neuron.backward(len(arriving), self.current_spread)
        forward, synapse = integer_forward, None
        if integers.threshold_mant.ndim:
            # The scan has one threshold, so each neuron's units are stretched until its own is that one.
            own = torch.from_numpy(integers.threshold_mant.astype(np.float32)).to(weights[0])
            own = over_channels(own, len(self.output_shape))
            forward = partial(integer_forward, own=Own(own.expand(self.output_shape).flatten(), recurrent))
            stretch = threshold / own
            arriving, bias = self._activation(bias, spikes)
            arriving = (arriving * stretch).contiguous()  # in the order of the thresholds
            bias = None if bias is None else bias * stretch
            recurrent = None if recurrent is None else recurrent * stretch.unsqueeze(1)
        elif others or not link.multiplies or unchanging(arriving):
            arriving, bias = self._activation(bias, spikes)
        else:
            arriving, synapse = self.summing[0].pooled(arriving), Product(weights[0], link.geometry)
        lost_u, lost_v = integers.lost
        return lif_scan(
            arriving,
            bias,
            alpha=_kept(neuron.alpha, lost_u),
            beta=_kept(neuron.beta, lost_v),
            threshold=threshold,
            reset=neuron.reset,
            floor=neuron.floor,
            backward=how._replace(width=self._largest_scale * how.width),
            recurrent=recurrent,
            synapse=synapse,
            forward=forward,
        )

    def in_floats(self, membrane: Tensor) -> Tensor:
        return membrane / self._largest_scale

    @cached_property
    def _largest_scale(self) -> float:
        return largest_of(self.made.integers.scale)

    def _activation(self, bias: Tensor | None, spikes: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The sum of all links' activations, [T, B, *shape], each rounded down by itself and shown to its norm; and the
        bias, with the gradient of the means that norms take off."""
        arriving = []
        for place, link in enumerate(self.summing):
            sent = spikes[link.source]
            maps = link.pooled(sent[:1] if unchanging(sent) else sent)
            activation = _Floor.apply(link.conducted(maps.flatten(0, 1), self.weights[place]))
            if isinstance(link.norm, Norm) and link.norm.training:
                assert bias is not None
                mean = activation.mean([0, *range(2, activation.dim())])
                bias = bias - over_channels(mean - mean.detach(), len(self.output_shape))
                self._remember(place, link.norm, maps, mean)
            activation = activation.unflatten(0, maps.shape[:2])
            arriving.append(activation.expand(len(sent), *activation.shape[1:]))
        return sum(arriving[1:], start=arriving[0]), bias

    @torch.no_grad()
    def _remember(self, place: int, norm: Norm, pooled: Tensor, of_integers: Tensor) -> None:
        """Statistics for the norm of a link, of pooled spikes [T, B, *source] whose activations have that mean [C]."""
        link, gain = self.links[place], self.made.gains[place]
        assert gain is not None
        unrounded = self.made.shares[place] * link.conducted(pooled[:, ::SAMPLED].flatten(0, 1))
        mean, variance = statistics(unrounded)
        unit = _times(gain, self.made.units())
        mean = torch.where(unit == 0, mean, of_integers / unit)
        remember(norm, mean, variance, unrounded.numel() // len(mean))


def _shares(stage: Stage, payload_max: int) -> list[float]:
    """What one unit of its source, a payload or a spike of a window, is to each synapse in floats."""
    shares = [1.0] * (len(stage.links) + (stage.recurrent is not None))
    for place, link in enumerate(stage.links):
        _, share = pooling(link)
        shares[place] = share / payload_max if link.source == INPUT else share
    return shares


def _summing(link: Link) -> Link:
    """The link with the spikes of a window summed: its share is in the weights."""
    if not link.before:
        return link
    parts = (SumPool2d(part.kernel_size) if isinstance(part, nn.AvgPool2d) else part for part in link.before)
    return replace(link, before=tuple(parts))


def _kept(share: Share, lost: np.ndarray) -> Share:
    """The share that is kept of a state which loses so many 4096ths."""
    kept = 1 - lost / DECAY_UNITY
    return valued(share, torch.as_tensor(kept).to(share)) if isinstance(share, Tensor) else float(kept)


class _Rounded(torch.autograd.Function):
    """Of every population its bias [O] or None, and the weights [O, ...] of its connections, as integers in units of
    activation; made from what each gives in `floats`, of one after the other: clips, bias, gains, weights.

    The gradient passes straight through to all, but for weights beyond their clip, if that learns. clips, [connections]
    or [connections, O], do so as their logarithms to base 2 (Jain et al., arXiv 1903.08066), by the gradient that their
    step size has where rounding passes the weights' straight through (LSQ, Esser et al., arXiv 1902.08153): of a weight
    w on level q, q - w / step, and of a clipped one the level, which the weight itself then learns nothing of. One bit
    clips nothing.
    """

    @staticmethod
    def forward(ctx: Any, made: tuple[_Made, ...], *floats: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.made, ctx.rounded = made, []
        found: list[Tensor | None] = []
        for one in made:
            like, integers = one.weights[0], one.integers
            rounded = [
                np.multiply(mantissas, np.float32(2.0**grid.exponent), dtype=np.float32)
                for mantissas, grid in zip(one.mantissas, integers.grids, strict=True)
            ]
            bias = None if one.bias is None else np.multiply(integers.bias, ACTIVATION, dtype=np.float32)
            found += [None if x is None else torch.from_numpy(x).to(like) for x in (bias, *rounded)]
            ctx.rounded.append(rounded)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        arrived = iter(grads)
        found: list[Tensor | None] = []
        for made, rounded in zip(ctx.made, ctx.rounded, strict=True):
            of_bias, *of_weights = islice(arrived, 1 + len(rounded))
            found += _straight_through(made, rounded, of_bias, of_weights)
        return None, *found


def _straight_through(
    made: _Made, rounded: list[np.ndarray], of_bias: Tensor | None, grads: list[Tensor]
) -> list[Tensor | None]:
    """Gradients of a population's clips, bias, gains and weights."""
    least, most = levels(made.bits)
    of_gains: list[Tensor | None] = []
    of_weights: list[Tensor] = []
    of_clips: list[np.ndarray] = []
    for place, (grad, share, gain, weight) in enumerate(zip(grads, made.shares, made.gains, made.weights, strict=True)):
        units = made.units(share)
        whole = units if gain is None else units * gain.numpy(force=True)
        run = _fused_gradients if fusible(grad) else rounded_gradients
        found = run(grad, weight.detach(), rounded[place], whole, made.clip(place), least / most)
        of_gains.append(None if gain is None else _times(found.of_gain, units).sum_to_size(gain.shape))
        of_weights.append(found.of_weight)
        of_clips.append(found.of_clip)
    learned = None
    if made.clips is not None:
        learned = torch.from_numpy(np.array(of_clips).reshape(made.clips.shape)).to(made.clips)
    of_bias = None if of_bias is None else _times(of_bias, made.units())
    return [learned, of_bias, *of_gains, *of_weights]


def _times(tensor: Tensor, values: np.ndarray) -> Tensor:
    return tensor * torch.from_numpy(values).to(tensor)


class Gradients(NamedTuple):
    """Of weights [O, ...]; of their gain, [1] or [O]; and of the logarithm to base 2 of their clip, [1] or [O]."""

    of_weight: Tensor
    of_gain: Tensor
    of_clip: np.ndarray


def rounded_gradients(
    grad: Tensor, weight: Tensor, rounded: np.ndarray, gain: np.ndarray, clip: np.ndarray, least: float
) -> Gradients:
    """From the gradient of what weights [O, ...] times gain, [1] or [O], were rounded to, after they were clipped at
    clip, [1] or [O], and least * clip; or at none, which is infinite."""
    level, factor, reach = (torch.from_numpy(x).to(weight) for x in (rounded, gain, clip))
    own, high = (over_channels(x, weight.dim()) for x in (factor, reach))
    scaled = own * weight
    passed = grad * ((scaled >= least * high) & (scaled <= high))
    moved, leveled = ((x * y).reshape(len(grad), -1).sum(1) for x, y in ((passed, weight), (grad, level)))
    of_clip = OF_LOGARITHM * torch.where(reach.isinf(), leveled, leveled - factor * moved)
    return Gradients(own * passed, moved.sum_to_size(factor.shape), of_clip.sum_to_size(reach.shape).numpy(force=True))


def _fused_gradients(
    grad: Tensor, weight: Tensor, rounded: np.ndarray, gain: np.ndarray, clip: np.ndarray, least: float
) -> Gradients:
    found = torch.empty(weight.shape), torch.zeros(len(gain)), np.zeros(len(clip), np.float32)
    flat = [x.reshape(len(rounded), -1) for x in (grad.numpy(), weight.numpy(), rounded, found[0].numpy())]
    _gradient_kernel(*flat, gain, clip, np.float32(least), found[1].numpy(), found[2])
    return Gradients(*found)


@njit(cache=True, nogil=True, fastmath={"reassoc"})  # a sum of its own order is many times as fast
def _gradient_kernel(  # type: ignore[no-untyped-def]
    grad, weight, rounded, of_weight, gain, clip, least, of_gain, of_clip
):  # fmt: skip
    for row in range(len(grad)):
        error, values, level, passed = grad[row], weight[row], rounded[row], of_weight[row]
        at_gain, at_clip = row % len(gain), row % len(clip)
        own, high = gain[at_gain], clip[at_clip]
        low, moved, leveled = least * high, np.float32(0), np.float32(0)
        for i in range(len(error)):
            inside = error[i] if low <= own * values[i] <= high else np.float32(0)
            passed[i] = own * inside
            moved += inside * values[i]
            leveled += error[i] * level[i]
        of_gain[at_gain] += moved
        of_clip[at_clip] += OF_LOGARITHM * (leveled if high == np.inf else leveled - own * moved)


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

    Activations are rounded down. Membranes, threshold and bias are in units of activation. The shares are multiples
    of 1/4096. recurrent: [N, N] in units of activation too, whose sums are rounded down. See `Forward` of
    train/scan.py.
    own: where thresholds differ; all other arguments, and the membranes returned, are then stretched until each
    neuron's threshold is the one of `neuron`, and membranes, exact quotients rounded, stay on their side of it.
    """
    threshold: float | Tensor = STATE_UNIT * neuron.threshold
    if own is not None:
        _, bias = of_all(neuron, bias, activation.shape[1])
        shrink = (own.thresholds.double() / neuron.threshold).repeat(activation.shape[1] // len(own.thresholds))
        activation = (activation * shrink).round().to(activation)
        bias = (STATE_UNIT * bias * shrink).round().to(activation) / STATE_UNIT
        threshold, recurrent = STATE_UNIT * (neuron.threshold * shrink).round(), own.recurrent
    if fusible(activation):
        levels = np.atleast_1d(np.asarray(threshold, np.int32))
        return fused_forward(activation, bias, neuron, recurrent, partial(_kernel, levels), _heard, np.int32)
    neuron, bias = of_all(neuron, bias, activation.shape[1])
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
    return heard_from(spikes, recurrent).floor_()


@njit(cache=True, nogil=True, error_model="numpy")
def _kernel(  # type: ignore[no-untyped-def]
    levels, first, last, begin, end, activation, bias, spikes, state, alpha, beta, threshold, hard, floor, late
):  # fmt: skip
    """In 32 bits, of which Numba has to be told at every operation.

    levels: the thresholds in units of the state, one [1] or each neuron's [M]. The rest is as in train/kernels.py.
    """
    u, v, drive = np.empty(TILE, np.int32), np.empty(TILE, np.int32), np.empty(TILE, np.int32)
    keep_u, keep_v, level = np.empty(TILE, np.int32), np.empty(TILE, np.int32), np.empty(TILE, np.int32)
    unit, wrap, limit = np.int32(STATE_UNIT), np.int32(2 * STATE_LIMIT), np.int32(STATE_LIMIT)
    least, most = np.int32(1 - STATE_LIMIT), np.int32(STATE_LIMIT - 1)
    none, zero, one = np.int32(0), np.float32(0), np.float32(1)
    for start in range(first, last, TILE):
        stop = min(start + TILE, last)
        size = stop - start
        fill(u, state[0], start, stop)
        fill(v, state[1], start, stop)
        _fill_units(drive, bias, STATE_UNIT, start, stop)
        _fill_units(keep_u, alpha, DECAY_UNITY, start, stop)
        _fill_units(keep_v, beta, DECAY_UNITY, start, stop)
        fill(level, levels, start, stop)
        for t in range(begin, end):
            pre, fired = activation[t, start:stop], spikes[t, start:stop]
            for i in range(size):
                current = np.int32(decayed(u[i], keep_u[i]) + unit * np.int32(np.floor(pre[i])))
                current = np.int32(current - wrap) if current > limit else current
                current = np.int32(current + wrap) if current < least else current
                u[i] = current
                fired_before = late and v[i] > level[i]
                reached = np.int32(decayed(v[i], keep_v[i]) + current + drive[i])
                reached = np.int32(reached - level[i]) if fired_before and not hard else reached
                reached = min(max(reached, least), most)
                if len(levels) > 1:
                    pre[i] = np.float32(np.float64(reached) * np.float64(threshold) / level[i])
                else:
                    pre[i] = np.float32(reached) / np.float32(STATE_UNIT)
                reached = none if fired_before and hard else reached
                fires = reached > level[i]
                fired[i] = one if fires else zero
                if not late:
                    reached = (none if hard else np.int32(reached - level[i])) if fires else reached
                v[i] = max(reached, none) if floor else reached
        if state.shape[1] == activation.shape[1]:
            for i in range(size):
                state[0, start + i], state[1, start + i] = u[i], v[i]


@njit(cache=True, nogil=True)
def _fill_units(tile, values, unit, start, stop):  # type: ignore[no-untyped-def]
    """`fill` in whole numbers of a unit, of which the values are multiples."""
    floats = np.empty(TILE, np.float32)
    fill(floats, values, start, stop)
    for i in range(stop - start):
        tile[i] = np.int32(unit * floats[i])
