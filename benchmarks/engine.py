"""Samples per second on 784-256-10, T = 20: the engine, its bare matrix products, onnxruntime, and Lava three ways.

    uv run python -m benchmarks.engine          prints the table, about a minute

Rounds are interleaved and each figure is the median of its rounds; ratios are taken within one run. Matrix products run
on one thread. Lava "per sample" starts a runtime for every sample, as its tutorials do (its import not counted);
"streamed" runs all samples through one runtime, "lanes" 64 of them side by side, both with the guarded process's own
start and every population recorded. All must record the engine's spikes, or this fails.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from deploy.lava import backend
from deploy.onnx import backend as onnx_backend
from quantize import engine
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population, save

STEPS, BATCH, ROUNDS = 20, 256, 9
LAVA_ROUNDS, LAVA_SAMPLES = 3, 4


def network() -> IntegerNetwork:
    """784-256-10 with random even weights whose neurons fire at some percent."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return (2 * np.rint(rng.normal(0, 20, shape))).clip(-256, 254).astype(np.int64)

    def lif(name: str, size: int) -> Population:
        return Population(name, (size,), decay_u=4095, decay_v=410, threshold_mant=1200, bias_mant=0)

    connections = (Connection(INPUT, "hidden", weights(256, 784)), Connection("hidden", "output", weights(10, 256)))
    return IntegerNetwork((784,), (lif("hidden", 256), lif("output", 10)), connections, "output")


def products(chip: IntegerNetwork, inputs: np.ndarray) -> Callable[[], None]:
    """The floor: nothing but the float32 matrix products of the same shapes, inputs already converted."""
    left = [inputs.reshape(-1, 784).astype(np.float32), np.zeros((STEPS * BATCH, 256), np.float32)]
    right = [np.ascontiguousarray(c.weight.T, np.float32) for c in chip.connections]

    def multiply() -> None:
        for a, b in zip(left, right, strict=True):
            a @ b

    return multiply


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def lava_per_sample(chip: IntegerNetwork, inputs: np.ndarray, expected: np.ndarray, folder: Path) -> float:
    """Seconds that Lava takes for inputs [T, B, 784] with a runtime of its own for every sample."""
    save(chip, folder / "network.npz")
    np.save(folder / "inputs.npy", inputs)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.lava_per_sample", "network.npz", "inputs.npy"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert np.array_equal(np.load(folder / "inputs.out.npy"), expected)
    return float(done.stdout.split()[-1])


def main() -> None:
    chip = network()
    inputs = (np.random.default_rng(1).random((STEPS, BATCH, 784)) < 0.1).astype(np.uint8)
    truth = engine.run(chip, inputs)
    assert onnx_backend.run(chip, inputs).hash == truth.hash
    few = slice(0, LAVA_SAMPLES)

    def stream(lanes: int) -> float:
        began = time.perf_counter()
        ran = backend.run(chip, inputs, options=backend.LavaOptions(lanes=lanes))
        took = time.perf_counter() - began
        assert all(np.array_equal(ran.spikes[name], truth.spikes[name]) for name in truth.spikes)
        return took

    with tempfile.TemporaryDirectory() as name, threadpool_limits(1):
        multiply, per_sample = products(chip, inputs), "Lava, a runtime per sample"
        ways: dict[str, tuple[int, int, Callable[[], float]]] = {
            "matrix products alone": (ROUNDS, BATCH, lambda: seconds(multiply)),
            "engine": (ROUNDS, BATCH, lambda: seconds(lambda: engine.run(chip, inputs))),
            "onnx": (ROUNDS, BATCH, lambda: seconds(lambda: onnx_backend.run(chip, inputs))),
            per_sample: (
                LAVA_ROUNDS,
                LAVA_SAMPLES,
                lambda: lava_per_sample(chip, inputs[:, few], truth.spikes["output"][:, few], Path(name)),
            ),
            "Lava, streamed": (LAVA_ROUNDS, BATCH, lambda: stream(1)),
            "Lava, 64 lanes": (LAVA_ROUNDS, BATCH, lambda: stream(64)),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(ROUNDS):
            for way, (rounds, _, work) in ways.items():
                if turn < rounds:
                    times[way].append(work())
    rates = {way: samples / statistics.median(times[way]) for way, (_, samples, _) in ways.items()}
    table = Table("784-256-10, T = 20, one thread", "samples/s", "against a runtime per sample")
    for way, rate in rates.items():
        table.add_row(way, f"{rate:,.1f}", f"{rate / rates[per_sample]:,.1f} x")
    Console().print(table)


if __name__ == "__main__":
    main()
