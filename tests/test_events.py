"""Events are counted into the frames they belong to, whatever way a recording is cut."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UserError
from train.augment import Augmentation, disturbed, moved
from train.encoding import Encoding, encode
from train.events import Recordings, frames, pooled

SENSOR = (2, 3, 4)


@st.composite
def recordings(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = np.array(draw(st.lists(st.integers(0, 40), min_size=1, max_size=4)))
    stops = np.cumsum(counts)
    time = [np.sort(rng.integers(0, 500, count)) for count in counts]
    time = np.concatenate([part - part[:1] for part in time]).astype(np.uint32)
    address = rng.integers(0, 24, len(time)).astype(np.uint16)
    return Recordings(time, address, stops - counts, stops, SENSOR)


def by_hand(time, address, steps, bins, window_us, most):
    """Event by event, in Python's own integers."""
    counted = np.zeros((steps, *SENSOR), np.int64)
    for k, (t, a) in enumerate(zip(time.tolist(), address.tolist(), strict=True)):
        if bins == "duration":
            frame = next(f for f in range(steps) if t * steps < (f + 1) * (int(time[-1]) + 1))
        elif bins == "count":
            frame = next(f for f in range(steps) if k * steps < (f + 1) * len(time))
        else:
            frame = t // window_us
        if frame < steps:
            p, y, x = a // 12, a // 4 % 3, a % 4
            counted[frame, p, y, x] += 1
    return np.minimum(counted, most)


@given(recordings(), st.integers(1, 9), st.sampled_from(["duration", "count", "window"]), st.integers(1, 4))
def test_every_event_is_counted_in_its_frame(sample, steps, bins, bits):
    window_us = 70 if bins == "window" else 0
    inputs = encode(sample, np.arange(len(sample)), Encoding("events", steps, bits, bins=bins, window_us=window_us))
    assert inputs.dtype == torch.uint8
    for place, (time, address) in enumerate(sample):
        expected = by_hand(time, address, steps, bins, window_us, 2**bits - 1)
        assert np.array_equal(inputs[:, place].numpy(), expected)


def test_bins_by_count_hold_equally_many_events():
    time, address = np.sort(np.random.default_rng(0).integers(0, 9999, 1000)), np.zeros(1000, np.int64)
    assert frames(time, address, SENSOR, 8, "count", 0, 255).reshape(8, -1).sum(1).tolist() == [125] * 8


def test_pooling_moves_events_as_summing_windows_sums_counts():
    rng = np.random.default_rng(1)
    places = np.stack([rng.integers(0, side, 300) for side in (2, 4, 6)], 1)
    address, shape = pooled(places, (2, 4, 6), 2)
    full = np.zeros((2, 4, 6), np.int64)
    np.add.at(full, tuple(places.T), 1)
    assert shape == (2, 2, 3)
    assert np.array_equal(np.bincount(address, minlength=12), full.reshape(2, 2, 2, 3, 2).sum((2, 4)).ravel())
    assert pooled(np.array([[5]]), (8,), 4)[1] == (2,)
    with pytest.raises(UserError, match=r"data\.pool = 4.*divides the sensor's 4 x 6"):
        pooled(places, (2, 4, 6), 4)


def sample(events=200):
    rng = np.random.default_rng(2)
    time, address = np.sort(rng.integers(0, 1000, events)), rng.integers(0, 24, events)
    return Recordings(time - time[0], address, np.array([0, 0]), np.array([events, events]), SENSOR)


EVERYTHING = Augmentation(shift=1, roll=1, flip=True, jitter_us=50, drop=0.2)


def test_augmentation_is_for_training_and_decided_by_seed_epoch_and_index():
    def shown(epoch, index=0, seed=0, augment=EVERYTHING):
        encoding = Encoding("events", 6, seed=seed, augment=augment)
        return encode(sample(), np.array([index, index + 1]), encoding, epoch)

    assert torch.equal(shown(0), shown(0, augment=Augmentation()))
    assert torch.equal(shown(3), shown(3))
    assert torch.equal(shown(3)[:, 1], shown(3, index=1)[:, 0])
    for other in (shown(4), shown(3, index=7), shown(3, seed=1), shown(0)):
        assert not torch.equal(shown(3), other)


