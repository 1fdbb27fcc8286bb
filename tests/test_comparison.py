"""The comparison: what its file may say, cells made once and side by side, and a page that tells them truly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import pipeline as command_line
from base.errors import UserError
from run import config
from run.comparison import cell, page, pictures, plan
from run.comparison.numbers import numbers, paired
from run.comparison.workers import load
from train.datasets import load as load_data
from train.encoding import Encoding, encode
from train.network import SpikingNetwork
from train.neurons import LIF

ROOT = Path(__file__).parent.parent
SMALL = """
[data]
steps = 3
validation = 0.1
[network]
architecture = "8-10"
[train]
epochs = 1
[compare]
seeds = 2
[compare.methods]
arctan = {}
"soft | triangular" = { network.reset = "soft", network.surrogate = "triangular" }
"""


def write(path: Path, text: str = SMALL) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def compare(file: Path, out: Path, *settings: str, jobs: int = 2) -> int:
    """The command in this process; returns its exit status."""
    return command_line.compare(file=file, out=out, jobs=jobs, settings=list(settings))


def told(out: Path) -> dict[str, Any]:
    return json.loads((out / "comparison.json").read_text(encoding="utf-8"))


def results(out: Path) -> list[dict[str, Any]]:
    """What the cells say that may not depend on the machine's load."""
    return [{key: value for key, value in made.items() if key != "cost"} for made in told(out)["cells"]]


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("files") / "small.toml")


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods by two seeds, made by two processes."""
    out = tmp_path_factory.mktemp("runs") / "small"
    assert compare(file, out) == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished comparison, to be harmed."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_every_cell_tells_what_was_measured(finished: Path) -> None:
    cells = told(finished)["cells"]
    assert [(made["method"], made["seed"]) for made in cells] == [
        ("arctan", 0), ("soft | triangular", 0), ("arctan", 1), ("soft | triangular", 1)]  # fmt: skip
    for made in cells:
        assert made["samples"] == 360
        assert set(made["accuracy"]) == {"validation", "float", "integer"}
        assert made["reference"] == {"samples": 4, "equal": True}
        assert set(made["populations"]) == {"dense1", "dense2"}
        assert [epoch["epoch"] for epoch in made["curve"]] == [1]
        assert made["curve"][0]["validation_accuracy"] == made["accuracy"]["validation"]
        assert made["cost"]["peak_memory_mib"] > 100


def test_a_cell_is_what_the_single_run_of_its_configuration_is(finished: Path, tmp_path: Path) -> None:
    """Stage by stage on one thread: the integers get as many right, and fire as often."""
    made = told(finished)["cells"][1]
    keys = ["data.steps=3", "data.validation=0.1", "network.architecture=8-10", "train.epochs=1"]
    keys += ["network.reset=soft", "network.surrogate=triangular"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for stage in (command_line.train, command_line.quantize):
            assert stage(out=tmp_path, config=None, settings=keys) == 0
    finally:
        torch.set_num_threads(threads)
    alone = json.loads((tmp_path / "quantize" / "fidelity.json").read_text())
    assert alone["accuracy"] == {kind: made["accuracy"][kind] for kind in ("float", "integer")}
    for name, population in made["populations"].items():
        assert alone["populations"][name]["integer_rate"] == population["integer_rate"]


def test_a_cell_trains_its_aware_epochs_too(tmp_path: Path) -> None:
    keys = ["data.steps=3", "network.architecture=8-10", "train.epochs=1", "train.aware_epochs=2"]
    made = cell.measure(config.read(None, keys), tmp_path, lambda *_: None)
    assert [epoch["epoch"] for epoch in made["curve"]] == [1, 1, 2]
    assert made["reference"] == {"samples": 4, "equal": True}


def test_comparing_again_makes_no_cell_and_the_page_from_the_cells_alone_is_the_same(file: Path, run: Path) -> None:
    written = ["comparison.md", "comparison.json", *(path.name for path in run.glob("*.svg"))]
    before = {name: (run / name).read_bytes() for name in written}
    cells = files(run / "cells")
    for name in written:
        (run / name).unlink()
    assert compare(file, run) == 0
    assert files(run / "cells") == cells
    assert {name: (run / name).read_bytes() for name in written} == before


def test_a_changed_method_makes_its_cells_anew_and_no_others(file: Path, run: Path) -> None:
    cells, before = files(run / "cells"), results(run)
    assert compare(file, run, "compare.methods.soft | triangular.network.width=2.0", jobs=1) == 0
    after = files(run / "cells")
    assert {path: after[path] for path in cells} == cells
    assert len({path.parent for path in after} - {path.parent for path in cells}) == 2
    assert results(run)[::2] == before[::2]
    assert [made["config"]["network"]["width"] for made in results(run)] == [1.0, 2.0, 1.0, 2.0]


def test_the_numbers_do_not_depend_on_the_number_of_jobs(file: Path, finished: Path, tmp_path: Path) -> None:
    assert compare(file, tmp_path, jobs=1) == 0
    assert results(tmp_path) == results(finished)


def test_a_failing_cell_is_told_and_ends_no_other(file: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, *_ = plan.read(file).cells
    for harmed in (first, second):
        (run / "cells" / harmed.key / "cell.json").unlink()
    (run / "cells" / first.key / "state.safetensors").write_bytes(b"foreign")
    assert compare(file, run) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"Failed: arctan, seed 0: .*state.safetensors cannot be read .*; delete it to start", said)
    found = told(run)
    assert [(made["method"], made["seed"]) for made in found["cells"]] == [
        ("soft | triangular", 0), ("arctan", 1), ("soft | triangular", 1)]  # fmt: skip
    assert found["rows"][1]["difference"]["pairs"] == 1
    assert "**Failed: arctan, seed 0**" in (run / "comparison.md").read_text(encoding="utf-8")


def test_ctrl_c_leaves_no_process_and_no_half_file(file: Path, tmp_path: Path) -> None:
    words = [sys.executable, ROOT / "pipeline.py", "compare", file, "--out", tmp_path / "run", "--jobs", "2"]
    running = subprocess.Popen([*words, "--set", "train.epochs=2000"], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/cells/*/state.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert (running.returncode, "Traceback" in said) == (130, False), said
    assert "the same command goes on from there" in " ".join(said.split())
    while processes_of(running.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_of(running.pid)
    assert not [path for path in files(tmp_path) if path.name.startswith(".")]


def processes_of(session: int) -> list[str]:
    """What still runs of a session, without those that only wait to be collected."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session, *_ = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(str(status.parent))
    return found


