"""How fast the engine is, beside its bare matrix products, onnxruntime, Lava and other simulators of such networks.

    uv run python -m benchmarks.engine [RUN ...] [--peer NAME=PYTHON ...]      a few minutes, on one thread

writes docs/results/speed/engine.md and, for benchmarks.compare, engine.json. A RUN is a folder of pipeline.py, whose
network runs on its own held-out samples. A peer is one of benchmarks/peers, which says what its PYTHON needs. Engine
and onnxruntime must emit the same, or this fails.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from threadpoolctl import threadpool_limits

from base.files import write_text
from benchmarks import timing
from deploy.onnx import backend as onnx_backend
from deploy.onnx import integer
from deploy.onnx.graph import scan_model
from quantize import engine, held_out
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population, load, save

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/results/speed/engine.md"
STEPS, SAMPLES, ROUNDS = 20, 256, 9
BATCHES = 6  # of a work's turn: one alone would mostly measure the caches that the work before it left
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.5)
FEW = 16  # samples that the slow simulators run
BLOCK = 1 << 24  # floats of the left side of one matrix product
ENGINE, RUN, FLOOR, ONNX, LAVA = (
    "engine",
    "engine, with the check and the hash of its input",
    "its matrix products alone, float32",
    "onnxruntime",
    "Lava, a runtime for every sample",
)


def network() -> IntegerNetwork:
    """784-256-10 with random even weights, whose neurons fire in some percent of the steps."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return (2 * np.rint(rng.normal(0, 20, shape))).clip(-256, 254).astype(np.int64)

    def lif(name: str, size: int, threshold: int) -> Population:
        return Population(name, (size,), decay_u=4095, decay_v=410, threshold_mant=threshold, bias_mant=0)

    connections = (Connection(INPUT, "hidden", weights(256, 784)), Connection("hidden", "output", weights(10, 256)))
    return IntegerNetwork((784,), (lif("hidden", 256, 800), lif("output", 10, 200)), connections, "output")


def spikes(density: float, samples: int = SAMPLES) -> np.ndarray:
    return (np.random.default_rng(1).random((STEPS, samples, 784)) < density).astype(np.uint8)


