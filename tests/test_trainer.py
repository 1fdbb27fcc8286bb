"""Training learns, repeats itself bit for bit, and goes on after an interruption as if there had been none."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.integrate import quad
from scipy.stats import norm

from base.errors import UserError
from train.architecture import build
from train.augment import Augmentation
from train.checkpoint import load_weights
from train.datasets import Dataset, Samples, load
from train.encoding import Encoding, encode
from train.events import Recordings
from train.neurons import LIF
from train.objectives import loss, pda, predict
from train.trainer import evaluate, fit, record
from train.training import Training
from train.updates import optimizer_of

TRAINING = Training(epochs=3, batch_size=16)
ENCODING = Encoding(steps=4)


@pytest.fixture(scope="module")
def few():
    digits = load("digits")
    return replace(digits, train=Samples(digits.train.values[:70], digits.train.labels[:70]))


def fresh(notation="12-10", seed=0):
    return build(notation, (1, 8, 8), seed=seed)


class Killed(Exception):
    pass


def killer(epoch, batch):
    def progress(at):
        if (at["epoch"], at["batch"]) == (epoch, batch):
            raise Killed

    return progress


def without_seconds(metrics):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in metrics]


def written_metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_tensors(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def uninterrupted(few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(fresh(), few, ENCODING, TRAINING, folder)


@pytest.mark.smoke
@pytest.mark.parametrize("moment", [(1, 2), (2, 1), (3, 5)])
def test_resumed_training_equals_uninterrupted_training_bit_for_bit(few, uninterrupted, tmp_path, moment):
    whole, metrics = uninterrupted
    with pytest.raises(Killed):
        fit(fresh(), few, ENCODING, TRAINING, tmp_path, killer(*moment))
    assert not (tmp_path / "weights.safetensors").exists()
    seen = []
    resumed = fit(fresh(), few, ENCODING, TRAINING, tmp_path, lambda at: seen.append(at["epoch"]))
    assert min(seen) == moment[0]
    assert without_seconds(resumed) == without_seconds(metrics)
    assert written_metrics(tmp_path) == resumed
    for name in ("weights.safetensors", "state.safetensors"):
        assert same_tensors(load_file(tmp_path / name), load_file(whole / name))


def test_finished_training_is_not_done_again(few, uninterrupted):
    folder, metrics = uninterrupted
    network = fresh()
    assert fit(network, few, ENCODING, TRAINING, folder, killer(1, 1)) == metrics
    assert same_tensors(dict(network.state_dict()), load_file(folder / "weights.safetensors"))


@pytest.mark.parametrize("change", ["fingerprint", "seed", "architecture", "encoding", "initial weights", "data"])
def test_a_state_of_another_training_is_not_used(few, tmp_path, change):
    short = Training(epochs=1, batch_size=32)
    fit(fresh(), few, ENCODING, short, tmp_path)
    dataset = few
    if change == "data":
        dataset = replace(few, train=Samples(1 - few.train.values, few.train.labels))
    seen = []
    fit(
        fresh("13-10" if change == "architecture" else "12-10", seed=int(change == "initial weights")),
        dataset,
        Encoding(steps=5) if change == "encoding" else ENCODING,
        replace(short, seed=1) if change == "seed" else short,
        tmp_path,
        seen.append,
        fingerprint="other" if change == "fingerprint" else "",
    )
    assert [at["batch"] for at in seen] == [1, 2, 3]


def test_a_broken_state_is_refused_by_name(few, tmp_path):
    fit(fresh(), few, ENCODING, Training(epochs=1), tmp_path)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"state\.safetensors.*delete it to start training anew"):
        fit(fresh(), few, ENCODING, Training(epochs=1), tmp_path)


def test_progress_and_metrics_tell_the_same_story(few, tmp_path):
    seen = []
    metrics = fit(fresh(), few, ENCODING, Training(epochs=2, batch_size=16), tmp_path, seen.append)
    assert [(at["epoch"], at["batch"]) for at in seen] == [(e, b) for e in (1, 2) for b in range(1, 6)]
    assert all((at["epochs"], at["batches"]) == (2, 5) for at in seen)
    assert [at["loss"] for at in seen[4::5]] == [line["loss"] for line in metrics]
    assert [at["accuracy"] for at in seen[4::5]] == [line["train_accuracy"] for line in metrics]
    assert set(metrics[0]["firing_rate"]) == {"dense1", "dense2"}


def test_recorded_rasters_are_those_of_the_network_and_give_its_accuracy(few):
    network = fresh()
    rasters = record(network, few.test, ENCODING)
    assert rasters["dense1"].shape == (4, 360, 12)
    assert rasters["dense1"].dtype == np.uint8
    spikes = encode(few.test.values[:256], np.arange(256), ENCODING)
    assert np.array_equal(rasters["dense2"][:, :256], network.rasters(spikes)["dense2"].numpy())
    answers = rasters["dense2"].sum(0, dtype=np.int64).argmax(1)
    assert evaluate(network, few.test, ENCODING) == np.mean(answers == few.test.labels)


def test_equal_counts_are_decided_for_the_lowest_class_as_numpy_does():
    spikes = torch.randint(0, 2, (3, 500, 6), generator=torch.Generator().manual_seed(0)).float()
    counts = spikes.sum(0).numpy()
    assert np.array_equal(predict(spikes).numpy(), counts.argmax(1))
    assert ((counts == counts.max(1, keepdims=True)).sum(1) > 1).any()


def test_weights_can_be_loaded_again(few, uninterrupted):
    folder, _ = uninterrupted
    network = fresh(seed=5)
    load_weights(network, folder / "weights.safetensors")
    assert same_tensors(dict(network.state_dict()), load_file(folder / "weights.safetensors"))


def test_weights_that_do_not_fit_are_refused_with_both_shapes(uninterrupted):
    with pytest.raises(UserError, match=r"'dense1\.weight' has shape \[12, 64\], the network needs \[13, 64\]"):
        load_weights(fresh("13-10"), uninterrupted[0] / "weights.safetensors")
    with pytest.raises(UserError, match=r"'dense3\.weight' is missing"):
        load_weights(fresh("12-10-10"), uninterrupted[0] / "weights.safetensors")
    with pytest.raises(UserError, match=r"'dense2\.\w+' has no place"):
        load_weights(fresh("12"), uninterrupted[0] / "weights.safetensors")


@pytest.mark.parametrize("content", [b"", b"not weights at all", None])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors cannot be read"):
        load_weights(fresh(), path)


def test_weights_with_nan_are_refused(uninterrupted, tmp_path):
    tensors = load_file(uninterrupted[0] / "weights.safetensors")
    tensors["dense2.weight"][3, 4] = float("nan")
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"'dense2\.weight' holds NaN"):
        load_weights(fresh(), tmp_path / "weights.safetensors")


def test_weights_that_are_no_numbers_end_the_training_and_are_not_written(few, tmp_path):
    network = fresh()
    with torch.no_grad():
        network.stages[0].synapse.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"'dense1\.weight' .*NaN.* epoch 1; .*learning_rate = 0\.\d+"):
        fit(network, few, ENCODING, TRAINING, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_network_with_another_number_of_classes_is_refused(few, tmp_path):
    with pytest.raises(UserError, match=r"\[9\] neurons, but data set 'digits' has 10 classes"):
        fit(fresh("12-9"), few, ENCODING, TRAINING, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": 1.5},
        {"seed": -1},
        {"weight_decay": -0.1},
        {"aware_weight_decay": -0.1},
        {"pda": -1.0},
        {"pda": float("inf")},
    ],
)
def test_impossible_training_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Training(**wrong)


def test_a_problem_of_two_pixels_is_solved(tmp_path):
    labels = np.arange(64) % 2
    values = np.stack([labels, 1 - labels], 1).astype(np.float32)
    part = Samples(values, labels)
    network = build("8-2", (2,), seed=0)
    fit(network, Dataset("pixels", (2,), 2, part, part), Encoding(steps=8), Training(epochs=20), tmp_path)
    assert evaluate(network, part, Encoding(steps=8)) == 1.0


@pytest.mark.slow
def test_digits_reach_ninety_six_percent(tmp_path):
    digits = load("digits")
    network = build("64-10", digits.shape, seed=0)
    fit(network, digits, Encoding(), Training(), tmp_path)
    assert evaluate(network, digits.test, Encoding()) >= 0.96


def test_dropout_and_norms_repeat_and_resume_bit_for_bit(few, tmp_path):
    def richer():
        return build("4C3-BN-DP0.3-R8-tdBN-10", (1, 8, 8), readout="current", seed=0)

    whole = fit(richer(), few, ENCODING, TRAINING, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(richer(), few, ENCODING, TRAINING, tmp_path / "killed", killer(2, 3))
    before = torch.get_rng_state()
    network = richer()
    resumed = fit(network, few, ENCODING, TRAINING, tmp_path / "killed")
    assert torch.equal(before, torch.get_rng_state())
    assert without_seconds(resumed) == without_seconds(whole)
    files = [load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed")]
    assert same_tensors(*files)
    assert set(whole[0]["firing_rate"]) == {"conv1", "recurrent2"}
    assert not network.training


def adapting():
    neuron = partial(LIF, width_by="psg", mask=0.3, rescale=True, neuron="klif", learn_decay=True)
    return build("6C3-BN-R8-10", (1, 8, 8), neuron=neuron, readout="current", seed=0)


def test_learned_widths_k_masks_and_penalties_repeat_and_resume_bit_for_bit(few, tmp_path):
    training = replace(TRAINING, weight_decay=0.1, pda=0.01)
    whole = fit(adapting(), few, ENCODING, training, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(adapting(), few, ENCODING, training, tmp_path / "killed", killer(2, 3))
    resumed = fit(adapting(), few, ENCODING, training, tmp_path / "killed")
    assert without_seconds(resumed) == without_seconds(whole)
    for name in ("weights.safetensors", "state.safetensors"):
        assert same_tensors(*(load_file(tmp_path / run / name) for run in ("whole", "killed")))
    assert set(whole[-1]["width"]) == {"conv1", "recurrent2"}
    assert all(width != 1.0 for width in whole[-1]["width"].values())
    assert whole[-1]["frozen_widths"] == []


def test_a_width_that_has_settled_is_frozen_and_stays_so_after_an_interruption(few, tmp_path):
    def network():
        return build("12-10", (1, 8, 8), neuron=partial(LIF, width_by="psg"), seed=0)

    training = Training(epochs=8, batch_size=32, learning_rate=1e-3)
    metrics = fit(network(), few, ENCODING, training, tmp_path / "whole")
    widths, frozen = ([line[key] for line in metrics] for key in ("width", "frozen_widths"))
    assert frozen == [[]] * 5 + [["dense1", "dense2"]] * 3
    assert widths[4]["dense1"] != widths[5]["dense1"] == widths[6]["dense1"] == widths[7]["dense1"]
    with pytest.raises(Killed):
        fit(network(), few, ENCODING, training, tmp_path / "killed", killer(8, 1))
    assert without_seconds(fit(network(), few, ENCODING, training, tmp_path / "killed")) == without_seconds(metrics)


def test_only_the_weights_of_synapses_decay_and_widths_learn_slowly():
    network = adapting()
    synapses, others, widths = optimizer_of(network, Training(weight_decay=0.2, learning_rate=0.01)).param_groups
    names = {parameter: name for name, parameter in network.named_parameters()}
    assert [names[p] for p in synapses["params"]] == [
        "conv1.weight", "recurrent2.weight", "recurrent2.recurrent", "dense3.weight"
    ]  # fmt: skip
    assert {"lif1.k", "lif1.beta_logit", "norm1.weight", "conv1.bias"} <= {names[p] for p in others["params"]}
    assert [names[p] for p in widths["params"]] == ["lif1.width", "lif2.width"]
    assert [group["weight_decay"] for group in (synapses, others, widths)] == [0.2, 0, 0]
    assert [group["initial_lr"] for group in (synapses, others, widths)] == [0.01, 0.01, 0.001]


def test_the_penalty_on_membranes_is_the_symmetric_divergence_of_two_gaussians():
    mean, spread, target = 0.4, 0.7, 1.2
    membrane = torch.tensor([mean - spread, mean + spread], dtype=torch.float64).view(1, 2, 1)
    p, q = norm(mean, spread), norm(0, target)

    def gap(x):
        return (p.pdf(x) - q.pdf(x)) * (p.logpdf(x) - q.logpdf(x)) / 2

    assert pda(membrane, target).item() == pytest.approx(quad(gap, -12, 12)[0], rel=1e-9)


def test_the_penalty_is_zero_where_the_distributions_match_and_above_elsewhere():
    matched = torch.tensor([-1.5, 1.5]).view(1, 2, 1).expand(4, 2, 1)
    assert pda(matched, 1.5).item() == pytest.approx(0, abs=1e-7)
    for other in (matched * 1.2, matched * 0.8, matched + 0.3, torch.zeros(4, 2, 1)):
        assert pda(other, 1.5).item() > 0.01


def test_the_penalty_brings_membranes_closer_to_their_target(few, tmp_path):
    def shift(weight):
        network = fresh("24-10")
        fit(network, few, ENCODING, Training(epochs=6, pda=weight), tmp_path / str(weight))
        with torch.no_grad():
            membranes = network.spikes_and_membranes(encode(few.train.values, np.arange(70), ENCODING))[1]
        return sum(pda(membrane, (1 + 0.75**2) ** 0.5).item() for membrane in membranes.values())

    assert shift(1.0) < 0.7 * shift(0.0)


def test_a_penalty_without_membranes_is_refused(few, tmp_path):
    network = build("10", (1, 8, 8), readout="current", seed=0)
    with pytest.raises(UserError, match=r"pda = 0\.1 in a network without LIF"):
        fit(network, few, ENCODING, replace(TRAINING, pda=0.1), tmp_path)


def test_evaluation_uses_running_statistics_and_leaves_the_mode_alone(few):
    network = build("8-BN-DP0.5-10", (1, 8, 8), readout="current", seed=0)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert evaluate(network, few.test, ENCODING) == evaluate(network, few.test, ENCODING)
    emitted = record(network, Samples(few.test.values[:5], few.test.labels[:5]), ENCODING)
    assert network.training
    assert same_tensors(network.state_dict(), state)
    assert (emitted["dense1"].dtype, emitted["dense2"].dtype) == (np.uint8, np.float32)


def test_a_readout_answers_with_the_largest_current_summed_over_time():
    currents = torch.tensor([[[0.5, 2.0, -9.0]], [[1.0, -2.0, 10.5]]])
    assert predict(currents).tolist() == [0]
    expected = torch.nn.functional.cross_entropy(torch.tensor([[1.5, 0.0, 1.5]]), torch.tensor([2]))
    assert torch.equal(loss(currents, torch.tensor([2]), spiking=False), expected)


def test_validation_is_measured_every_epoch_and_changes_nothing_else(few, uninterrupted, tmp_path):
    held = Samples(few.test.values[:50], few.test.labels[:50])
    network = fresh()
    metrics = fit(network, replace(few, validation=held), ENCODING, TRAINING, tmp_path)
    assert metrics[-1]["validation_accuracy"] == evaluate(network, held, ENCODING)
    without = [{key: value for key, value in line.items() if key != "validation_accuracy"} for line in metrics]
    assert without_seconds(without) == without_seconds(uninterrupted[1])


def test_recordings_of_events_are_learned_and_resumed_with_augmentation(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    address = (rng.integers(0, 4, (40, 30)) + 4 * labels[:, None]).ravel().astype(np.uint8)
    time = np.sort(rng.integers(0, 1000, (40, 30)), 1)
    starts = np.arange(0, 1200, 30)
    values = Recordings((time - time[:, :1]).ravel(), address, starts, starts + 30, (8,))
    part = Samples(values, labels)
    dataset = Dataset("channels", (8,), 2, part, part)
    encoding = Encoding("events", 5, 2, augment=Augmentation(roll=1, jitter_us=20, drop=0.1))
    training = Training(epochs=15, batch_size=8)
    whole, resumed = (build("12-2", (8,), payload_bits=2, seed=0) for _ in range(2))
    fit(whole, dataset, encoding, training, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(build("12-2", (8,), payload_bits=2, seed=0), dataset, encoding, training, tmp_path / "cut", killer(7, 3))
    fit(resumed, dataset, encoding, training, tmp_path / "cut")
    assert same_tensors(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert evaluate(whole, part, encoding) == 1.0