def test_the_page_names_command_methods_and_every_picture(file: Path, finished: Path) -> None:
    text = (finished / "comparison.md").read_text(encoding="utf-8")
    assert f"    uv run pipeline.py compare {file}\n" in text
    assert '* **soft \\| triangular**: `network.reset = "soft"`, `network.surrogate = "triangular"`' in text
    assert "equal the reference's in 4 of 4 trainings" in text
    rows = [re.split(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("| ")]
    assert len({len(row) for row in rows}) == 1
    shown = re.findall(r"!\[[^]]*]\(([^)]*)\)", text)
    assert set(shown) == {"accuracy.svg", "learning.svg", "rates.svg", "window.svg"}
    for name in shown:
        ElementTree.parse(finished / name)


def test_a_sweep_gives_every_method_every_value(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml")
    chosen = plan.read(file, ["compare.sweep.network.width=[0.5, 1]", "compare.seeds=3", "seed=7"])
    assert (chosen.swept, chosen.values, chosen.seeds) == ("network.width", (0.5, 1), (7, 8, 9))
    assert {(c.method, c.config.network.width, c.config.seed) for c in chosen.cells} == {
        (name, width, seed) for name in chosen.methods for width in (0.5, 1.0) for seed in (7, 8, 9)}  # fmt: skip
    assert len({c.key for c in chosen.cells}) == len(chosen.cells) == 12


def test_the_bits_of_the_weights_can_be_swept(tmp_path: Path) -> None:
    chosen = plan.read(write(tmp_path / "c.toml"), ['compare.sweep.quantize.bits=[4, "ternary"]', "compare.seeds=1"])
    assert [c.config.quantize.bits for c in chosen.cells] == [4, 4, "ternary", "ternary"]
    assert len({c.key for c in chosen.cells}) == 4


def test_a_swept_comparison_shows_its_values_and_cells_that_are_missing(
    file: Path, finished: Path, tmp_path: Path
) -> None:
    chosen = plan.read(file, ["compare.sweep.network.width=[0.5, 1]"])
    made = next(iter(load(plan.read(file).cells, finished).values()))
    measured = {c.key: made for c in chosen.cells if (c.method, c.value) != ("arctan", 0.5)}
    found = numbers(chosen, measured, {})
    assert [(row["method"], row["value"], row["cells"]) for row in found["rows"]] == [
        ("arctan", 0.5, 0), ("soft | triangular", 0.5, 2), ("arctan", 1, 2), ("soft | triangular", 1, 2)]  # fmt: skip
    assert [row["difference"] is None for row in found["rows"]] == [True, True, True, False]
    headings, rows = page.table(found)
    assert headings[:2] == ["method", "network.width"]
    assert rows[0][:3] == ["arctan", "0.5", "0"]
    page.write(found, "command", tmp_path)
    assert "(sweep.svg)" in (tmp_path / "comparison.md").read_text(encoding="utf-8")


def test_the_paired_test_is_that_of_scipy_and_of_the_book() -> None:
    ours, baseline = np.array([350, 352, 349, 355, 351]), np.array([348, 351, 350, 350, 349])
    found = paired([Fraction(int(a - b), 360) for a, b in zip(ours, baseline, strict=True)])
    assert found is not None
    differences = (ours - baseline) / 360
    t = differences.mean() / (differences.std(ddof=1) / np.sqrt(5))
    half = stats.t.ppf(0.975, df=4) * differences.std(ddof=1) / np.sqrt(5)
    assert found["pairs"] == 5
    assert found["p"] == pytest.approx(stats.ttest_rel(ours / 360, baseline / 360).pvalue, rel=1e-9)
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(t), df=4), rel=1e-9)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx(
        (differences.mean(), differences.mean() - half, differences.mean() + half)
    )


