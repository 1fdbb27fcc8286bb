"""Surrogate derivatives h(x), x = v - threshold: what the backward pass puts in place of the step's derivative.

All shapes share one parameter, `width`, and are normalised alike: the peak is h(0) = 1 / width and the area is 1.
Changing the shape at equal width therefore changes neither the gradient's size at the threshold nor its total. Each is
G'(x / width) / width of one primitive G, so its derivative by the width is that of the spike: -(x / width) h(x).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from base.errors import UserError, nearest

Width = float | Tensor
Surrogate = Callable[[Tensor, Width], Tensor]


def triangular(x: Tensor, width: Width) -> Tensor:
    """max(0, 1 - |x| / width) / width: zero beyond |x| = width. Peak 1 / width, area 1."""
    return x.abs().mul_(-1 / width**2).add_(1 / width).relu_()  # in place: fresh memory costs more than the arithmetic


def rectangular(x: Tensor, width: Width) -> Tensor:
    """1 / width where |x| < width / 2, zero beyond. Peak 1 / width, area 1."""
    return (x.abs() < width / 2).to(x.dtype) / width


def sigmoid(x: Tensor, width: Width) -> Tensor:
    """Derivative of sigmoid(a x) with slope a = 4 / width. Peak a / 4 = 1 / width, area 1, exponential tails."""
    steep = x * (4 / width)
    return torch.sigmoid(steep) * torch.sigmoid(-steep) * (4 / width)


def fast_sigmoid(x: Tensor, width: Width) -> Tensor:
    """1 / (1 + 2 |x| / width)^2 / width. Peak 1 / width, area 1, tails falling as 1 / x^2."""
    return (1 + x.abs() * (2 / width)).square().reciprocal() / width


def arctan(x: Tensor, width: Width) -> Tensor:
    """1 / (1 + (pi x / width)^2) / width. Peak 1 / width, area 1, tails falling as 1 / x^2."""
    return (1 + (x * (math.pi / width)).square()).reciprocal() / width


def slayer(x: Tensor, width: Width) -> Tensor:
    """exp(-2 |x| / width) / width. Peak 1 / width, area 1, exponential tails.

    SLAYER's own c / (2 r) exp(-|x| / r) (Shrestha and Orchard, NeurIPS 2018; lava-dl) has width = 2 r and is c times
    this: there c scales the gradient of every layer it passes.
    """
    return (x.abs() * (-2 / width)).exp() / width


SURROGATES: dict[str, Surrogate] = {
    shape.__name__: shape for shape in (triangular, rectangular, sigmoid, fast_sigmoid, arctan, slayer)
}


def surrogate(name: str) -> Surrogate:
    """The shape of that name: a function of (x, width), elementwise. Raises UserError for an unknown name."""
    if name not in SURROGATES:
        raise UserError(f"unknown surrogate '{name}'; {nearest(name, SURROGATES)}")
    return SURROGATES[name]


def valued(graph: Tensor, value: Tensor) -> Tensor:
    """The value, exactly, with the gradient of `graph`: what is straight-through where `value` is `graph` rounded."""
    return value.detach() + (graph - graph.detach())


class Backward(NamedTuple):
    """What a layer's backward pass takes for the derivative of its spikes. The forward pass knows nothing of it.

    shape: a name in SURROGATES. width: a number; a scalar tensor, which is given a gradient if it wants one; or [T],
    one for each step.
    mask: the probability with which a spike's derivative is dropped, drawn anew for every sample, neuron and step
    (MSG: Li et al., arXiv 2406.19645); rescale: whether those that are left are multiplied by 1 / (1 - mask).
    detach_reset: whether the reset is taken for a constant.
    dead_below_zero: whether a membrane at or below 0 gets no surrogate either, as in KLIF's ReLU.
    """

    shape: str
    width: Width
    mask: float = 0.0
    rescale: bool = False
    detach_reset: bool = False
    dead_below_zero: bool = False

    def draw(self, shape: torch.Size) -> Tensor | None:
        """Which derivatives are left, bool of that shape; None for all. Drawn on the CPU, as dropout's mask is."""
        return torch.rand(shape) >= self.mask if self.mask else None

    @property
    def gain(self) -> float:
        """What the derivatives that are left are multiplied by."""
        return 1 / (1 - self.mask) if self.rescale else 1.0

    def slope(self, membrane: Tensor, threshold: float, widths: Tensor, kept: Tensor | None) -> Tensor:
        """ds/dv [T, M] of membranes [T, M] with widths [T] or [1], and the draw [T, M] of what is kept."""
        slope = surrogate(self.shape)(membrane - threshold, widths[:, None])
        if kept is not None:
            slope = slope * kept * self.gain
        return slope * (membrane > 0) if self.dead_below_zero else slope
