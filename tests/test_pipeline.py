"""The command line as a user meets it: the whole way, one stage at a time, killed and resumed, and with wrong input."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

import pipeline as command_line
from deploy.nir import files as nir_files
from deploy.nir import floats as nir_floats
from deploy.nir import foreign
from deploy.onnx import files
from quantize import held_out, integer_network, recording, reference
from quantize.arithmetic import LOIHI_LIF_V1
from quantize.bounds import certificate
from quantize.bounds.proof import prove
from quantize.calibration import calibrate
from quantize.fold import fold
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population
from quantize.precision import Precision
from quantize.scales import quantize
from train.architecture import build
from train.datasets import load
from train.encoding import Encoding
from train.neurons import LIF
from train.trainer import calibration_inputs

ROOT = Path(__file__).parent.parent
QUICK = ("--set", "data.steps=6", "--set", "train.epochs=3", "--set", "network.architecture=16-10")
NO_LAVA = ("--set", "deploy.backends=reference,engine")
LITTLE_LAVA = ("--set", "deploy.samples=5", "--set", "deploy.states=2")


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def pipeline(*arguments: str | Path) -> Done:
    """The command line in this process: what it prints, and the status it ends with."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["pipeline.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
    return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def process(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    command = [sys.executable, ROOT / "pipeline.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


def sentence(done: Any) -> str:
    """What a call that was refused, with status 2 and without a traceback, says on standard error."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("Error: ")
    return " ".join(done.stderr.split())


def refused(*arguments: str | Path) -> str:
    return sentence(pipeline(*arguments))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went the whole way, with Lava on five samples."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    done = process("--out", out, *QUICK, *LITTLE_LAVA)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "EQUAL" in done.stdout
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be harmed."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """An environment for a process in which there is no torch."""
    (tmp_path / "without" / "torch").mkdir(parents=True)
    (tmp_path / "without" / "torch" / "__init__.py").write_text("raise ImportError('there is no torch here')")
    return os.environ | {"PYTHONPATH": str(tmp_path / "without")}


def test_the_verdict_holds_what_was_compared(finished: Path) -> None:
    verdict = json.loads((finished / "verdict.json").read_text())
    assert verdict["equal"] is True
    assert {(pair["a"], pair["b"]) for pair in verdict["comparisons"]} == {
        ("reference", "engine"), ("reference", "lava"), ("engine", "lava")}  # fmt: skip
    for pair in verdict["comparisons"]:
        assert (pair["samples"], pair["steps"], pair["populations"]) == (5, 6, ["dense1", "dense2"])
        assert (pair["spikes_compared"], pair["spikes_different"]) == (5 * 6 * 26, 0)
        assert (pair["states_compared"], pair["states_different"]) == (2 * 2 * 6 * 26, 0)
        assert pair["first_divergence"] is None
    assert set(verdict["accuracy"]) == {"float", "integer", "lava"}
    assert len(set(verdict["hashes"]["recordings"].values())) == 1
    network = integer_network.load(finished / "quantize" / "network.npz")
    assert verdict["hashes"]["network"] == network.hash
    ran = recording.load(finished / "deploy" / "recordings" / "lava.npz")
    assert verdict["hashes"]["recordings"]["lava"] == ran.hash
    assert {"train", "quantize", "deploy: lava"} <= set(verdict["seconds"])
    assert verdict["versions"]["lava-nc"] == "0.10.0"
    assert (finished / "report.html").stat().st_size > 10_000


def test_the_table_of_integers_tells_what_each_rounding_cost(finished: Path) -> None:
    rows = json.loads((finished / "quantize" / "scales.json").read_text())
    assert [row["population"] for row in rows] == ["dense1", "dense2"]
    for row in rows:
        assert row["neuron_steps"] == 64 * 6 * row["neurons"]
        assert 0 <= row["changed_by_weights"] < row["neuron_steps"] / 10
    assert json.loads((finished / "report.json").read_text())["integers"]["scales"] == rows
    assert "changed by decays" in (finished / "report.html").read_text()


def test_running_again_does_nothing_and_says_so(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    done = pipeline("--out", run)
    assert done.returncode == 0
    assert "nothing was done" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_a_changed_key_runs_only_what_it_decides(run: Path) -> None:
    weights = (run / "train" / "weights.safetensors").stat().st_mtime_ns
    done = pipeline("--out", run, *NO_LAVA, "--set", "deploy.samples=7")
    assert done.returncode == 0, done.stderr
    assert (run / "train" / "weights.safetensors").stat().st_mtime_ns == weights
    assert json.loads((run / "verdict.json").read_text())["comparisons"][0]["samples"] == 7
    done = pipeline("--out", run, "--set", "quantize.bits=3", "--set", "quantize.per_layer.dense2=ternary")
    assert done.returncode == 0, done.stderr
    assert (run / "train" / "weights.safetensors").stat().st_mtime_ns == weights
    integers = integer_network.load(run / "quantize" / "network.npz")
    assert [len(np.unique(connection.weight)) for connection in integers.connections] == [8, 3]


def test_each_stage_works_from_the_files_of_the_one_before(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "run 'pipeline.py train" in refused("quantize", "--out", out, *QUICK, *NO_LAVA)
    assert pipeline("train", "--out", out).returncode == 0
    assert "run 'pipeline.py quantize" in refused("deploy", "--out", out)
    assert pipeline("quantize", "--out", out).returncode == 0
    assert pipeline("deploy", "--out", out).returncode == 0
    assert "run 'pipeline.py verify" in refused("report", "--out", out)
    done = pipeline("verify", "--out", out)
    assert (done.returncode, "EQUAL" in done.stdout) == (0, True)
    assert pipeline("report", "--out", out).returncode == 0
    assert (out / "report.json").is_file()


def test_deploy_verify_and_report_need_no_torch(run: Path, without_torch: dict[str, str]) -> None:
    shutil.rmtree(run / "deploy")
    assert "there is no torch here" in process("train", "--out", run, "--set", "seed=5", env=without_torch).stderr
    for stage in ("deploy", "verify", "report"):
        done = process(stage, "--out", run, "--set", "seed=0", "--set", "deploy.samples=4", env=without_torch)
        assert done.returncode == 0, done.stderr


def test_a_finished_run_tells_where_it_fits_and_what_it_costs(finished: Path) -> None:
    told = json.loads((finished / "deploy/chip.json").read_text())
    assert (told["fits"], told["placement"]["cores"], told["split"]["equal"]) == (True, 1, True)
    assert told["cost"]["samples"] == 5
    chip = json.loads((finished / "verdict.json").read_text())["chip"]
    assert (chip["name"], chip["fits"], chip["cores"], chip["parts_equal"]) == ("Loihi 1", True, 1, True)
    assert "On the chip" in (finished / "report.html").read_text()


def test_check_tells_before_any_training_whether_a_network_fits(tmp_path: Path) -> None:
    large = ("--out", tmp_path / "none", "--set", "network.architecture=5000-10")
    done = pipeline("check", *large)
    assert done.returncode == 1
    assert "population 'dense2': core.input_axons is 5,000, the limit 4,096, 904" in " ".join(done.stdout.split())
    assert "the architecture, untrained" in done.stdout
    done = pipeline("check", *large, "--set", "chip.name=loihi2", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["placement"]["cores"] == 3
    assert not (tmp_path / "none").exists()


def test_check_takes_the_integers_that_a_configuration_made(run: Path, without_torch: dict[str, str]) -> None:
    done = process("check", "--out", run, env=without_torch)
    assert done.returncode == 0, done.stderr
    assert "quantize/network.npz" in "".join(done.stdout.split())
    changed = pipeline("check", "--out", run, "--set", "network.learn_decay=true", "--set", "network.per_neuron=true")
    assert "the architecture, untrained" in changed.stdout


def test_another_chip_is_placed_on_anew_and_nothing_else(run: Path) -> None:
    done = pipeline("--out", run, "--set", "chip.name=loihi2")
    assert done.returncode == 0
    assert json.loads((run / "deploy/chip.json").read_text())["chip"] == "Loihi 2"
    assert "deploy: chip" in done.stdout
    assert "deploy: lava" not in done.stdout


def test_the_range_is_proven_of_every_population_and_checked_again(run: Path) -> None:
    bounds = certificate.load(run / "quantize" / "bounds.json")
    assert (bounds.word(), bounds.steps) == ("proven", None)
    proven = {"answer": "proven", "steps": None, "populations": {"dense1": "proven", "dense2": "proven"}}
    assert json.loads((run / "verdict.json").read_text())["range"] == proven
    assert "dense2: range proven, at most activation" in pipeline("quantize", "--out", run).stdout
    file = run / "quantize" / "bounds.json"
    file.write_text(file.read_text().replace('"spacing":[', '"spacing":[9', 1))
    assert "population 'dense1', neuron (0,): spikes may follow each other sooner" in refused("verify", "--out", run)


def test_a_difference_is_found_explained_and_ends_with_status_1(run: Path) -> None:
    """A recording made under `>=` instead of `>` stands in for a faulty backend; threshold 0 shows it."""
    network = integer_network.load(run / "quantize" / "network.npz")
    quiet = replace(network, populations=tuple(
        replace(p, threshold_mant=np.asarray(0), bias_mant=np.zeros_like(p.bias_mant), decay_v=np.asarray(0))
        for p in network.populations))  # fmt: skip
    integer_network.save(quiet, run / "quantize" / "network.npz")
    certificate.save(prove(quiet, seconds=0), run / "quantize" / "bounds.json")
    shutil.rmtree(run / "deploy")
    keep = ("--set", "deploy.backends=reference,engine")
    assert pipeline("deploy", "--out", run, *keep).returncode == 0
    held = held_out.load(run / "quantize" / "inputs.npz").first(5)
    wrong = reference.run(quiet, held.inputs, 2, rules=replace(LOIHI_LIF_V1, fires=np.greater_equal))
    recording.save(replace(wrong, backend="engine"), run / "deploy" / "recordings" / "engine.npz")
    done = pipeline("verify", "--out", run)
    said = " ".join(done.stdout.split())
    assert done.returncode == 1, done.stdout + done.stderr
    assert "DIFFERENT" in said
    assert "reference and engine differ" in said
    assert ">=" in said
    assert json.loads((run / "verdict.json").read_text())["comparisons"][0]["first_divergence"]["cause"]
    assert pipeline("verify", "reference", "engine", "--out", run).returncode == 1
    assert pipeline("verify", "reference", "reference", "--out", run).returncode == 0


@pytest.mark.parametrize("after", [2.5, 5.0])
def test_a_run_killed_at_some_moment_goes_on_to_the_same_result(finished: Path, tmp_path: Path, after: float) -> None:
    out = tmp_path / "run"
    arguments = [sys.executable, ROOT / "pipeline.py", "--out", out, *QUICK, *LITTLE_LAVA]
    killed = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(after)
    killed.kill()
    killed.wait()
    assert pipeline("--out", out, *QUICK, *LITTLE_LAVA).returncode == 0
    for name in ("train/weights.safetensors", "quantize/network.npz", "deploy/recordings/lava.npz"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


def test_ctrl_c_ends_in_one_sentence(tmp_path: Path) -> None:
    arguments = [sys.executable, ROOT / "pipeline.py", "--out", tmp_path / "run", "--set", "train.epochs=500"]
    running = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)
    while not (tmp_path / "run" / "train" / "state.safetensors").exists():
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "the same command goes on from there" in " ".join(said.split())
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--set", "data.dataset=digitz"), "did you mean 'digits'?"),
        (("--set", "network.architectur=10"), "did you mean 'architecture'?"),
        (("--set", "data.steps=0"), "T = 0 steps"),
        (("--set", "network.architecture=64-12"), "ends with 12 neurons, but 'digits' has 10 classes"),
        (("--set", "network.architecture=64-X0-10"), "at character 4"),
        (("--set", "network.beta=1.5"), "beta = 1.5"),
        (("--set", "deploy.lanes=-1"), "lanes is -1"),
        (("--set", "deploy.convolution=conf"), "did you mean 'Conv'?"),
        (("--set", "train.epochs=0"), "epochs = 0"),
        (("--set", "train.online=b"), "online = 'b'"),
        (("--set", "train.online=a", "--set", "network.architecture=8-BN-10"), "layer dense1 has a BatchNorm1d"),
        (("--set", "quantize.per_layer.dense7=4"), "'dense7' is no layer with weights; did you mean"),
        (("--lava-target", "loihi9"), "there is no target 'loihi9'"),
        (("--lava-target", "loihi2-hardware"), "closed extension"),
        (("--config", "nowhere.toml"), "nowhere.toml: cannot be read"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence_before_any_work(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert says in refused("--out", tmp_path / "run", *QUICK[:4], *arguments)
    assert not (tmp_path / "run").exists()


def test_wrong_input_leaves_the_configuration_of_a_run_alone(run: Path) -> None:
    before = (run / "config.toml").read_bytes()
    refused("deploy", "--out", run, "--set", "network.architecture=64-X0-10")
    assert (run / "config.toml").read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert f"cannot write {tmp_path}/file/run/config.toml" in refused("--out", tmp_path / "file" / "run")


def test_a_full_disk_loses_nothing_and_is_named(run: Path) -> None:
    """A limit on the size of files stands in for the full disk: the kernel refuses the write alike."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    before = (run / "quantize" / "network.npz").read_bytes()
    said = sentence(process("quantize", "--out", run, "--set", "data.steps=7", preexec_fn=limit))
    assert "cannot write" in said
    assert "Nothing was changed" in said
    assert (run / "quantize" / "network.npz").read_bytes() == before
    assert not list(run.rglob(".*.npz"))


def test_a_network_file_that_was_harmed_is_refused(run: Path) -> None:
    file = run / "quantize" / "network.npz"
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], b"foreign", b""):
        file.write_bytes(broken)
        assert "is no whole spikeproof-network file" in refused("deploy", "--out", run)
    with np.load(run / "quantize" / "inputs.npz") as stored:
        arrays = dict(stored)
    np.savez(file, **arrays)
    assert "this program reads spikeproof-network" in refused("deploy", "--out", run)


