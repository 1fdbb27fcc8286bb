"""The backend `lava`: the network in Lava's full simulator, inside a guarded worker process. Imports no Lava itself."""

from __future__ import annotations

import functools
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from base.errors import UserError, nearest
from deploy.lava import graph, session
from deploy.lava.job import collect, prepare
from quantize.integer_network import IntegerNetwork, save
from quantize.recording import Recording

LAVA_VERSION = "0.10.0"
SIMULATORS = ("loihi1-sim", "loihi2-sim")
HARDWARE = ("loihi1-hardware", "loihi2-hardware")
_PACKAGES = ("base", "quantize", "deploy")
_LOG_TAIL = 4000  # characters
_PROBE = """
import json
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in ("lava-nc", "lava-loihi", "numpy", "scipy"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LavaOptions:
    """target: one of SIMULATORS or HARDWARE. lanes: samples run side by side, 0 for `graph.chosen_lanes`. deadline:
    seconds for the whole run.

    python: the interpreter that has Lava, empty for this one. convolution: the stock process, "Sparse" or "Conv".
    """

    target: str = "loihi2-sim"
    lanes: int = 0
    deadline: float = 600.0
    python: str = ""
    convolution: str = "Sparse"

    def __post_init__(self) -> None:
        if self.target not in SIMULATORS + HARDWARE:
            raise UserError(f"lava: there is no target '{self.target}'; {nearest(self.target, SIMULATORS + HARDWARE)}")
        if self.lanes < 0:
            raise UserError(f"lava: lanes is {self.lanes}; it is a number of samples, or 0 to have it chosen.")
        if self.convolution not in graph.CONVOLUTIONS:
            raise UserError(
                f"lava: there is no convolution '{self.convolution}'; {nearest(self.convolution, graph.CONVOLUTIONS)}"
            )
        if self.deadline <= 0:
            raise UserError(f"lava: the deadline is {self.deadline} seconds; it must be above 0.")


def run(
    network: IntegerNetwork,
    inputs: np.ndarray,
    states: int = 0,
    options: LavaOptions = LavaOptions(),
    progress: Progress | None = None,
) -> Recording:
    """Run inputs [T, B, *input_shape]; u and v of the first `states` samples are recorded too.

    `progress` is called with the Lava steps done and their total, about twice a second.
    Raises UserError for inputs that do not fit, networks that Lava cannot run as the contract says, targets and
    interpreters that cannot be used, a deadline that passed, and, with the end of Lava's log, where Lava failed.
    """
    inputs = network.check_inputs(inputs)
    steps, samples = inputs.shape[:2]
    lanes = options.lanes or graph.chosen_lanes(network, steps, samples)
    schedule = graph.Schedule(steps, samples, min(states, samples), lanes)
    graph.check(network, schedule, options.convolution)
    check_interpreter(options)
    with tempfile.TemporaryDirectory(prefix="spikeproof-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        prepare(folder, network, inputs, schedule)
        save(network, folder / "network.npz")
        job = {"schedule": asdict(schedule), "target": options.target, "convolution": options.convolution}
        (folder / "job.json").write_text(json.dumps(job))
        _work(folder, options, progress)
        return collect(folder, network, inputs, schedule, "lava")


def _work(folder: Path, options: LavaOptions, progress: Progress | None) -> None:
    deadline = time.monotonic() + options.deadline
    reached = "while it started"
    with open(folder / "log", "wb") as log, _worker(folder, options.python or sys.executable, log.fileno()) as worker:
        for line in _lines(worker, deadline):
            match line.split():
                case ["progress", done, total]:
                    reached = f"at step {done} of {total}"
                    if progress:
                        progress(int(done), int(total))
                case ["finished"]:
                    return
        if time.monotonic() >= deadline:
            raise UserError(
                f"lava: the deadline of {options.deadline:g} seconds passed {reached}; "
                "run fewer samples, use more lanes or raise the deadline."
            )
    tail = (folder / "log").read_text(errors="replace")[-_LOG_TAIL:]
    raise UserError(f"lava: the simulator failed {reached}; the end of its log says why:\n{tail}")


@contextmanager
def _worker(folder: Path, python: str, log: int) -> Iterator[subprocess.Popen[bytes]]:
    """The worker in a session of its own; when the block is left, however it is left, nothing of it remains.

    Should this process be killed, the worker sees its standard input close and ends by itself.
    """
    root = Path(__file__).resolve().parents[2]
    for package in _PACKAGES:
        # Another interpreter must see these packages and nothing else of ours.
        (folder / package).symlink_to(root / package)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    # BLAS threads of many Lava processes would fight for the same cores.
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [python, "-m", "deploy.lava.worker", str(folder)],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        session.end(process.pid)
        process.communicate()


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[str]:
    """Lines of the worker's output until it closes or the deadline passes."""
    assert process.stdout is not None
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                return
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)


def check_interpreter(options: LavaOptions) -> None:
    """Raises UserError for a target or an interpreter that a run with these options could not use."""
    python = options.python or sys.executable
    found = _versions(python)
    usable = " and ".join(SIMULATORS)
    if options.target in HARDWARE:
        if "lava-loihi" in found:
            raise UserError(
                f"lava: target '{options.target}': lava-loihi is installed in {python}, but this project has never run "
                f"on a chip and does not pretend to; use {usable}."
            )
        raise UserError(
            f"lava: target '{options.target}' needs Intel's closed extension lava-loihi, which is not installed in "
            f"{python}; {usable} work without it."
        )
    if found.get("lava-nc") != LAVA_VERSION:
        has = f"lava-nc {found['lava-nc']}" if "lava-nc" in found else "no lava-nc"
        raise UserError(f"lava: {python} has {has}; install lava-nc=={LAVA_VERSION} there or choose another python.")
    for package in ("numpy", "scipy"):
        if package not in found:
            raise UserError(f"lava: {python} has no {package}; install it there or choose another python.")


@functools.lru_cache
def _versions(python: str) -> dict[str, str]:
    """Versions of the packages that a run needs, as installed for that interpreter."""
    try:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, timeout=60, check=True)
        return json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise UserError(f"lava: {python} does not run as a Python interpreter ({error}); choose another.") from error
