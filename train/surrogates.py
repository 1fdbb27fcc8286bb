"""Surrogate derivatives h(x), x = v - threshold: what the backward pass puts in place of the step's derivative.

All shapes share one parameter, `width`, and are normalised alike: the peak is h(0) = 1 / width and the area is 1.
Changing the shape at equal width therefore changes neither the gradient's size at the threshold nor its total.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from base.errors import UserError, nearest

Surrogate = Callable[[Tensor, float], Tensor]


def triangular(x: Tensor, width: float) -> Tensor:
    """max(0, 1 - |x| / width) / width: zero beyond |x| = width. Peak 1 / width, area 1."""
    return x.abs().mul_(-1 / width**2).add_(1 / width).relu_()  # in place: fresh memory costs more than the arithmetic


def rectangular(x: Tensor, width: float) -> Tensor:
    """1 / width where |x| < width / 2, zero beyond. Peak 1 / width, area 1."""
    return (x.abs() < width / 2).to(x.dtype) / width


def sigmoid(x: Tensor, width: float) -> Tensor:
    """Derivative of sigmoid(a x) with slope a = 4 / width. Peak a / 4 = 1 / width, area 1, exponential tails."""
    rising = torch.sigmoid(x * (4 / width))
    return rising * (1 - rising) * (4 / width)


def fast_sigmoid(x: Tensor, width: float) -> Tensor:
    """1 / (1 + 2 |x| / width)^2 / width. Peak 1 / width, area 1, tails falling as 1 / x^2."""
    return (1 + x.abs() * (2 / width)).square().reciprocal() / width


def arctan(x: Tensor, width: float) -> Tensor:
    """1 / (1 + (pi x / width)^2) / width. Peak 1 / width, area 1, tails falling as 1 / x^2."""
    return (1 + (x * (math.pi / width)).square()).reciprocal() / width


SURROGATES: dict[str, Surrogate] = {
    shape.__name__: shape for shape in (triangular, rectangular, sigmoid, fast_sigmoid, arctan)
}


def surrogate(name: str) -> Surrogate:
    """The shape of that name: a function of (x, width), elementwise. Raises UserError for an unknown name."""
    if name not in SURROGATES:
        raise UserError(f"unknown surrogate '{name}'; {nearest(name, SURROGATES)}")
    return SURROGATES[name]