def products(chip: IntegerNetwork, inputs: np.ndarray) -> Callable[[], None]:
    """Nothing but the float32 matrix products of the network's sums, of windows where it convolves; of input that is
    the same at every step, once."""
    pairs = []
    for connection in chip.connections:
        still = connection.source == INPUT and (inputs == inputs[:1]).all()
        outputs = connection.output_shape(chip.shape_of(connection.source))
        rows = inputs.shape[1] * (1 if still else len(inputs)) * int(np.prod(outputs[1:]))
        per_group, width = len(connection.weight) // connection.groups, connection.weight[0].size
        for _ in range(connection.groups):
            right = np.ones((width, per_group), np.float32)
            for first in range(0, rows, BLOCK // width):
                pairs.append((min(rows - first, BLOCK // width), right))
    left = np.ones(BLOCK, np.float32)  # zeros would all lie on one page

    def multiply() -> None:
        for rows, right in pairs:
            left[: rows * len(right)].reshape(rows, -1) @ right

    return multiply


def onnx(chip: IntegerNetwork, inputs: np.ndarray) -> Callable[[], None]:
    """The scan graph in a session that is ready; before that, that it emits what the engine does."""
    step = integer.build(chip)
    execute = onnx_backend.executor(scan_model(step, integer.about(chip, step)))
    assert onnx_backend.run(chip, inputs).hash == engine.run(chip, inputs).hash
    return lambda: onnx_backend.run_scan(execute, step, inputs)


def ways(chip: IntegerNetwork, inputs: np.ndarray) -> dict[str, Callable[[], object]]:
    works = {
        ENGINE: lambda: engine.simulate(chip, inputs),
        RUN: lambda: engine.run(chip, inputs),
        FLOOR: products(chip, inputs),
        ONNX: onnx(chip, inputs),
    }
    return {way: partial(repeated, work) for way, work in works.items()}


def repeated(work: Callable[[], object]) -> None:
    for _ in range(BATCHES):
        work()


def elsewhere(command: list[str], chip: IntegerNetwork, inputs: np.ndarray) -> float:
    """Seconds that a program of another process says it took; NETWORK and INPUTS are in the folder it is given."""
    with tempfile.TemporaryDirectory() as folder:
        save(chip, Path(folder, "network.npz"))
        np.save(Path(folder, "inputs.npy"), inputs)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, folder], env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return float(done.stdout.split()[-1])


def measured(title: str, chip: IntegerNetwork, inputs: np.ndarray, ratios: dict[str, timing.Ratio]) -> list[str]:
    """Rows of the page for one network; its ratios are added."""
    times = timing.interleaved(ROUNDS, ways(chip, inputs), time.process_time)
    for other in (FLOOR, ONNX):
        ratios[f"{title}: engine / {other}"] = timing.ratio(times[ENGINE], times[other])
    rates = {way: BATCHES * inputs.shape[1] / median(found) for way, found in times.items()}
    active = ", ".join(f"{name} {share:.0%}" for name, share in densities(chip, inputs).items())
    return [
        f"| {title} | {active} | {len(inputs)} | {rates[ENGINE]:,.0f} | {rates[ENGINE] * len(inputs):,.0f} "
        f"| {rates[RUN]:,.0f} | {rates[FLOOR]:,.0f} | {rates[ONNX]:,.0f} "
        f"| {rates[ENGINE] / rates[FLOOR]:.2f} | {rates[ENGINE] / rates[ONNX]:.1f} |"
    ]


def densities(chip: IntegerNetwork, inputs: np.ndarray) -> dict[str, float]:
    """Share of neuron-steps in which what connections read is not 0."""
    emitted = {INPUT: inputs} | engine.run(chip, inputs).spikes
    return {name: float((emitted[name] != 0).mean()) for name in {c.source: 0 for c in chip.connections}}


def main() -> None:
    parser = ArgumentParser(description=__doc__, usage="python -m benchmarks.engine [RUN ...] [--peer NAME=PYTHON ...]")
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--peer", action="append", default=[])
    chosen = parser.parse_args()
    peers = dict(peer.split("=", 1) for peer in chosen.peer)
    chip, ratios = network(), dict[str, timing.Ratio]()
    with threadpool_limits(1):
        rows = [
            row
            for density in DENSITIES
            for row in measured(f"784-256-10, {density:.0%}", chip, spikes(density), ratios)
        ]
        for run in chosen.runs:
            shown = np.ascontiguousarray(held_out.load(run / "quantize/inputs.npz").inputs[:, :SAMPLES])
            rows += measured(run.name, load(run / "quantize/network.npz"), shown, ratios)
        others = beside(chip, peers, ratios)
    given = [word for name in peers for word in ("--peer", f"{name}=PYTHON")]
    command = shlex.join(["python", "-m", "benchmarks.engine", *map(str, chosen.runs), *given])
    timing.write(PAGE.with_suffix(".json"), command, ratios)
    write_text(PAGE, page(command, rows, others))


def beside(chip: IntegerNetwork, peers: Mapping[str, str], ratios: dict[str, timing.Ratio]) -> list[str]:
    """Rows of the page for simulators of other processes, on 784-256-10 at a tenth of all input neurons."""
    batch, few = spikes(0.1), spikes(0.1, FEW)
    programs = {LAVA: ([sys.executable, "-W", "ignore", "-m", "benchmarks.lava_per_sample"], few)}
    for name, python in peers.items():
        program = [python, "-W", "ignore", str(ROOT / f"benchmarks/peers/run_{name}.py")]
        programs[name] = (program, batch if name == "slayer" else few)
    found = {}
    for _ in range(3):
        for name, (program, shown) in programs.items():
            own = timing.interleaved(3, {ENGINE: partial(repeated, lambda: engine.simulate(chip, batch))})[ENGINE]
            took = elsewhere(program, chip, shown) / shown.shape[1]
            found.setdefault(name, []).append((median(own) / BATCHES / SAMPLES, took))
    rows = []
    for name, pairs in found.items():
        own, theirs = zip(*pairs, strict=True)
        ratios[f"784-256-10, 10%: {name} / engine"] = timing.ratio(theirs, own, lower_is_better=False)
        rows.append(f"| {name} | {1 / median(theirs):,.1f} | {median(theirs) / median(own):,.0f} |")
    return rows


def page(command: str, rows: list[str], others: list[str]) -> str:
    lines = "\n".join
    return f"""# The engine's speed

    OMP_NUM_THREADS=1 uv run {command}

wrote this page: {SAMPLES} samples at a time on one thread, medians of {ROUNDS} interleaved rounds of {BATCHES} such
batches, in processor time, while other work shared the machine. The second column has the share of neuron-steps in
which a source sent anything. Engine and onnxruntime are ready to run, weights laid out and session made; both record
every spike, and the same ones.
`engine.run` also checks its input and names it by SHA-256. The products are those of the same shapes in float32 and
nothing else: of windows where there are convolutions, once where the input is the same at every step.

| network | sources active | T | engine, samples/s | sample-steps/s | `engine.run` | products alone | onnxruntime \
| engine : products | engine : onnxruntime |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|
{lines(rows)}

Of a dense connection the weights of the sources that spiked are added up where those are few; where they are more, a
matrix product of bytes is cheaper, onnxruntime's own, which does not care how many. Convolutions always add.

## Beside other simulators

784-256-10 at 10%, T = {STEPS}, wall time. Lava as its tutorials use it, a runtime made and stopped for every sample;
imports are not counted. slayer, in inference, runs the whole batch at once; nengo-loihi's emulator and brian2_loihi run
one sample after the other, and their spikes are not compared. They are made for other ends as well: slayer trains, the
two emulators learn on-line and build networks from a higher level.

| simulator | samples/s | the engine is so many times as fast |
|---|---:|---:|
{lines(others)}
"""


if __name__ == "__main__":
    main()
