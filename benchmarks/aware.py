"""What an update costs whose forward pass is the integers', against one in floats.

OMP_NUM_THREADS=1 uv run python -m benchmarks.aware examples/digits-conv.toml examples/nmnist-small.toml

Both updates take turns on one batch of the configuration's data. Times are the processor's, their ratio is the median
over pairs; the last column is what an aware update does before its forward pass: folding and quantizing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from quantize.aware import AwareNetwork
from run import building, config
from train.encoding import encode
from train.network import SpikingNetwork
from train.updates import by_backpropagation, optimizer_of

PAIRS, WARM_UP = 11, 2


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(path: Path) -> tuple[list[float], list[float], list[float]]:
    """Seconds of updates in floats, of aware ones, and of what these prepare."""
    network, dataset, encoding, training = building.prepare(config.read(path))
    chosen = np.arange(training.batch_size)
    spikes = encode(dataset.train.values[chosen], chosen, encoding, 1)
    labels = torch.from_numpy(dataset.train.labels[chosen])

    def updating(learning: SpikingNetwork) -> Callable[[], object]:
        optimizer = optimizer_of(learning.train(), training)
        return lambda: by_backpropagation(learning, optimizer, spikes, labels, training, (0,))

    aware_network = AwareNetwork(network, spikes)
    works = updating(network), updating(aware_network), aware_network.prepared
    rounds = [[seconds(work) for work in works] for _ in range(WARM_UP + PAIRS)][WARM_UP:]
    floats, aware, preparing = map(list, zip(*rounds, strict=True))
    return floats, aware, preparing


def main() -> None:
    torch.set_num_threads(1)
    print("| configuration | float, ms | aware, ms | ratio | preparing, ms |\n|---|---:|---:|---:|---:|")
    for path in map(Path, sys.argv[1:]):
        floats, aware, preparing = measure(path)
        ratio = median(ours / theirs for ours, theirs in zip(aware, floats, strict=True))
        figures = [f"{1e3 * median(times):.1f}" for times in (floats, aware, preparing)]
        print(f"| {path.stem} | {figures[0]} | {figures[1]} | {ratio:.2f} | {figures[2]} |")


if __name__ == "__main__":
    main()
