"""Temporally weighted output (TWO): steps that answer better by themselves count more (Li et al., arXiv 2406.19645).

f[t], one weight a step, of mean 1, multiplies what the output emits at step t before it is summed over time, in the
loss and in every prediction. No gradient reaches it: it starts at 1, and from epoch FIRST_EPOCH on it follows how many
answers of each step alone were right during the epoch before,

    f = 0.7 f + 0.3 right / mean(right)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from base.errors import UserError
from train.objectives import predict

FIRST_EPOCH = 6
KEPT = 0.7


def weighted(output: Tensor, weights: Tensor | None) -> Tensor:
    """Output [T, B, C] with each step times its weight, of weights [T]; without weights the output itself.

    Raises UserError where there are not as many weights as steps.
    """
    if weights is None:
        return output
    if len(weights) != len(output):
        raise UserError(
            f"input: it has {len(output)} steps, but the network was trained to weigh {len(weights)} of them; "
            f"encode it in {len(weights)} steps"
        )
    return output * weights.to(output).view(-1, 1, 1)


def right_by_step(output: Tensor, labels: Tensor) -> Tensor:
    """How many samples each step of an output [T, B, C] would answer with their labels [B] by itself: int64 [T]."""
    answers = predict(output.flatten(0, 1)[None]).view(output.shape[:2])
    return (answers == labels).sum(1)


def followed(weights: Tensor, right: Sequence[int]) -> Tensor:
    """The weights [T] of the next epoch, of the same type, from those of this one and its right answers by step.

    Where no step was right at all, they stay.
    """
    counts = torch.tensor(right, dtype=torch.float64, device=weights.device)
    if not counts.any():
        return weights
    return (KEPT * weights.double() + (1 - KEPT) * counts / counts.mean()).to(weights.dtype)
