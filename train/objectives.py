"""What training minimises and how an answer is read: both from what each output neuron emitted over all steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LOGIT_RANGE = 10.0
LEAST_VARIANCE = 1e-4  # of membranes: a population that nothing reaches has none


def loss(output: Tensor, labels: Tensor, spiking: bool = True) -> Tensor:
    """Cross entropy of an output [T, B, C] against labels [B], a scalar.

    Of spikes the logits are firing rates times LOGIT_RANGE: independent of T, and wide enough for a confident answer.
    Of a current readout they are the currents summed over time, as the answer is.
    """
    return F.cross_entropy(output.mean(0) * LOGIT_RANGE if spiking else output.sum(0), labels)


def loss_of_step(output: Tensor, labels: Tensor, spiking: bool, mse_share: float) -> Tensor:
    """What training online minimises at each step: (1 - mse_share) times `loss` of that step's output [1, B, C] alone,
    plus mse_share times the mean squared error against labels one-hot (Xiao et al., arXiv 2210.04195), a scalar."""
    wanted = F.one_hot(labels, output.shape[2]).to(output.dtype)
    return (1 - mse_share) * loss(output, labels, spiking) + mse_share * F.mse_loss(output[0], wanted)


def pda(membrane: Tensor, spread: float) -> Tensor:
    """How far the membranes [T, B, *shape] of a population are from a normal distribution around 0 of that standard
    deviation, a scalar, 0 or above: the symmetric divergence of two Gaussians, at each step and then their mean.

        J = ((q^2 + m^2) / spread^2 + (spread^2 + m^2) / q^2 - 2) / 4        m, q^2: mean and variance over the batch

    In the manner of PDA (Wang et al., arXiv 2304.13289). Population by population: one that is dead shows.
    """
    variance, mean = torch.var_mean(membrane.flatten(1), dim=1, correction=0)
    variance, target = variance.clamp(min=LEAST_VARIANCE), spread**2
    return (((variance + mean**2) / target + (target + mean**2) / variance - 2) / 4).mean()


def predict(output: Tensor) -> Tensor:
    """Labels int64 [B] of an output [T, B, C], spikes or currents: the class with the largest sum over time, the lowest
    index among equals.

    The rule of `numpy.argmax` on the sums, which the integer stages use too.
    """
    sums = output.double().sum(0)  # exact for weighted spikes, so that equal answers tie whatever the order of the sum
    classes = torch.arange(sums.shape[1], device=sums.device)
    leading = sums == sums.amax(1, keepdim=True)
    return torch.where(leading, classes, len(classes)).amin(1)  # torch.argmax promises no order among equals
