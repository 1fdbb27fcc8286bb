"""Aware epochs end a training: marked, resumed to the same bits, and right about what the integers will answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from base.errors import UserError
from quantize import engine
from quantize.aware import AwareNetwork
from quantize.fold import fold
from quantize.scales import quantize
from train.architecture import build
from train.checkpoint import load_weights
from train.datasets import Dataset, Samples, load
from train.encoding import Encoding, encode_all
from train.network import SpikingNetwork
from train.neurons import LIF
from train.trainer import calibration_inputs, evaluate, fit
from train.training import Training

ENCODING = Encoding(steps=4)


def few() -> Dataset:
    digits = load("digits")
    return replace(digits, train=Samples(digits.train.values[:200], digits.train.labels[:200]))


def fresh() -> SpikingNetwork:
    return build("4C3-BN-AP2-16-10", (1, 8, 8), neuron=lambda: LIF(width_by="psg"), seed=0)


def test_aware_epochs_end_with_weights_whose_integers_answer_as_the_training_saw(tmp_path: Path) -> None:
    digits, network, told = few(), fresh(), []
    training = Training(epochs=2, aware_epochs=2, batch_size=32, time_weights=True)
    metrics = fit(network, digits, ENCODING, training, tmp_path, told.append, aware=AwareNetwork)
    assert [line.get("aware", False) for line in metrics] == [False, False, True, True]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == metrics
    assert [(batch["epoch"], batch["epochs"]) for batch in told[:: len(told) // 4]] == [(1, 4), (2, 4), (3, 4), (4, 4)]

    loaded = fresh()
    load_weights(loaded, tmp_path / "weights.safetensors")
    for name, weights in network.state_dict().items():
        assert torch.equal(weights, loaded.state_dict()[name]), name
    loaded.time_weights = None
    integers, _ = quantize(fold(loaded), loaded.input_shape, 1)
    counts = engine.run(integers, encode_all(digits.test.values, ENCODING)).spikes[integers.output].sum(0, dtype=int)
    aware = AwareNetwork(loaded, calibration_inputs(digits, ENCODING))
    assert evaluate(aware, digits.test, ENCODING) == (counts.argmax(1) == digits.test.labels).mean()


@pytest.mark.parametrize("killed_in", [2, 4])
def test_aware_training_goes_on_where_it_was_stopped(killed_in: int, tmp_path: Path) -> None:
    digits, training, whole = few(), Training(epochs=2, aware_epochs=2, batch_size=32), fresh()
    fit(whole, digits, ENCODING, training, tmp_path / "whole", aware=AwareNetwork)

    def stop(batch: dict[str, Any]) -> None:
        if batch["epoch"] == killed_in:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), digits, ENCODING, training, tmp_path / "stopped", stop, aware=AwareNetwork)
    resumed, epochs = fresh(), set()
    fit(resumed, digits, ENCODING, training, tmp_path / "stopped", lambda b: epochs.add(b["epoch"]), aware=AwareNetwork)
    assert epochs == set(range(killed_in, 5))
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name]), name


def test_aware_epochs_can_be_added_to_a_training_that_is_done(tmp_path: Path) -> None:
    digits, epochs = few(), set()
    fit(fresh(), digits, ENCODING, Training(epochs=2, batch_size=32), tmp_path)
    longer = Training(epochs=2, aware_epochs=1, batch_size=32)
    fit(fresh(), digits, ENCODING, longer, tmp_path, lambda b: epochs.add(b["epoch"]), aware=AwareNetwork)
    assert epochs == {3}


def test_weights_decay_in_aware_epochs_by_a_share_of_their_own(tmp_path: Path) -> None:
    sizes = []
    for decay in (0.0, 50.0):
        training = Training(epochs=1, aware_epochs=1, aware_weight_decay=decay, batch_size=32)
        fit(network := fresh(), few(), ENCODING, training, tmp_path, aware=AwareNetwork)
        sizes.append(network.get_submodule("dense2").get_parameter("weight").norm().item())
    assert sizes[1] < 0.9 * sizes[0]


def test_online_training_cannot_be_aware() -> None:
    with pytest.raises(UserError, match="aware_epochs = 2 with online = 'a'"):
        Training(online="a", aware_epochs=2)


def test_aware_epochs_need_to_be_told_whose_forward_pass_they_use(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="aware=AwareNetwork of"):
        fit(fresh(), few(), ENCODING, Training(epochs=1, aware_epochs=1), tmp_path)