def test_weights_of_another_architecture_or_with_nan_are_refused(run: Path) -> None:
    said = refused("quantize", "--out", run, "--set", "network.architecture=20-10")
    assert "has shape [16, 64], the network needs [20, 64]" in said
    file = run / "train" / "weights.safetensors"
    weights = safetensors.numpy.load_file(file)
    next(iter(weights.values())).flat[0] = np.nan
    safetensors.numpy.save_file(weights, file)
    assert "NaN" in refused("quantize", "--out", run, "--set", "network.architecture=16-10")
    file.write_bytes(b"x" * 100)
    assert "cannot be read as a safetensors file" in refused("quantize", "--out", run)


def test_every_accuracy_is_that_of_the_weighted_output(tmp_path: Path) -> None:
    """Weights under which the last step alone answers show who would ignore them."""
    settings = ("--set", "train.epochs=6", "--set", "train.time_weights=true", "--set", "deploy.samples=40")
    assert pipeline("train", "--out", tmp_path, *QUICK, *settings).returncode == 0
    file = tmp_path / "train" / "weights.safetensors"
    weights = safetensors.numpy.load_file(file)
    assert weights["time_weights"].mean() == pytest.approx(1)
    assert np.ptp(weights["time_weights"]) > 0
    weights["time_weights"] = np.array([0, 0, 0, 0, 0, 6], np.float32)
    safetensors.numpy.save_file(weights, file)
    for stage in ("quantize", "deploy", "verify", "report"):
        assert pipeline(stage, "--out", tmp_path).returncode == 0
    verdict, fidelity, report = (
        json.loads((tmp_path / name).read_text()) for name in ("verdict.json", "quantize/fidelity.json", "report.json")
    )
    assert verdict["equal"] is True
    ran = recording.load(tmp_path / "deploy" / "recordings" / "lava.npz").spikes["dense2"]
    labels = held_out.load(tmp_path / "quantize" / "inputs.npz").labels
    right = int((ran[-1].argmax(-1) == labels[:40]).sum())
    assert right != int((ran.sum(axis=0).argmax(-1) == labels[:40]).sum())
    assert verdict["accuracy"]["integer"] == verdict["accuracy"]["lava"] == right / 40
    assert np.trace(report["confusion"]["counts"]) == right
    assert report["integers"]["time_weights"] == [0, 0, 0, 0, 0, 6 << 16]
    floats = recording.load(tmp_path / "quantize" / "float.npz").spikes["dense2"]
    answered = floats[-1].argmax(-1) == labels
    assert verdict["accuracy"]["float"] == answered[:40].mean()
    assert verdict["accuracy_of_all"]["float"] == answered.mean() == fidelity["accuracy"]["float"]
    assert verdict["samples"] == {"compared": 40, "held_out": len(labels)}
    assert "it has 7 steps, but the network weighs 6" in refused("quantize", "--out", tmp_path, "--set", "data.steps=7")


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("architecture", ["16-10", "4C3S2-10"])
def test_direct_input_as_bias_ends_equal(tmp_path: Path, architecture: str, alpha: float) -> None:
    keys = [
        "data.encoding=direct",
        "data.direct=bias",
        f"network.alpha={alpha}",
        f"network.architecture={architecture}",
    ]
    keys += ["data.steps=5", "train.epochs=5", "deploy.backends=reference,engine,lava-models,lava"]
    keys += ["deploy.samples=12", "deploy.states=3", "deploy.lanes=2"]
    done = pipeline("--out", tmp_path, *[part for key in keys for part in ("--set", key)])
    assert (done.returncode, "EQUAL" in done.stdout) == (0, True), done.stderr
    network = integer_network.load(tmp_path / "quantize" / "network.npz")
    inputs = held_out.load(tmp_path / "quantize" / "inputs.npz").inputs
    assert network.input_shape == inputs.shape[2:] == network.populations[0].shape
    assert recording.load(tmp_path / "deploy" / "recordings" / "lava.npz").spikes[network.populations[0].name].any()
    fidelity = json.loads((tmp_path / "quantize" / "fidelity.json").read_text())
    assert fidelity["agreement"] > 0.9


