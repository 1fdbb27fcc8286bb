"""Images become input over time: small unsigned integers [T, B, *shape], the same for float network and chip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from snntorch import spikegen
from torch import Tensor

from base.errors import UserError, nearest

KINDS = ("rate", "latency", "direct")


@dataclass(frozen=True)
class Encoding:
    """How a value in 0..1 is shown to the network for `steps` steps.

    rate: at each step a spike with the value as its probability; drawn from (seed, epoch, index of the sample).
    latency: one spike, the brighter the earlier; none for values below 0.01.
    direct: at every step the value itself, rounded to one of 2**bits levels.

    `bits` speaks of direct encoding only, `seed` of rate only. Raises UserError for what cannot be encoded.
    """

    kind: str = "rate"
    steps: int = 16
    bits: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"unknown encoding '{self.kind}'; {nearest(self.kind, KINDS)}")
        if self.steps < 1:
            raise UserError(f"encoding with T = {self.steps} steps: at least 1 is needed; 16 is the usual choice")
        if not 1 <= self.bits <= 8:
            raise UserError(f"encoding with bits = {self.bits}: must be in 1..8; 4 is the usual choice")
        if self.seed < 0:
            raise UserError(f"encoding with seed = {self.seed}: must be 0 or more; choose any other whole number")

    @property
    def payload_bits(self) -> int:
        """Width of one input value in bits: 1 for spikes, `bits` for direct encoding."""
        return self.bits if self.kind == "direct" else 1


def encode(values: np.ndarray, indices: np.ndarray, encoding: Encoding, epoch: int = 0) -> Tensor:
    """Input uint8 [T, B, *shape], in 0..2**payload_bits - 1, of values float32 [B, *shape] in 0..1.

    indices, int64 [B], are the samples' places in their data set. A sample's input depends on its values, its index,
    the encoding and the epoch (0 for evaluation, 1.. for training) and on nothing else; the global random state is
    left alone.
    """
    data = torch.from_numpy(np.ascontiguousarray(values))
    if encoding.kind == "rate":
        return _rate(data, indices, encoding, epoch)
    if encoding.kind == "latency":
        spikes = spikegen.latency(data, num_steps=encoding.steps, normalize=True, linear=True, clip=True)
        return spikes.to(torch.uint8)
    levels = torch.round(data * (2**encoding.bits - 1)).to(torch.uint8)
    return levels.expand(encoding.steps, *levels.shape).contiguous()


def _rate(data: Tensor, indices: np.ndarray, encoding: Encoding, epoch: int) -> Tensor:
    spikes = torch.empty(encoding.steps, *data.shape, dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        for place, index in enumerate(indices.tolist()):
            words = np.random.SeedSequence((encoding.seed, epoch, index)).generate_state(1)
            # torch.manual_seed would also seed every other device, fifty times slower, and outlive the fork there.
            torch.default_generator.manual_seed(int(words[0]))
            spikes[:, place] = spikegen.rate(data[place], num_steps=encoding.steps)
    return spikes
