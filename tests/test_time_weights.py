"""Temporally weighted output: what each step counts follows how it answers, and everything that predicts uses it."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from base.errors import UserError
from quantize import engine, reference
from quantize.arithmetic import TIME_WEIGHT_UNITY
from quantize.fold import fold
from quantize.recording import Recording, predictions
from quantize.scales import quantize
from train.architecture import build
from train.checkpoint import load_weights
from train.datasets import Samples, load
from train.encoding import Encoding, encode_all
from train.objectives import loss, predict
from train.time_weights import followed, right_by_step, weighted
from train.trainer import evaluate, fit, record
from train.training import Training

ENCODING = Encoding(steps=4)
TRAINING = Training(epochs=8, batch_size=32, time_weights=True)


@pytest.fixture(scope="module")
def few():
    digits = load("digits")
    return replace(digits, train=Samples(digits.train.values[:100], digits.train.labels[:100]))


def fresh(readout="spikes", seed=0):
    return build("12-10", (1, 8, 8), readout=readout, seed=seed)


def fresh_like(network, seed=0):
    return fresh("spikes" if network.stages[-1].spiking else "current", seed)


@pytest.fixture(scope="module", params=["spikes", "current"])
def trained(request, few, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    network = fresh(request.param)
    return network, fit(network, few, ENCODING, TRAINING, folder), folder


@given(st.lists(st.lists(st.integers(0, 60), min_size=6, max_size=6), max_size=30))
def test_weights_keep_mean_one_whatever_the_answers(epochs):
    weights = torch.ones(6)
    for right in epochs:
        weights = followed(weights, right)
        assert weights.dtype == torch.float32
        assert abs(weights.double().mean().item() - 1) < 1e-6
        assert (weights >= 0).all()


def test_weights_follow_the_steps_that_answer_right():
    followed_once = followed(torch.tensor([1.0, 1.0, 0.5, 1.5]), [10, 20, 0, 10])
    assert followed_once.tolist() == pytest.approx([1.0, 1.3, 0.35, 1.35])
    weights = torch.tensor([0.5, 1.5])
    assert torch.equal(followed(weights, [0, 0]), weights)


def test_a_step_answers_with_its_largest_output_and_the_lowest_class_among_equals():
    output = torch.tensor([[[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    assert right_by_step(output, torch.tensor([1, 0])).tolist() == [2, 0]
    assert right_by_step(output, torch.tensor([2, 1])).tolist() == [0, 2]


@pytest.mark.parametrize("spiking", [True, False])
def test_weights_of_one_leave_loss_and_gradient_as_they_are_bit_for_bit(spiking):
    drawn = torch.randn((7, 30, 5), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 5
    found = []
    for weights in (None, torch.ones(7)):
        output = ((drawn > 0).float() if spiking else drawn.clone()).requires_grad_()
        objective = loss(weighted(output, weights), labels, spiking)
        objective.backward()
        found.append((objective.detach(), output.grad, predict(weighted(output, weights))))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_training_logs_weights_that_stay_one_for_five_epochs_and_then_follow_the_epoch_before(trained):
    network, metrics, _ = trained
    assert [line["time_weights"] for line in metrics[:5]] == [[1.0] * 4] * 5
    expected = np.ones(4)
    for before, line in pairwise(metrics[4:]):
        right = np.array(before["right_by_step"])
        expected = 0.7 * expected + 0.3 * right / right.mean()
        assert line["time_weights"] == pytest.approx(expected, abs=1e-4)
    assert network.time_weights.tolist() == pytest.approx(expected, abs=1e-6)
    assert np.ptp(expected) > 0.01


class Killed(Exception):
    pass


@pytest.mark.parametrize("moment", [5, 7])
def test_weights_survive_being_killed_and_resumed_bit_for_bit(few, trained, tmp_path, moment):
    network, _, whole = trained

    def kill(at):
        if at["epoch"] > moment:
            raise Killed

    with pytest.raises(Killed):
        fit(fresh_like(network), few, ENCODING, TRAINING, tmp_path, kill)
    fit(fresh_like(network), few, ENCODING, TRAINING, tmp_path)
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (tmp_path, whole))
    assert ours.keys() == theirs.keys() > {"time_weights"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_come_with_the_weights_file_and_others_have_none(few, trained, tmp_path):
    network, _, folder = trained
    loaded = fresh_like(network, seed=5)
    load_weights(loaded, folder / "weights.safetensors")
    assert torch.equal(loaded.time_weights, network.time_weights)
    assert evaluate(loaded, few.test, ENCODING) == evaluate(network, few.test, ENCODING)
    fit(fresh_like(network), few, ENCODING, Training(epochs=1), tmp_path)
    assert "time_weights" not in load_file(tmp_path / "weights.safetensors")
    load_weights(loaded, tmp_path / "weights.safetensors")
    assert loaded.time_weights is None


def test_another_number_of_steps_is_refused(few, trained):
    network, _, _ = trained
    with pytest.raises(UserError, match=r"it has 6 steps, but the network was trained to weigh 4 .* in 4 steps"):
        evaluate(network, few.test, Encoding(steps=6))


def test_floats_reference_and_engine_predict_by_the_same_integers(few, trained):
    """The oracle sums each class in Python's unbounded integers (floats: in doubles), last step first."""
    network, _, _ = trained
    integers, (*_, row) = quantize(fold(network), network.input_shape, 1)
    weights = np.rint(network.time_weights.double().numpy() * TIME_WEIGHT_UNITY).astype(int)
    assert np.array_equal(integers.time_weights, weights)
    assert row["time_weights"] == f"{weights.min():.4g}..{weights.max():.4g}"
    assert row["time_weight_error"] <= 2**-17
    inputs = encode_all(few.test.values, ENCODING)
    floats = Recording("float", "", "", record(network, few.test, ENCODING))
    runs = [reference.run(integers, inputs), engine.run(integers, inputs)]
    for ran in (floats, *runs):
        sums = [
            [sum(int(f) * x.item() for f, x in zip(weights[::-1], neuron[::-1], strict=True)) for neuron in sample]
            for sample in ran.spikes[integers.output].transpose(1, 2, 0)
        ]
        expected = [row.index(max(row)) for row in sums]
        assert predictions(ran, integers).tolist() == expected
    assert np.array_equal(*(predictions(ran, integers) for ran in runs))
    host = runs[0].spikes[integers.output].astype(np.float64)
    exact = (host * (integers.time_weights / TIME_WEIGHT_UNITY).reshape(-1, 1, 1)).sum(axis=0).argmax(-1)
    assert np.array_equal(exact, predictions(runs[0], integers))


def test_rounding_the_weights_decides_only_between_counts_that_are_nearer_than_its_bound():
    rng = np.random.default_rng(0)
    steps = 12
    network = fresh()
    network.time_weights = torch.from_numpy(rng.dirichlet(np.full(steps, 3.0)) * steps)
    integers, _ = quantize(fold(network), network.input_shape, 1)
    spikes = rng.integers(0, 2, (steps, 20_000, 10)).astype(np.uint8)
    counts = np.tensordot(network.time_weights.numpy(), spikes.astype(float), 1)
    lead = counts.max(1) - np.sort(counts, 1)[:, -2]
    found = predictions(Recording("float", "", "", {integers.output: spikes}), integers)
    assert np.array_equal(found[lead > steps * 2**-17], counts.argmax(1)[lead > steps * 2**-17])
