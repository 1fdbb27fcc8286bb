"""Images and recordings become input over time: small unsigned integers [T, B, *shape], for float network and chip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from snntorch import spikegen
from torch import Tensor

from base.errors import UserError, nearest
from train.augment import Augmentation, disturbed, moved
from train.events import BINS, Recordings, frames

KINDS = ("rate", "latency", "direct", "delta", "events")
DIRECT = ("graded", "bias")
DELTA_THRESHOLD = 0.1  # of the full range; snntorch's own


@dataclass(frozen=True)
class Encoding:
    """How a sample is shown to the network for `steps` steps.

    Of images, with values in 0..1:
    rate: at each step a spike with the value as its probability; drawn from (seed, epoch, index of the sample).
    latency: one spike, the brighter the earlier; none for values below 0.01.
    direct: at every step the value itself, rounded to one of 2**bits levels.
    delta: a scan line moves down the image, one row a step (T = H), and a pixel of it spikes where the value rises
    (first channels) or falls (last ones) by a tenth or more from one row to the next: [C, H, W] becomes [2 C, 1, W].
    Of recordings:
    events: how many events a pixel had in the step's frame, at most 2**bits - 1; `bins` and `window_us` (for "window"
    only) tell how a recording is cut into `steps` frames, see `train.events.frames`.

    `bits` speaks of direct and events only, `seed` of rate and augmentation. `augment` is for training (epoch 1..).
    `direct` tells how direct values reach the first population: as "graded" spikes through its synapses, or as its
    "bias", which the host computes.
    Raises UserError for what cannot be encoded.
    """

    kind: str = "rate"
    steps: int = 16
    bits: int = 4
    seed: int = 0
    bins: str = "duration"
    window_us: int = 0
    augment: Augmentation = field(default_factory=Augmentation)
    direct: str = "graded"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"unknown encoding '{self.kind}'; {nearest(self.kind, KINDS)}")
        if self.steps < 1:
            raise UserError(f"encoding with T = {self.steps} steps: at least 1 is needed; 16 is the usual choice")
        if not 1 <= self.bits <= 8:
            raise UserError(f"encoding with bits = {self.bits}: must be in 1..8; 4 is the usual choice")
        if self.seed < 0:
            raise UserError(f"encoding with seed = {self.seed}: must be 0 or more; choose any other whole number")
        if self.bins not in BINS:
            raise UserError(f"unknown bins '{self.bins}'; {nearest(self.bins, BINS)}")
        if (self.bins == "window") != (self.window_us > 0) or self.window_us < 0:
            raise UserError(
                f"encoding with bins = '{self.bins}' and window_us = {self.window_us}: a window of at least 1 us "
                "belongs to bins = 'window', and to no other"
            )
        if self.direct not in DIRECT:
            raise UserError(f"unknown way of direct input '{self.direct}'; {nearest(self.direct, DIRECT)}")
        if self.input_is_bias and self.kind != "direct":
            raise UserError(
                f"encoding '{self.kind}' with direct = 'bias': only input that is the same at every step can be loaded "
                "as a bias; set data.encoding = 'direct', or data.direct = 'graded'"
            )

    @property
    def payload_bits(self) -> int:
        """Width of one input value in bits: 1 for spikes, `bits` for values and counts."""
        return self.bits if self.kind in ("direct", "events") else 1

    @property
    def input_is_bias(self) -> bool:
        """Whether the host loads the first population's current as its bias, once a sample."""
        return self.direct == "bias"


