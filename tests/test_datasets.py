"""The digits are what scikit-learn carries, split once and for all; a data set with a fault is refused by name."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from base.errors import UserError
from train.datasets import Dataset, Samples, check, load


def test_digits_are_all_real_images_split_without_overlap():
    digits = load("digits")
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.train.values.dtype == np.float32
    assert digits.train.labels.dtype == np.int64
    pixels = np.concatenate([digits.train.values, digits.test.values]).reshape(-1, 64) * 16
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    expected, expected_labels = load_digits(return_X_y=True)

    def ordered(x, y):
        return np.array(sorted(np.column_stack([x, y]).tolist()))

    assert np.array_equal(ordered(pixels, labels), ordered(expected, expected_labels))


def test_every_class_is_held_out_evenly_and_always_the_same():
    digits = load("digits")
    assert np.bincount(digits.test.labels).min() >= 34
    assert np.array_equal(digits.test.values, load("digits").test.values)


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="'digit'; did you mean 'digits'"):
        load("digit")


def small(**train):
    part = Samples(np.full((4, 2, 3), 0.5, np.float32), np.array([0, 1, 2, 1]))
    return Dataset("mine", (2, 3), 3, replace(part, **train), part)


def with_value(value):
    values = np.full((4, 2, 3), 0.5, np.float32)
    values[2, 1, 0] = value
    return values


def test_a_sound_data_set_passes_unchanged():
    dataset = small()
    assert check(dataset) is dataset


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"values": with_value(np.nan)}, r"training part.*nan at \[2, 1, 0\]"),
        ({"values": with_value(np.inf)}, r"inf at \[2, 1, 0\]"),
        ({"values": with_value(1.5)}, r"1\.5 at \[2, 1, 0\]; expected a number in 0\.\.1"),
        ({"values": with_value(-0.5)}, r"-0\.5 at \[2, 1, 0\]"),
        ({"labels": np.array([0, 1, 2, 3])}, r"label 3 at \[3\]; expected 0\.\.2"),
        ({"labels": np.array([-1, 1, 2, 0])}, r"label -1 at \[0\]"),
        ({"labels": np.array([0, 1, 2])}, r"4 samples but labels of shape \(3,\)"),
        ({"labels": np.array([0, 1, 1, 1])}, "no sample has label 2"),
        ({"labels": np.array([0.0, 1, 2, 1])}, "labels are float64"),
        ({"values": np.zeros((0, 2, 3), np.float32), "labels": np.zeros(0, np.int64)}, "is empty"),
        ({"values": np.zeros((4, 6), np.float32)}, r"shape \(6,\)"),
        ({"values": np.zeros((4, 2, 3))}, "float64, expected float32"),
    ],
)
def test_a_fault_is_named_with_its_place(fault, text):
    with pytest.raises(UserError, match=text):
        check(small(**fault))


def test_a_fault_in_the_test_part_is_seen_too():
    dataset = small()
    with pytest.raises(UserError, match="test part"):
        check(replace(dataset, test=Samples(with_value(2.0), dataset.test.labels)))


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5])
def test_validation_is_the_same_share_of_every_class_of_the_training_part(share):
    whole, parted = load("digits"), load("digits", validation=share)
    counts = np.bincount(whole.train.labels)
    expected = [max(1, round(share * count)) for count in counts]
    assert np.bincount(parted.validation.labels).tolist() == expected
    assert len(parted.train) + len(parted.validation) == len(whole.train)

    def rows(samples):
        return samples.values.reshape(len(samples), -1).tolist()

    assert sorted(rows(parted.train) + rows(parted.validation)) == sorted(rows(whole.train))
    assert np.array_equal(parted.test.values, whole.test.values)
    assert np.array_equal(parted.validation.values, load("digits", validation=share).validation.values)


def test_without_a_share_there_is_no_validation_part():
    assert load("digits").validation is None


@pytest.mark.parametrize("share", [-0.1, 1.0, 0.999])
def test_a_share_that_leaves_nothing_to_train_on_is_refused(share):
    with pytest.raises(UserError, match=r"data\.validation = "):
        load("digits", validation=share)


def test_pooling_of_images_is_refused():
    with pytest.raises(UserError, match=r"data\.pool = 2: is for events, and 'digits' has images"):
        load("digits", pool=2)


def test_bytes_are_255ths():
    samples = Samples(np.arange(4, dtype=np.uint8)[:, None], np.arange(4) % 2)
    dataset = Dataset("bytes", (1,), 2, samples, samples)
    assert check(dataset) is dataset
