"""How far a learning rate may stray when the gradient follows the reset, and when it does not: one neuron, 100 steps.

uv run python -m benchmarks.reset_toy

A neuron learns the weights of another from its spikes: the same 50 random input trains, weights drawn anew, plain
gradient descent on the distance of van Rossum. Every column is a learning rate, every number the median over 100 pairs
of how much of the distance is left at the end. Yang (arXiv 2011.09964) reports that on a toy of this size the complete
gradient tolerates a wider range of learning rates; the task here is our own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.neurons import LIF

STEPS, INPUTS, PAIRS, UPDATES = 100, 50, 100, 300
RATES = [10 ** (exponent / 2) for exponent in range(-6, 4)]
KEPT = 0.9  # of the voltage and of the trace that a spike leaves, per step


def distance_left(neuron: LIF, seed: int = 0) -> Tensor:
    """Median over pairs of final over first distance, for every learning rate."""
    random = torch.Generator().manual_seed(seed)
    spikes = (torch.rand(STEPS, PAIRS, INPUTS, generator=random) < 0.1).float()
    teacher, student = (0.1 + 0.15 * torch.randn(PAIRS, INPUTS, generator=random) for _ in range(2))
    since = torch.arange(STEPS)[:, None] - torch.arange(STEPS)
    trace = torch.where(since >= 0, KEPT ** since.clamp(min=0), 0.0)

    def traces(weights: Tensor) -> Tensor:
        current = torch.einsum("tpi,rpi->trp", spikes, weights)
        return torch.einsum("st,trp->srp", trace, neuron(current.unsqueeze(1)).squeeze(1))

    wanted = traces(teacher[None])
    weights = student.repeat(len(RATES), 1, 1).requires_grad_()
    rates = torch.tensor(RATES).view(-1, 1, 1)
    distances = []
    for _ in range(UPDATES + 1):
        distance = (traces(weights) - wanted).square().mean(0)  # [rates, pairs]
        distances.append(distance.detach())
        (gradient,) = torch.autograd.grad(distance.sum(), weights)
        with torch.no_grad():
            weights -= rates * gradient
    return (distances[-1] / distances[0]).median(1).values


def main() -> None:
    torch.set_num_threads(1)
    print("| gradient | " + " | ".join(f"{rate:.3g}" for rate in RATES) + " |")
    print("|---|" + "---:|" * len(RATES))
    for width in (1.0, 0.3):
        for reset in ("hard", "soft"):
            for detached in (False, True):
                neuron = LIF(beta=KEPT, reset=reset, surrogate="triangular", width=width, detach_reset=detached)
                name = f"{reset} reset {'detached' if detached else 'attached'}, width {width:g}"
                print(f"| {name} | " + " | ".join(f"{left:.2f}" for left in distance_left(neuron).tolist()) + " |")


if __name__ == "__main__":
    main()