def test_input_that_cannot_be_a_bias_is_refused_before_training(tmp_path: Path) -> None:
    said = refused("--out", tmp_path, *QUICK, "--set", "data.direct=bias")
    assert "encoding 'rate' with direct = 'bias': only input that is the same at every step" in said
    direct = ("--set", "data.encoding=direct", "--set", "data.direct=bias")
    said = refused("--out", tmp_path, *QUICK, *direct, "--set", "network.architecture=R16-10")
    assert "is recurrent, and hears its own spikes beside the input; as a bias input needs one Linear" in said


def test_help_is_there_for_every_command() -> None:
    overview = pipeline("--help")
    assert overview.returncode == 0
    for command in ("run", "train", "quantize", "deploy", "verify", "report", "export", "sensitivity", "compare"):
        assert command in overview.stdout
        assert pipeline(command, "--help").returncode == 0
    assert pipeline("trian").returncode == 2


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("4C3-BN-MP2-DP0.1-[4C3-BN-4C3-tdBN]-R8-10", ["readout=current", "learn_decay=true", "per_neuron=true"]),
        ("conv-small", ["alpha=0.3"]),
    ],
)
def test_richer_networks_go_the_whole_way(tmp_path: Path, architecture: str, settings: list[str]) -> None:
    keys = [f"network.{setting}" for setting in (f"architecture={architecture}", *settings)]
    keys += ["data.steps=3", "train.epochs=1", "deploy.backends=reference,engine", "deploy.samples=12"]
    done = pipeline("--out", tmp_path, *[part for key in keys for part in ("--set", key)])
    assert (done.returncode, "EQUAL" in done.stdout) == (0, True), done.stderr
    assert (tmp_path / "report.json").is_file()


