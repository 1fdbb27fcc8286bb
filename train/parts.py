"""The parts of a network that torch does not have, each with an exact integer form, and the names parts are given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from train.neurons import LIF


class SumPool2d(nn.Module):
    """Sum over non-overlapping windows of size (by size) neurons: [N, C, H, W] -> [N, C, H / size, W / size]."""

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.kernel_size = self.stride = size

    def forward(self, maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, self.kernel_size, divisor_override=1)

    def extra_repr(self) -> str:
        return str(self.kernel_size)


class TdBN(_BatchNorm):
    """Batch normalisation to a spread of alpha * threshold instead of 1, of currents [N, C] or [N, C, H, W].

    threshold: that of the neurons behind it; alpha: 1, or 1 / sqrt(n) where n branches meet (Zheng et al.,
    arXiv 2011.05280). Like every norm of a SpikingNetwork it sees all steps of a batch at once.
    """

    def __init__(self, num_features: int, threshold: float = 1.0, alpha: float = 1.0) -> None:
        super().__init__(num_features)
        self.threshold, self.alpha = threshold, alpha

    def _check_input_dim(self, current: Tensor) -> None:
        """Any [N, C, ...] will do."""

    def forward(self, current: Tensor) -> Tensor:
        centred = super().forward(current) - over_channels(self.bias, current.dim() - 1)
        return centred * (self.alpha * self.threshold) + over_channels(self.bias, current.dim() - 1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, threshold={self.threshold}, alpha={self.alpha}"


class ScaledWS(nn.Module):
    """Scaled weight standardisation: a norm of a synapse's weights instead of its current, so it needs no statistics.

    Per output channel gain * (W - mean) / sqrt(var * fan_in + 1e-4), with the unbiased variance: inputs of variance 1
    yield currents of variance gain^2 (Brock et al., arXiv 2101.08692). Spikes vary less; the links that read them
    multiply by SPIKE_SCALE. The channels' gains are trained and start at `gain`: 1, or the threshold of the neurons.
    """

    def __init__(self, num_features: int, gain: float = 1.0) -> None:
        super().__init__()
        self.num_features = num_features
        self.gain = nn.Parameter(torch.full((num_features,), gain))

    def forward(self, weight: Tensor) -> Tensor:
        """Standardised weights of weights [C, ...], in their precision."""
        variance, mean = torch.var_mean(weight, list(range(1, weight.dim())), keepdim=True)
        gain = over_channels(self.gain.to(weight.dtype), weight.dim())
        return gain * (weight - mean) * torch.rsqrt(variance * weight[0].numel() + 1e-4)

    def extra_repr(self) -> str:
        return str(self.num_features)


# 1 / sqrt(p (1 - p)), p being the chance that a standard normal membrane is above a threshold of 1: what brings the
# variance of spikes back to 1 (Xiao et al., arXiv 2210.04195).
SPIKE_SCALE = 2.74

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, TdBN, ScaledWS)


def over_channels(values: Tensor, dimensions: int) -> Tensor:
    """Values [C] (or [N]) in the shape that broadcasts over a sample of that many dimensions, (C, H, W) or (N,)."""
    return values if dimensions == 1 else values.view(-1, *[1] * (dimensions - 1))


def batch_affine(norm: _BatchNorm, current: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and offset [C] that normalise currents [T * B, C, ...] by their own statistics, which the norm remembers.

    A norm is applied as gain and offset because they go different ways: the gain scales the synaptic current, the
    offset is a bias of the voltage, as both are once folded.
    """
    mean, variance = statistics(current)
    remember(norm, mean, variance, current.numel() // len(mean))
    return _affine(norm, mean, variance)


def statistics(current: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [C] of currents [N, C, ...]."""
    axes = [axis for axis in range(current.dim()) if axis != 1]
    variance, mean = torch.var_mean(current, axes, correction=0)
    return mean, variance


@torch.no_grad()
def remember(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """Add the mean and variance [C] of so many values a channel to the statistics that a norm remembers."""
    running_mean, running_var = _running(norm)
    assert norm.momentum is not None
    # New tensors: a backward pass may still want the old ones.
    norm.running_mean = running_mean.lerp(mean, norm.momentum)
    norm.running_var = running_var.lerp(variance * (count / max(count - 1, 1)), norm.momentum)


def running_affine(norm: _BatchNorm, precision: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Gain and offset [C] of a norm in evaluation, from the statistics that it remembers; perhaps in another precision
    than theirs."""
    mean, variance = (values.to(precision) for values in _running(norm))
    return _affine(norm, mean, variance)


def _running(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def spread(norm: _BatchNorm) -> float:
    """Standard deviation that a norm gives its currents in training, the mean of all channels; below 0 where their
    weights are."""
    return _unit(norm) * (norm.weight.detach().mean().item() if norm.affine else 1.0)


def _unit(norm: _BatchNorm) -> float:
    return norm.alpha * norm.threshold if isinstance(norm, TdBN) else 1.0


def _affine(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    gain = _unit(norm) * torch.rsqrt(variance + norm.eps)
    if norm.affine:
        gain = gain * norm.weight
    offset = -gain * mean
    return gain, offset + norm.bias if norm.affine else offset


class Recurrent(nn.Linear):
    """A dense synapse whose population also hears itself: spikes of one step arrive, through `recurrent`, at the next.

    recurrent: [out, out], the weight into neuron i from neuron j at [i, j].
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.recurrent = nn.Parameter(torch.empty(out_features, out_features))
        nn.init.normal_(self.recurrent, std=out_features**-0.5)


class Skip(nn.Module):
    """Every spike as current into the neuron of the same place, times one weight per channel (or neuron): [C]."""

    def __init__(self, channels: int, weight: float = 1.0) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.full((channels,), weight))

    def forward(self, maps: Tensor) -> Tensor:
        return maps * over_channels(self.weight, maps.dim() - 1)

    def extra_repr(self) -> str:
        return str(self.channels)


class Readout(nn.Module):
    """In place of the last LIF: no neuron; what the output emits at each step is its current, bias included."""

    def forward(self, current: Tensor, bias: Tensor | None = None) -> Tensor:
        return current if bias is None else current + bias


class Residual(nn.Module):
    """The current of a branch plus the current of a shortcut around it, into one population: LIF neurons follow it.

    branch, shortcut: parts, each ending with a synapse or its norm. Currents meet, not spikes, so spikes stay binary
    (the membrane shortcut of MS-ResNet, Hu et al., arXiv 2112.08954).

        Residual([nn.Conv2d(8, 8, 3, padding=1), LIF(), nn.Conv2d(8, 8, 3, padding=1)], shortcut=[Skip(8)]), LIF()
    """

    def __init__(self, branch: Iterable[nn.Module], shortcut: Iterable[nn.Module]) -> None:
        super().__init__()
        self.branch, self.shortcut = nn.ModuleDict(with_names(branch)), nn.ModuleDict(with_names(shortcut))


KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "dense",
    nn.Conv2d: "conv",
    Recurrent: "recurrent",
    Skip: "skip",
    Residual: "residual",
    LIF: "lif",
    Readout: "readout",
    nn.Flatten: "flatten",
    nn.Dropout: "dropout",
    **dict.fromkeys(NORMS, "norm"),
}


def with_names(parts: Iterable[nn.Module]) -> OrderedDict[str, nn.Module]:
    """Parts by kind and population: "conv1", "lif1", "pool2", "dense2", ...; an nn.Sequential is the parts it holds."""
    named: OrderedDict[str, nn.Module] = OrderedDict()
    population = 1
    for part in _unpacked(parts):
        name = f"{KINDS.get(type(part), 'pool')}{population}"
        while name in named:
            name += "_"
        named[name] = part
        population += isinstance(part, (LIF, nn.MaxPool2d))
    return named


def _unpacked(parts: Iterable[nn.Module]) -> Iterable[nn.Module]:
    for part in parts:
        if isinstance(part, nn.Sequential):
            yield from _unpacked(part)
        else:
            yield part
