"""Training samples shown a little differently in every epoch; the test and the validation part never are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from base.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training sample; nothing by default.

    shift: along every side of the image (or the channels) by up to so many pixels either way, zeros coming in, which is
    a random crop of the padded image; roll: likewise, what leaves on one side coming in on the other; flip: left and
    right exchanged, in every second sample. Of events only: jitter_us moves each by up to so many microseconds either
    way, drop is the probability with which each is left out.
    Raises UserError for values that cannot work.
    """

    shift: int = 0
    roll: int = 0
    flip: bool = False
    jitter_us: int = 0
    drop: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shift", "roll", "jitter_us"):
            if getattr(self, name) < 0:
                raise UserError(f"augment.{name} = {getattr(self, name)}: must be 0 (off) or more")
        if not 0 <= self.drop < 1:
            raise UserError(f"augment.drop = {self.drop}: a probability, from 0 (off) to below 1, is expected")

    @property
    def of_events(self) -> bool:
        """Whether it changes single events, which an image does not have."""
        return bool(self.jitter_us or self.drop)


def moved(maps: np.ndarray, sides: int, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """One sample, shifted, rolled and flipped along its last `sides` axes alike on all others; same shape and type."""
    for axis in range(-sides, 0):
        if augmentation.shift:
            by = int(rng.integers(-augmentation.shift, augmentation.shift, endpoint=True))
            maps = np.roll(maps, by, axis)
            if by:
                came_in = slice(0, by) if by > 0 else slice(by, None)
                maps[(..., came_in, *[slice(None)] * (-1 - axis))] = 0
        if augmentation.roll:
            maps = np.roll(maps, int(rng.integers(-augmentation.roll, augmentation.roll, endpoint=True)), axis)
    return np.flip(maps, -1) if augmentation.flip and rng.random() < 0.5 else maps


def disturbed(
    time: np.ndarray, address: np.ndarray, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Time and address, int64 [n], of one recording with events dropped and jittered; in order, from time 0 on."""
    if augmentation.drop:
        kept = rng.random(len(time)) >= augmentation.drop
        time, address = time[kept], address[kept]
    if augmentation.jitter_us:
        time = time + rng.integers(-augmentation.jitter_us, augmentation.jitter_us, len(time), endpoint=True)
        order = np.argsort(time, kind="stable")
        time, address = time[order], address[order]
    return time - time[:1], address