def test_images_are_augmented_before_they_are_encoded():
    values = np.random.default_rng(3).random((40, 1, 5, 6), dtype=np.float32)
    flipped = encode(values, np.arange(40), Encoding("direct", 2, 8, augment=Augmentation(flip=True)), epoch=1)
    plain = encode(values, np.arange(40), Encoding("direct", 2, 8))
    mirrored = [bool(torch.equal(flipped[:, k], plain[:, k].flip(-1))) for k in range(40)]
    assert all(torch.equal(flipped[:, k], plain[:, k]) or mirrored[k] for k in range(40))
    assert 8 < sum(mirrored) < 32


@given(st.integers(0, 2**32 - 1))
def test_shifting_loses_at_the_border_what_rolling_brings_back(seed):
    maps = np.arange(1, 25).reshape(2, 3, 4)
    rolled = moved(maps, 2, Augmentation(roll=2), np.random.default_rng(seed))
    shifted = moved(maps, 2, Augmentation(shift=2), np.random.default_rng(seed))
    assert sorted(rolled.ravel()) == sorted(maps.ravel())
    assert np.array_equal(shifted, np.where(shifted > 0, rolled, 0))  # the same draws, with zeros coming in
    for channel in range(2):
        assert np.array_equal(shifted[channel] > 0, shifted[0] > 0)
    assert np.array_equal(maps, np.arange(1, 25).reshape(2, 3, 4))


def test_jitter_and_drop_keep_the_order_of_time_and_the_pixels():
    rng = np.random.default_rng(4)
    time = np.sort(rng.integers(0, 10_000, 5000))
    kept, address = disturbed(time, np.arange(5000), Augmentation(drop=0.25), rng)
    assert 3600 < len(kept) < 3900
    assert np.array_equal(kept, time[address] - time[address[0]])
    jittered, address = disturbed(time, np.arange(5000), Augmentation(jitter_us=30), rng)
    assert (np.diff(jittered) >= 0).all()
    moves = jittered - time[address]
    assert moves.max() - moves.min() == 60


def test_an_encoding_of_the_other_kind_of_sample_is_refused():
    with pytest.raises(UserError, match=r"'rate' is not for recordings of events; set data\.encoding = 'events'"):
        encode(sample(), np.arange(2), Encoding("rate"))
    with pytest.raises(UserError, match="'events' is not for images"):
        encode(np.zeros((1, 1, 2, 2), np.float32), np.arange(1), Encoding("events"))
    with pytest.raises(UserError, match=r"augment\.jitter_us and augment\.drop are for recordings"):
        encode(np.zeros((1, 1, 2, 2), np.float32), np.arange(1), Encoding(augment=Augmentation(drop=0.5)))


@pytest.mark.parametrize("wrong", [{"shift": -1}, {"roll": -1}, {"jitter_us": -5}, {"drop": 1.0}, {"drop": -0.1}])
def test_impossible_augmentation_is_refused(wrong):
    with pytest.raises(UserError, match=rf"augment\.{next(iter(wrong))}"):
        Augmentation(**wrong)


def test_only_the_events_of_the_chosen_recordings_are_read():
    class Watched(np.ndarray):
        read = 0

        def __getitem__(self, key):
            Watched.read += key.stop - key.start
            return np.asarray(self)[key]

    time = np.zeros(10_000, np.uint32).view(Watched)
    starts = np.arange(0, 10_000, 10)
    many = Recordings(time, np.zeros(10_000, np.uint16), starts, starts + 10, SENSOR)
    encode(many[np.array([3, 999])], np.array([3, 999]), Encoding("events", 2))
    assert Watched.read == 20
