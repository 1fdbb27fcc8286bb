"""Samples per second on 784-256-10, T = 20: the engine, its bare matrix products, and Lava three ways.

    uv run python -m benchmarks.engine          prints the table, about a minute

Rounds are interleaved and each figure is the median of its rounds; ratios are taken within one run. Matrix products run
on one thread. Lava "per sample" starts a runtime for every sample, as its tutorials do; "streamed" runs all samples
through one runtime; "lanes" carries 64 samples side by side. All must record the engine's spikes, or this fails.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from deploy.lava import backend
from quantize import engine
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population

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


def main() -> None:
    chip = network()
    inputs = (np.random.default_rng(1).random((STEPS, BATCH, 784)) < 0.1).astype(np.uint8)
    truth = engine.run(chip, inputs)

    def agrees(samples: slice, lanes: int) -> None:
        ran = backend.run(chip, inputs[:, samples], options=backend.LavaOptions(lanes=lanes))
        assert all(np.array_equal(ran.spikes[name], truth.spikes[name][:, samples]) for name in truth.spikes)

    def one_by_one() -> None:
        for sample in range(LAVA_SAMPLES):
            agrees(slice(sample, sample + 1), 1)

    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "matrix products alone": (BATCH, products(chip, inputs)),
        "engine": (BATCH, lambda: engine.run(chip, inputs)),
        "Lava, a runtime per sample": (LAVA_SAMPLES, one_by_one),
        "Lava, streamed": (BATCH, lambda: agrees(slice(None), 1)),
        "Lava, 64 lanes": (BATCH, lambda: agrees(slice(None), 64)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with threadpool_limits(1):
        for turn in range(ROUNDS):
            for name, (_, work) in ways.items():
                if not name.startswith("Lava") or turn < LAVA_ROUNDS:
                    times[name].append(seconds(work))
    rates = {name: ways[name][0] / statistics.median(times[name]) for name in ways}
    table = Table("784-256-10, T = 20, one thread", "samples/s", "against a runtime per sample")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.1f}", f"{rate / rates['Lava, a runtime per sample']:,.1f} x")
    Console().print(table)


if __name__ == "__main__":
    main()
