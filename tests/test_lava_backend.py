"""The full Lava runtime in its guarded worker: equal to the reference, and gone without a trace however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from strategies import networks
from test_lava_models import DENSE, assert_equal, biased, chain, linked, mantissas, turns_in_lava

from base.errors import UserError
from deploy.lava import backend, models
from deploy.lava.backend import LavaOptions
from quantize import reference
from quantize.integer_network import INPUT, Connection, IntegerNetwork

ROOT = Path(__file__).resolve().parents[1]
MARK = "SPIKEPROOF_TEST_MARK"


def small() -> tuple[IntegerNetwork, np.ndarray]:
    network = chain(DENSE, Connection("a", "b", np.full((3, 2), 40)), bias_mant=5, bias_exp=6)
    return network, np.random.default_rng(0).integers(0, 2, (6, 5, 4)).astype(np.uint8)


@pytest.fixture
def wrapped(tmp_path: Path) -> Callable[[str], str]:
    """An interpreter that runs a patch before the worker."""

    def write(patch: str) -> str:
        script = tmp_path / "python"
        script.write_text(
            f"#!{sys.executable}\n"
            "import os, runpy, sys, time\n"
            f"if sys.argv[1] != '-m':\n    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
            "sys.path.insert(0, os.getcwd())\n"
            "sys.argv = sys.argv[2:]\n"
            f"{patch}\n"
            "runpy.run_module('deploy.lava.worker', run_name='__main__', alter_sys=True)\n"
        )
        script.chmod(0o755)
        return str(script)

    return write


def at_third_step(action: str) -> str:
    return (
        "from deploy.lava.processes.files import PyPlayerModel\n"
        "def run_spk(self, original=PyPlayerModel.run_spk):\n"
        f"    if self.time_step == 3:\n        {action}\n"
        "    original(self)\n"
        "PyPlayerModel.run_spk = run_spk\n"
    )


class Traces:
    """What the processes that carry one mark in their environment are and map."""

    def __init__(self) -> None:
        self.mark = str(uuid.uuid4())
        self.segments: set[str] = set()

    def processes(self) -> list[int]:
        found = []
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and self.mark.encode() in Path("/proc", entry, "environ").read_bytes():
                    found.append(int(entry))
            except OSError:
                continue
        return found

    def look(self, *_: int) -> None:
        for pid in self.processes():
            maps = Path("/proc", str(pid), "maps").read_text().split()
            self.segments |= {word for word in maps if word.startswith("/dev/shm/psm_")}

    def assert_gone(self) -> None:
        limit = time.monotonic() + 10
        while self.processes() and time.monotonic() < limit:
            time.sleep(0.05)
        assert not self.processes()
        assert self.segments, "the run was looked at too early"
        assert not [segment for segment in self.segments if Path(segment).exists()]


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Traces:
    made = Traces()
    monkeypatch.setenv(MARK, made.mark)
    return made


@pytest.mark.smoke
def test_the_simulator_equals_the_reference() -> None:
    network, inputs = small()
    expected = reference.run(network, inputs, 2)
    assert expected.spikes["b"].any()
    seen: list[tuple[int, int]] = []
    got = backend.run(network, inputs, 2, progress=lambda done, total: seen.append((done, total)))
    assert_equal(expected, got)
    assert_equal(models.run(network, inputs, 2), got)
    assert got.backend == "lava"
    assert seen[0] == (1, 32)
    assert seen[-1] == (32, 32)
    assert seen == sorted(set(seen))


@pytest.mark.slow
@given(networks(), st.sampled_from([1, 3]), st.sampled_from(["Sparse", "Conv"]), st.sampled_from(backend.SIMULATORS))
@settings(
    max_examples=20,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_random_networks_equal_reference_and_models(
    drawn: tuple[IntegerNetwork, np.ndarray], lanes: int, convolution: str, target: str
) -> None:
    network, inputs = drawn
    got = backend.run(network, inputs, 2, LavaOptions(target, lanes, convolution=convolution))
    assert_equal(reference.run(network, inputs, 2), got)
    assert_equal(models.run(network, inputs, 2, convolution), got)


@pytest.mark.slow
@given(networks(cycles=True, readouts=True), st.sampled_from([1, 3]), st.sampled_from(["Sparse", "Conv"]))
@settings(
    max_examples=15,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_random_recurrent_networks_equal_reference_and_models(
    drawn: tuple[IntegerNetwork, np.ndarray], lanes: int, convolution: str
) -> None:
    network, inputs = drawn
    assume(turns_in_lava(network) and any(connection.delay for connection in network.connections))
    got = backend.run(network, inputs, 2, LavaOptions(lanes=lanes, convolution=convolution))
    assert_equal(reference.run(network, inputs, 2), got)
    assert_equal(models.run(network, inputs, 2, convolution), got)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 3])
def test_the_simulator_runs_cycles_through_several_populations(lanes: int) -> None:
    network = linked(
        (INPUT, "a", 0), ("a", "a", 1), ("a", "b", 0), ("b", "a", 2), ("b", "c", 0), ("c", "a", 4), (INPUT, "c", 0)
    )
    inputs = np.random.default_rng(0).integers(0, 2, (5, 7, 4)).astype(np.uint8)
    expected = reference.run(network, inputs, 4)
    assert expected.spikes["c"].any()
    assert_equal(expected, backend.run(network, inputs, 4, LavaOptions(lanes=lanes)))


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_streamed_samples_do_not_touch_each_other(steps: int, lanes: int) -> None:
    network, _ = small()
    inputs = np.random.default_rng(steps).integers(0, 2, (steps, 7, 4)).astype(np.uint8)
    assert_equal(reference.run(network, inputs, 4), backend.run(network, inputs, 4, LavaOptions(lanes=lanes)))


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("changed", [{}, {"reset": "soft", "bias_exp": 2}])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_simulator_loads_every_samples_bias_in_time(steps: int, changed: dict, lanes: int) -> None:
    network, inputs = biased(("a", "a", 1), ("a", "b", 0), **changed), mantissas(steps, 7)
    expected = reference.run(network, inputs, 4)
    assert steps == 1 or expected.spikes["a"].any()
    assert_equal(expected, backend.run(network, inputs, 4, LavaOptions(lanes=lanes)))


def test_the_worker_never_imports_torch(wrapped: Callable[[str], str]) -> None:
    network, inputs = small()
    forbidden = wrapped("sys.modules['torch'] = None")
    assert_equal(reference.run(network, inputs), backend.run(network, inputs, options=LavaOptions(python=forbidden)))


def test_an_exception_in_a_model_ends_the_run_at_once_with_its_traceback(
    wrapped: Callable[[str], str], traces: Traces
) -> None:
    network, inputs = small()
    failing = wrapped(at_third_step("raise ValueError('out of spikes')"))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"(?s)at step 1 of 32.*run_spk.*ValueError: out of spikes"):
        backend.run(network, inputs, options=LavaOptions(python=failing), progress=traces.look)
    assert time.monotonic() - started < 60
    traces.assert_gone()


def test_a_process_that_dies_ends_the_run(wrapped: Callable[[str], str], traces: Traces) -> None:
    network, inputs = small()
    dying = wrapped(at_third_step("os._exit(7)").replace("def run_spk", "import os\ndef run_spk"))
    with pytest.raises(UserError, match="ended with exit code 7"):
        backend.run(network, inputs, options=LavaOptions(python=dying), progress=traces.look)
    traces.assert_gone()


def test_the_deadline_ends_the_run(wrapped: Callable[[str], str], traces: Traces, tmp_path: Path) -> None:
    network, inputs = small()
    hanging = wrapped(at_third_step("time.sleep(1000)").replace("def run_spk", "import time\ndef run_spk"))
    with pytest.raises(UserError, match="deadline of 12 seconds passed at step 1 of 32"):
        backend.run(network, inputs, options=LavaOptions(python=hanging, deadline=12), progress=traces.look)
    traces.assert_gone()


def test_an_error_of_the_caller_ends_the_run(traces: Traces) -> None:
    network, inputs = small()

    def interrupt(*steps: int) -> None:
        traces.look()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.run(network, inputs, progress=interrupt)
    traces.assert_gone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_killed_parent(
    number: int, wrapped: Callable[[str], str], traces: Traces, tmp_path: Path
) -> None:
    hanging = wrapped(at_third_step("time.sleep(1000)").replace("def run_spk", "import time\ndef run_spk"))
    code = f"""
