"""Input spikes mean what they say, and depend on the sample alone."""

import time

import numpy as np
import pytest
import torch

from base.errors import UserError
from train.encoding import Encoding, encode

PIXELS = np.random.default_rng(0).random((6, 1, 4, 5), dtype=np.float32)
INDICES = np.array([10, 3, 99, 4, 5, 6])


@pytest.mark.parametrize("kind", ["rate", "latency", "direct"])
@pytest.mark.parametrize("steps", [1, 7])
def test_encoded_input_is_small_unsigned_integers_time_first(kind, steps):
    encoding = Encoding(kind, steps)
    spikes = encode(PIXELS, INDICES, encoding)
    assert spikes.shape == (steps, *PIXELS.shape)
    assert spikes.dtype == torch.uint8
    assert spikes.max() <= 2**encoding.payload_bits - 1


def test_rate_is_the_probability_of_a_spike():
    levels = np.linspace(0, 1, 11, dtype=np.float32)[None]
    rates = encode(levels, np.array([0]), Encoding(steps=4000))[:, 0].float().mean(0)
    assert rates[0] == 0
    assert rates[-1] == 1
    np.testing.assert_allclose(rates, levels[0], atol=0.04)  # five standard deviations of the mean at 0.5


@pytest.mark.smoke
def test_rate_spikes_of_a_sample_do_not_depend_on_its_batch():
    together = encode(PIXELS, INDICES, Encoding(seed=3), epoch=2)
    for place in range(len(PIXELS)):
        alone = encode(PIXELS[place : place + 1], INDICES[place : place + 1], Encoding(seed=3), epoch=2)
        assert torch.equal(together[:, place], alone[:, 0])


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"indices": INDICES + 1}])
def test_rate_spikes_change_with_seed_epoch_and_index(other):
    indices = other.get("indices", INDICES)
    spikes = encode(PIXELS, indices, Encoding(seed=other.get("seed", 0)), other.get("epoch", 0))
    assert not torch.equal(spikes, encode(PIXELS, INDICES, Encoding()))


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    encode(PIXELS, INDICES, Encoding())
    assert torch.equal(before, torch.get_rng_state())


def test_latency_spikes_once_the_brighter_the_earlier_and_never_for_black():
    levels = np.array([[1.0, 0.75, 0.5, 0.25, 0.02, 0.0]], np.float32)
    spikes = encode(levels, np.array([0]), Encoding("latency", 9))[:, 0]
    assert spikes.sum(0).tolist() == [1, 1, 1, 1, 1, 0]
    assert spikes.argmax(0)[:5].tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_direct_repeats_the_nearest_level(bits):
    encoding = Encoding("direct", 3, bits)
    assert encoding.payload_bits == bits
    levels = encode(PIXELS, INDICES, encoding)
    for step in levels:
        assert np.array_equal(step.numpy(), np.round(PIXELS * (2**bits - 1)).astype(np.uint8))


def test_bytes_are_encoded_as_255ths():
    bytes_ = np.arange(256, dtype=np.uint8)[None]
    levels = encode(bytes_, np.array([0]), Encoding("direct", 1, 4))[0, 0]
    assert levels.tolist() == [(15 * value * 2 + 255) // 510 for value in range(256)]
    assert torch.equal(
        encode(bytes_, np.array([5]), Encoding()), encode(bytes_ / np.float32(255), np.array([5]), Encoding())
    )


def test_delta_scans_the_rows_and_spikes_where_they_change():
    image = np.array([[[0.5, 0.0], [0.5, 0.25], [0.25, 0.3]]], np.float32)
    spikes = encode(image[None], np.array([0]), Encoding("delta", 3))
    assert spikes.shape == (3, 1, 2, 1, 2)
    assert spikes[:, 0, 0, 0].tolist() == [[1, 0], [0, 1], [0, 0]]
    assert spikes[:, 0, 1, 0].tolist() == [[0, 0], [0, 0], [1, 0]]
    rgb = np.random.default_rng(1).random((2, 3, 5, 4), dtype=np.float32)
    both = encode(rgb, np.arange(2), Encoding("delta", 5))
    change = np.diff(np.concatenate([np.zeros_like(rgb[:, :, :1]), rgb], 2), axis=2).transpose(2, 0, 1, 3)
    assert np.array_equal(both[:, :, :, 0].numpy(), np.concatenate([change >= 0.1, change <= -0.1], 2))


def test_delta_needs_a_step_for_every_row():
    with pytest.raises(UserError, match="as many steps as the image has rows, 4, not T = 7"):
        encode(PIXELS, INDICES, Encoding("delta", 7))
    with pytest.raises(UserError, match=r"images \[C, H, W\]"):
        encode(PIXELS[:, 0, 0], INDICES, Encoding("delta", 7))


def test_only_input_that_stays_the_same_can_be_a_bias():
    assert Encoding("direct", direct="bias").input_is_bias
    assert not Encoding("direct").input_is_bias
    with pytest.raises(UserError, match="encoding 'rate' with direct = 'bias': only input that is the same"):
        Encoding("rate", direct="bias")
    with pytest.raises(UserError, match=r"unknown way of direct input 'biased'; .*bias"):
        Encoding("direct", direct="biased")


def test_spike_encodings_have_one_payload_bit():
    assert Encoding("rate", bits=4).payload_bits == Encoding("latency", bits=4).payload_bits == 1


def test_an_epoch_of_digits_is_encoded_within_a_second():
    values = np.random.default_rng(1).random((1437, 1, 8, 8), dtype=np.float32)
    began = time.process_time()
    encode(values, np.arange(1437), Encoding())
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"kind": "rat"}, "did you mean 'rate'"),
        ({"steps": 0}, "T = 0"),
        ({"bits": 0}, "bits = 0"),
        ({"bits": 9}, "bits = 9"),
        ({"seed": -1}, "seed = -1"),
        ({"bins": "counts"}, "did you mean 'count'"),
        ({"bins": "window"}, "window_us = 0: a window of at least 1 us"),
        ({"window_us": 5}, "bins = 'duration' and window_us = 5"),
    ],
)
def test_impossible_encodings_are_refused(wrong, text):
    with pytest.raises(UserError, match=text):
        Encoding(**wrong)
