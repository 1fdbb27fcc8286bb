"""Real events the whole way: trained, quantized, run on Lava, and equal."""

import json
import re

import pytest
from shared_data import NMNIST_SMALL, SPOKEN_DIGITS, needs
from test_pipeline import pipeline, refused

EVENTS = ("--set", "data.encoding=events", "--set", "data.steps=5", "--set", "train.epochs=2")
LITTLE_LAVA = ("--set", "deploy.samples=4", "--set", "deploy.states=1")


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(("data.dataset=spoken_digits", "network.architecture=16-10"), marks=needs(SPOKEN_DIGITS)),
        pytest.param(
            (
                "data.dataset=nmnist_small",
                "data.pool=2",
                "data.bits=2",
                "data.bins=count",
                "network.architecture=4C5S2-10",
            ),
            marks=needs(NMNIST_SMALL),
        ),
    ],
    ids=lambda chosen: chosen[0],
)
def test_recordings_go_the_whole_way_with_a_validation_part(tmp_path, chosen):
    settings = [word for setting in (*chosen, f"data.cache={tmp_path}/cache") for word in ("--set", setting)]
    done = pipeline("--out", tmp_path / "run", *EVENTS, *LITTLE_LAVA, *settings, "--set", "data.validation=0.1")
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["equal"]
    assert all(pair["samples"] == 4 and pair["spikes_compared"] > 0 for pair in verdict["comparisons"])
    metrics = [json.loads(line) for line in (tmp_path / "run" / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [0 <= line["validation_accuracy"] <= 1 for line in metrics] == [True, True]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("data.dataset=fashion_mnits",), "did you mean 'fashion_mnist'?"),
        (("data.dataset=nmnist", "data.folder=nowhere"), "'nmnist': no Train in nowhere"),
        (("data.encoding=events",), "'events' is not for images; set data.encoding = 'rate'"),
        (("data.encoding=delta", "data.steps=16"), "as many steps as the image has rows, 8"),
        (("data.validation=1.0",), "data.validation = 1.0"),
        (("data.augment.shift=-1",), "augment.shift = -1"),
        (("data.augment.shfit=1",), "unknown key 'data.augment.shfit'; did you mean 'shift'?"),
        (("data.pool=2",), "data.pool = 2: is for events"),
    ],
)
def test_data_that_cannot_be_meant_is_refused_before_any_work(tmp_path, settings, says):
    words = [word for setting in settings for word in ("--set", setting)]
    assert says in refused("--out", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_an_image_scanned_row_by_row_goes_through_and_where_the_cache_is_decides_nothing(tmp_path):
    settings = ("data.encoding=delta", "data.steps=8", "network.architecture=16-10", "train.epochs=1")
    words = [word for setting in (*settings, "deploy.backends=reference,engine") for word in ("--set", setting)]
    assert pipeline("--out", tmp_path / "run", *words).returncode == 0
    done = pipeline("--out", tmp_path / "run", "--set", f"data.cache={tmp_path}/elsewhere")
    assert done.returncode == 0
    for stage in ("train", "quantize", "verify"):
        assert re.search(rf"{stage} .*done before, unchanged", done.stdout)
