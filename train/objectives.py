"""What training minimises and how an answer is read: both from how often each output neuron spiked."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LOGIT_RANGE = 10.0


def loss(spikes: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of output spikes [T, B, C] against labels [B], a scalar.

    The logits are firing rates times LOGIT_RANGE: independent of T, and wide enough for a confident answer.
    """
    return F.cross_entropy(spikes.mean(0) * LOGIT_RANGE, labels)


def predict(spikes: Tensor) -> Tensor:
    """Labels int64 [B] of output spikes [T, B, C]: the class with most spikes, the lowest index among equals.

    The rule of `numpy.argmax` on the counts, which the integer stages use too.
    """
    counts = spikes.sum(0)
    classes = torch.arange(counts.shape[1], device=counts.device)
    leading = counts == counts.amax(1, keepdim=True)
    return torch.where(leading, classes, len(classes)).amin(1)  # torch.argmax promises no order among equals