def test_networks_trained_aware_go_the_whole_way(tmp_path: Path) -> None:
    keys = ["network.architecture=4C3-BN-AP2-R12-10", "train.epochs=2", "train.aware_epochs=2", "data.steps=4"]
    keys += ["data.validation=0.2"]
    done = pipeline("--out", tmp_path, *[part for key in keys for part in ("--set", key)], *LITTLE_LAVA)
    assert (done.returncode, "EQUAL" in done.stdout) == (0, True), done.stderr
    lines = [json.loads(line) for line in (tmp_path / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("aware", False) for line in lines] == [False, False, True, True]
    assert (tmp_path / "report.json").is_file()


def test_what_cannot_be_trained_aware_is_refused_before_training(tmp_path: Path) -> None:
    aware = ("--set", "train.aware_epochs=2", *QUICK)
    direct = ("--set", "data.encoding=direct", "--set", "data.direct=bias")
    assert "takes the input as a bias, which aware" in refused("--out", tmp_path, *aware, *direct)
    assert "aware_epochs = 2 with online = 'a'" in refused("--out", tmp_path, *aware, "--set", "train.online=a")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(("online", "reset"), [("a", "hard"), ("o", "soft")])
def test_networks_trained_online_go_the_whole_way(tmp_path: Path, online: str, reset: str) -> None:
    keys = ["network.architecture=6C3-WS-AP2-16-WS-10", f"network.reset={reset}", f"train.online={online}"]
    keys += ["train.mse_share=0.05", "train.learning_rate=0.005", "train.epochs=2", "data.steps=4"]
    done = pipeline("--out", tmp_path, *[part for key in keys for part in ("--set", key)], *LITTLE_LAVA)
    assert (done.returncode, "EQUAL" in done.stdout) == (0, True), done.stderr


def test_the_network_is_exported_with_torch_and_without(run: Path, without_torch: dict[str, str]) -> None:
    names = {f"{kind}{form}.onnx" for kind in ("", "float_") for form in ("step", "scan")}
    assert pipeline("export", "--out", run).returncode == 0
    assert {path.name for path in (run / "deploy").glob("*.onnx")} == names
    network = integer_network.load(run / "quantize" / "network.npz")
    for form in ("step", "scan"):
        assert files.load(run / "deploy" / f"{form}.onnx").hash == network.hash
    written = {name: (run / "deploy" / name).stat().st_mtime_ns for name in names}
    assert "done before, unchanged" in pipeline("export", "--out", run).stdout
    assert {name: (run / "deploy" / name).stat().st_mtime_ns for name in names} == written
    assert "'nirr' is no format" in refused("export", "nirr", "--out", run)

    (run / "deploy" / "scan.onnx").unlink()
    done = process("export", "onnx", "--out", run, env=without_torch)
    assert done.returncode == 0, done.stderr
    assert files.load(run / "deploy" / "scan.onnx").hash == network.hash


def test_nir_is_exported_with_torch_and_without(run: Path, without_torch: dict[str, str]) -> None:
    done = pipeline("export", "nir", "nir-float", "--out", run)
    assert done.returncode == 0, done.stderr
    assert "only in its metadata: dt" in " ".join(done.stdout.split())
    network = integer_network.load(run / "quantize" / "network.npz")
    layers = foreign.read(run / "deploy" / "float.nir").layers
    assert [layer.name for layer in layers] == [population.name for population in network.populations]
    (run / "deploy" / "network.nir").unlink()
    done = process("export", "nir", "--out", run, env=without_torch)
    assert done.returncode == 0, done.stderr
    assert nir_files.load(run / "deploy" / "network.nir").hash == network.hash


def test_netx_is_written_for_what_it_holds_alone(run: Path, tmp_path: Path) -> None:
    assert "netx: " in refused("export", "netx", "--out", run)
    assert not (run / "deploy" / "network.net").exists()
    folder = tmp_path / "fits"
    lif = Population("a", (10,), 4095, 100, 300, 0)
    weight = 2 * np.random.default_rng(0).integers(-127, 128, (10, 64))
    network = IntegerNetwork((1, 8, 8), (lif,), (Connection(INPUT, "a", weight),), "a")
    integer_network.save(network, folder / "quantize" / "network.npz")
    done = pipeline("export", "netx", "--out", folder)
    assert done.returncode == 0, done.stderr
    assert "reset_offset=1" in done.stdout
    assert (folder / "deploy" / "network.net").is_file()


@pytest.mark.parametrize(("format", "file"), [("onnx", "step.onnx"), ("nir", "network.nir")])
def test_a_network_from_a_file_is_deployed_and_verified_without_torch(
    run: Path, tmp_path: Path, without_torch: dict[str, str], format: str, file: str
) -> None:
    assert pipeline("export", format, "--out", run).returncode == 0
    network, inputs = run / "deploy" / file, run / "quantize" / "inputs.npz"
    given = ("--network", network, "--inputs", inputs)
    out = tmp_path / "other"
    keys = ("--set", "deploy.backends=engine,onnx", "--set", "deploy.samples=7")
    done = process("deploy", "--out", out, *given, *keys, env=without_torch)
    assert done.returncode == 0, done.stderr
    done = process("verify", "--out", out, env=without_torch)
    assert (done.returncode, "EQUAL" in done.stdout) == (0, True), done.stderr
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["hashes"]["network"] == integer_network.load(run / "quantize" / "network.npz").hash
    assert verdict["comparisons"][0]["spikes_compared"] == 7 * 6 * 26
    assert verdict["accuracy"]["float"] is None
    assert "has a network of its own" in refused("deploy", "--out", run, *given)
    assert "--network and --inputs belong together" in refused("deploy", "--out", out, "--network", network)
    assert "there is no such file" in refused("deploy", "--out", out, "--network", "x.onnx", "--inputs", inputs)
    network.write_bytes(network.read_bytes()[:-1])
    assert f"is no whole {format.upper()} file" in refused("deploy", "--out", out, *given)


TRAINED_ELSEWHERE = """
import snntorch, torch
from torch import nn

class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.fc1, self.lif1 = nn.Linear(64, 16), snntorch.Leaky(0.9)
        self.fc2, self.lif2 = nn.Linear(16, {outputs}), snntorch.Leaky(0.8)
        self.fc2.weight.data.mul_(3)

    def forward(self, x):
        mem1, mem2, emitted = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for step in x:
            spk1, mem1 = self.lif1(self.fc1(step.flatten(1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            emitted.append(spk2)
        return torch.stack(emitted)

net, other = Net(), Net(seed=1)
"""
NUMBERS = itertools.count()
SHORT = ("--data", "digits", "--set", "data.steps=6")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a user's own module into the current folder, and returns its name, which Python imports once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(outputs: int = 10) -> str:
        name = f"trained_elsewhere_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(TRAINED_ELSEWHERE.format(outputs=outputs))
        return name

    return write


def test_a_module_trained_elsewhere_goes_the_whole_way(elsewhere: Callable[..., str], tmp_path: Path) -> None:
    name = elsewhere()
    command = [sys.executable, ROOT / "pipeline.py", "deploy", "--model", f"{name}:net", *SHORT, *LITTLE_LAVA]
    done = subprocess.run([*command, "--out", "run"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "EQUAL" in done.stdout
    assert f"deploy --model {name}:net --config run/config.toml --way converted --fine-tune 10" in done.stdout
    out = tmp_path / "run"
    exact, converted = json.loads((out / "ways.json").read_text())
    held = held_out.load(out / "quantize" / "inputs.npz")
    net = importlib.import_module(name).net
    with torch.no_grad():
        answered = net(torch.from_numpy(held.inputs).float()).sum(0).argmax(-1).numpy()
    share = (answered == held.labels).mean()
    assert (exact["way"], exact["your module"], exact["float"]) == ("exact", share, share)
    assert (exact["spikes that differ"], exact["neurons on Lava"]) == (0, "this project's")
    assert converted["spikes that differ"] > 0
    assert converted["neurons on Lava"] == "stock LIFReset"
    differences = json.loads((out / "differences.json").read_text())
    assert [(row["population"], row["ours"]) for row in differences] == [("fc1", "soft-late"), ("fc2", "soft-late")]
    written = json.loads((out / "report.json").read_text())
    assert (written["differences"], written["ways"]) == (differences, [exact, converted])
    assert "subtract, a step late" in (out / "report.html").read_text()
    weights = safetensors.numpy.load_file(out / "train" / "weights.safetensors")
    assert np.array_equal(weights["fc1.weight"], net.fc1.weight.detach().numpy())


def test_a_run_follows_what_a_model_is_and_not_its_name(elsewhere: Callable[..., str]) -> None:
    first, second = elsewhere(), elsewhere()
    deploy = ("deploy", "--out", "run", *SHORT, *NO_LAVA, "--model")
    assert pipeline(*deploy, f"{first}:net").returncode == 0
    weights = Path("run/train/weights.safetensors")
    before = weights.stat().st_mtime_ns
    assert pipeline(*deploy, f"{second}:net").returncode == 0
    assert weights.stat().st_mtime_ns == before
    assert pipeline(*deploy, f"{second}:other").returncode == 0
    assert weights.stat().st_mtime_ns != before


def test_a_network_from_a_nir_file_goes_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = build("12-10", (1, 8, 8), neuron=lambda: LIF(beta=0.5, reset="soft"), seed=2).eval()
    graph, _ = nir_floats.graph_of(fold(network), network.input_shape, 1)
    graph.metadata.clear()  # as a file from elsewhere
    nir_files.save(graph, tmp_path / "theirs.nir")
    command = ("deploy", "--model", "theirs.nir", "--out", "run", *SHORT, *NO_LAVA, "--set", "network.reset=soft")
    assert pipeline(*command).returncode == 0
    network_of_run = integer_network.load(Path("run/quantize/network.npz"))
    layers = calibrate(network, calibration_inputs(load("digits"), Encoding("rate", 6)), Precision())
    expected, _ = quantize(layers, (1, 8, 8), 1)
    for name in expected.order:
        assert np.array_equal(expected.into(name)[0].weight, network_of_run.into(name)[0].weight)
        assert network_of_run[name].reset == "soft"
    assert "reset" in {row["what"] for row in json.loads(Path("run/differences.json").read_text())}
    row, converted = json.loads(Path("run/ways.json").read_text())
    assert (row["way"], row["spikes that differ"], converted["way"]) == ("exact", 0, "converted")


def test_a_converted_model_is_trained_further_and_deployed_on_stock_neurons(elsewhere: Callable[..., str]) -> None:
    further = ("--way", "converted", "--fine-tune", "1")
    done = pipeline("deploy", "--model", f"{elsewhere()}:net", "--out", "run", *SHORT, *NO_LAVA, *further)
    assert done.returncode == 0, done.stderr
    rows = json.loads(Path("run/ways.json").read_text())
    assert [row["way"] for row in rows] == ["exact", "converted", "converted, trained further"]
    assert rows[2]["float"] > rows[1]["float"]
    fidelity = json.loads(Path("run/quantize/fidelity.json").read_text())
    assert rows[2]["integers"] == fidelity["accuracy"]["integer"]
    populations = integer_network.load(Path("run/quantize/network.npz")).populations
    assert [population.reset for population in populations] == ["hard", "hard"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "not_there_at_all:net"), "there is no module 'not_there_at_all'"),
        (("--model", "{name}:nett"), "has no 'nett'; did you mean 'net'?"),
        (("--model", "{name}:nn"), "is a module; it must be a torch module"),
        (("--model", "{name}:net", "--way", "stock"), "network.way: 'stock' is no way"),
        (("--model", "{name}:net", "--set", "data.encoding=direct", "--set", "data.direct=bias"), "set data.direct"),
        (("--way", "converted"), "--fine-tune belong to --model"),
        (("--model", "{name}:net", "--network", "a.npz", "--inputs", "b.npz"), "give one of them"),
    ],
)
def test_a_model_that_cannot_be_taken_is_refused_in_one_sentence(
    elsewhere: Callable[..., str], arguments: tuple[str, ...], says: str
) -> None:
    name = elsewhere()
    assert says in refused("deploy", "--out", "run", *(argument.format(name=name) for argument in arguments))
    assert not Path("run").exists()


def test_a_model_that_does_not_fit_the_data_is_refused(elsewhere: Callable[..., str]) -> None:
    said = refused("deploy", "--out", "run", "--model", f"{elsewhere(outputs=12)}:net", *SHORT)
    assert "ends with 12 neurons, but 'digits' has 10 classes" in said
    flat = elsewhere()
    Path(f"{flat}.py").write_text(TRAINED_ELSEWHERE.format(outputs=10).replace("step.flatten(1)", "step"))
    said = refused("deploy", "--out", "run", "--model", f"{flat}:net", *SHORT)
    assert f"network.model = '{flat}:net' on digits, input [T, B, 1, 8, 8]: Net was shown all 6 steps at once" in said


def test_only_a_model_has_ways(run: Path) -> None:
    assert "there is no network.model" in refused("ways", "--out", run)