def encode(values: np.ndarray | Recordings, indices: np.ndarray, encoding: Encoding, epoch: int = 0) -> Tensor:
    """Input uint8 [T, B, *shape], in 0..2**payload_bits - 1, of images [B, *shape] or B recordings.

    Images are float32 in 0..1, or uint8 in 0..255 that mean as many 255ths. indices, int64 [B], are the samples' places
    in their data set. A sample's input depends on its values, its index, the encoding and the epoch (0 for evaluation,
    1.. for training, which is augmented) and on nothing else; the global random state is left alone.
    Raises UserError where the encoding is not for such samples.
    """
    if isinstance(values, Recordings) != (encoding.kind == "events"):
        given, wanted = ("recordings of events", "'events'") if encoding.kind != "events" else ("images", "'rate'")
        raise UserError(f"encoding '{encoding.kind}' is not for {given}; set data.encoding = {wanted} there")
    if isinstance(values, Recordings):
        return _events(values, indices, encoding, epoch)
    if encoding.augment.of_events:
        raise UserError("augment.jitter_us and augment.drop are for recordings of events; images need them at 0")
    values = values.astype(np.float32) / np.float32(255) if values.dtype == np.uint8 else values
    sides = min(values.ndim - 1, 2)
    if epoch and encoding.augment != Augmentation():
        values = np.stack(
            [
                moved(image, sides, encoding.augment, _random(encoding, epoch, index))
                for image, index in zip(values, indices.tolist(), strict=True)
            ]
        )
    data = torch.from_numpy(np.ascontiguousarray(values))
    if encoding.kind == "rate":
        return _rate(data, indices, encoding, epoch)
    if encoding.kind == "delta":
        return _delta(data, encoding)
    if encoding.kind == "latency":
        spikes = spikegen.latency(data, num_steps=encoding.steps, normalize=True, linear=True, clip=True)
        return spikes.to(torch.uint8)
    levels = torch.round(data * (2**encoding.bits - 1)).to(torch.uint8)
    return levels.expand(encoding.steps, *levels.shape)  # one step in memory, which the first layer computes once


def batches(
    values: np.ndarray | Recordings, encoding: Encoding, size: int = 256
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Places and input of all samples, as for evaluation, `size` samples at a time; nothing else is read meanwhile."""
    for start in range(0, len(values), size):
        chosen = np.arange(start, min(start + size, len(values)))
        yield chosen, encode(values[chosen], chosen, encoding)


def encode_all(values: np.ndarray | Recordings, encoding: Encoding) -> np.ndarray:
    """Input uint8 [T, N, *shape] of all samples, as for evaluation."""
    shape = encode(values[:1], np.arange(1), encoding).shape[2:]
    inputs = np.empty((encoding.steps, len(values), *shape), np.uint8)
    for chosen, spikes in batches(values, encoding):
        inputs[:, chosen] = spikes.numpy()
    return inputs


def _random(encoding: Encoding, epoch: int, index: int) -> np.random.Generator:
    return np.random.default_rng((encoding.seed, epoch, index))


def _events(recordings: Recordings, indices: np.ndarray, encoding: Encoding, epoch: int) -> Tensor:
    sensor, sides = recordings.sensor, min(len(recordings.sensor), 2)
    augmented = epoch > 0 and encoding.augment != Augmentation()
    inputs = np.empty((encoding.steps, len(recordings), *sensor), np.uint8)
    for place, (index, (time, address)) in enumerate(zip(indices.tolist(), recordings, strict=True)):
        rng = _random(encoding, epoch, index)
        if augmented:
            time, address = disturbed(time, address, encoding.augment, rng)
        counts = frames(time, address, sensor, encoding.steps, encoding.bins, encoding.window_us, 2**encoding.bits - 1)
        inputs[:, place] = moved(counts, sides, encoding.augment, rng) if augmented else counts
    return torch.from_numpy(inputs)


def _delta(data: Tensor, encoding: Encoding) -> Tensor:
    if data.ndim != 4 or data.shape[2] != encoding.steps:
        needs = f"as many steps as the image has rows, {data.shape[2]}" if data.ndim == 4 else "images [C, H, W]"
        raise UserError(f"encoding 'delta' scans an image row by row: it needs {needs}, not T = {encoding.steps}")
    rows = data.permute(2, 0, 1, 3).unsqueeze(3)  # [H, B, C, 1, W]
    changes = spikegen.delta(rows, threshold=DELTA_THRESHOLD, off_spike=True)
    return torch.cat([changes > 0, changes < 0], 2).to(torch.uint8)


def _rate(data: Tensor, indices: np.ndarray, encoding: Encoding, epoch: int) -> Tensor:
    spikes = torch.empty(encoding.steps, *data.shape, dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        for place, index in enumerate(indices.tolist()):
            words = np.random.SeedSequence((encoding.seed, epoch, index)).generate_state(1)
            # torch.manual_seed would also seed every other device, fifty times slower, and outlive the fork there.
            torch.default_generator.manual_seed(int(words[0]))
            spikes[:, place] = spikegen.rate(data[place], num_steps=encoding.steps)
    return spikes