def test_differences_without_spread_have_no_p() -> None:
    assert paired([]) is None
    for same in ([Fraction(1, 360)], [Fraction(1, 360), Fraction(1, 360)], [Fraction(0)] * 5):
        found = paired(same)
        assert found is not None
        assert (found["mean"], found["p"], found["low"]) == (float(same[0]), None, None)


def test_the_share_inside_the_window_is_that_of_neurons_stepped_by_hand() -> None:
    torch.manual_seed(0)
    neurons = [LIF(beta=0.8, reset="soft", floor=True, width=0.7), LIF(beta=0.9, alpha=0.5, threshold=1.5)]
    layers = [nn.Linear(64, 9), nn.Linear(9, 10)]
    network = SpikingNetwork((1, 8, 8), [nn.Flatten(), layers[0], neurons[0], layers[1], neurons[1]])
    samples, encoding = load_data("digits").test[np.arange(30)], Encoding("rate", steps=5, seed=1)
    shares = cell.in_window(network, samples, encoding)
    arriving = encode(samples.values, np.arange(30), encoding).float().flatten(2)
    for layer, neuron, name in zip(layers, neurons, ("dense1", "dense2"), strict=True):
        u = v = torch.zeros(30, layer.out_features)
        inside, emitted = [], []
        for step in arriving:
            u = neuron.alpha * u + step @ layer.weight.T
            v = neuron.beta * v + u + layer.bias
            inside.append((v - neuron.threshold).abs() < neuron.width / 2)
            spikes = (v > neuron.threshold).float()
            v = torch.relu(v) if neuron.floor else v
            v = v - neuron.threshold * spikes if neuron.reset == "soft" else v * (1 - spikes)
            emitted.append(spikes)
        arriving = torch.stack(emitted)
        assert shares[name] == torch.stack(inside).double().mean().item()


def test_curves_hold_gaps_and_names_in_any_script() -> None:
    lines = {"基準 $x$": np.array([[0.5, 0.6], [0.7, np.nan]]), "_b": np.full((2, 2), np.nan), "c": np.zeros((0, 2))}
    for places in ([1, 2], ["0.5", "relu"]):
        drawn = pictures.curves((places, lines), "epoch", "accuracy")
        ElementTree.fromstring(drawn)
        assert "_b" in drawn
    assert "基準 $x$" in pictures.dots({"float": {"基準 $x$": [0.5], "none": []}}, {"none"})


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("compare.seed=3", "unknown key 'compare.seed'; did you mean 'seeds'?"),
        ("compare.seeds=0", "'compare.seeds' is 0; it must be a whole number from 1"),
        ("compare=3", "'compare' is 3; it must be a table"),
        ("compare.methods={}", "there is nothing to compare; name methods under [compare.methods]"),
        ("compare.methods.arctan=3", "method 'arctan' is 3; it must be a table"),
        ("compare.methods.arctan.network.width_of=3", "method 'arctan': unknown key 'network.width_of'; did you mean"),
        ("compare.methods.arctan.network.width=wide", "'network.width' is 'wide'; it must be a number"),
        ("compare.methods.arctan.seed=3", "method 'arctan' sets 'seed', which compare.seeds varies"),
        ("compare.sweep=3", "'compare.sweep' is 3; it must be a table"),
        ("compare.sweep={}", "'compare.sweep' names []; it must name one key"),
        ("compare.sweep.network.width=1.0", "gives network.width 1.0; it must be different values"),
        ("compare.sweep.network.width=[1, 1.0]", "it must be different values"),
        ("compare.sweep.network.widht=[1.0]", "unknown key 'network.widht'; did you mean 'width'?"),
        ("compare.sweep.network.reset=[\"hard\"]", "sets 'network.reset', which compare.sweep varies"),
        ("compare.sweep.seed=[1, 2]", "sweeps the seed; say how many seeds in compare.seeds"),
        ("trian.epochs=3", "unknown key 'trian'; did you mean 'train'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_one_sentence(file: Path, setting: str, says: str) -> None:
    with pytest.raises(UserError) as refusal:
        plan.read(file, [setting])
    assert says in str(refusal.value)


def test_what_training_would_refuse_is_refused_before_any_cell(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="method 'arctan': unknown surrogate 'arctn'; did you mean 'arctan'"):
        compare(file, tmp_path / "run", "compare.methods.arctan.network.surrogate=arctn")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("compare-*.toml")), ids=lambda path: path.stem)
def test_every_example_is_a_valid_comparison(example: Path) -> None:
    assert plan.read(example).cells