from test_lava_backend import *
network, inputs = small()
backend.run(network, inputs, options=LavaOptions(python={hanging!r}), progress=lambda *_: print("runs", flush=True))
"""
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(jobs)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"runs\n"
    traces.look()
    parent.send_signal(number)
    parent.communicate(timeout=30)
    traces.assert_gone()
    assert not list(jobs.iterdir())


@pytest.mark.smoke
@pytest.mark.parametrize("target", backend.HARDWARE)
def test_hardware_is_refused_in_one_sentence(target: str) -> None:
    network, inputs = small()
    with pytest.raises(UserError, match=r"closed extension lava-loihi, which is not installed in .*loihi1-sim and"):
        backend.run(network, inputs, options=LavaOptions(target))


@pytest.mark.parametrize(
    ("script", "target", "words"),
    [
        (None, "loihi2-sim", "does not run as a Python"),
        ("exit 3", "loihi2-sim", "does not run as a Python"),
        ("echo '{}'", "loihi2-sim", "has no lava-nc; install lava-nc==0.10.0"),
        ("""echo '{"lava-nc": "0.9.0"}'""", "loihi2-sim", "has lava-nc 0.9.0; install lava-nc==0.10.0"),
        ("""echo '{"lava-nc": "0.10.0"}'""", "loihi2-sim", "has no numpy"),
        ("""echo '{"lava-nc": "0.10.0", "lava-loihi": "0.7.0"}'""", "loihi2-hardware", "never run on a chip"),
    ],
)
def test_interpreters_that_cannot_run_lava_are_refused(
    script: str | None, target: str, words: str, tmp_path: Path
) -> None:
    network, inputs = small()
    python = tmp_path / "python"
    if script:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    with pytest.raises(UserError, match=words):
        backend.run(network, inputs, options=LavaOptions(target, python=str(python)))


@pytest.mark.parametrize("wrong", [{"target": "loihi3"}, {"lanes": -1}, {"deadline": 0.0}])
def test_options_that_mean_nothing_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match=str(next(iter(wrong.values())))):
        LavaOptions(**wrong)


def test_inputs_that_do_not_fit_are_refused() -> None:
    network, inputs = small()
    with pytest.raises(UserError, match="input"):
        backend.run(network, inputs[..., :3])


def test_the_parent_imports_no_lava() -> None:
    code = (
        "import deploy.lava.backend, sys; assert not [m for m in sys.modules if m.split('.')[0] in ('lava', 'torch')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
