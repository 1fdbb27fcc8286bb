"""How fast whole data sets are verified on Lava's full simulator: a runtime for every sample, one for all, lanes.

    uv run python -m benchmarks.lava [RUN ...]      a few minutes, on two cores

writes docs/results/speed/lava.md and, for benchmarks.compare, lava.json. A RUN is a folder of pipeline.py, whose
network runs on its own samples, held-out ones first. Every run must record the engine's spikes, of all populations.
"""

from __future__ import annotations

import shlex
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from statistics import median

import numpy as np

from base.files import write_text
from benchmarks import timing
from benchmarks.engine import ROOT, elsewhere, network, spikes
from deploy.lava import backend, graph
from quantize import engine, held_out
from quantize.integer_network import IntegerNetwork, load
from run import building, config
from train.encoding import encode

PAGE = ROOT / "docs/results/speed/lava.md"
ROUNDS = 3
ALONE, STREAMED, LANED = 4, 100, 4000  # samples at most for a runtime each, for one lane, for many
PER_SAMPLE = [sys.executable, "-W", "ignore", "-m", "benchmarks.lava_per_sample"]


def seconds(chip: IntegerNetwork, inputs: np.ndarray, lanes: int) -> float:
    """What one run takes a sample, the guarded process's start and the mapping of its files included."""
    began = time.perf_counter()
    ran = backend.run(chip, inputs, options=backend.LavaOptions(lanes=lanes))
    took = time.perf_counter() - began
    truth = engine.run(chip, inputs)
    assert all(np.array_equal(ran.spikes[name], truth.spikes[name]) for name in truth.spikes)
    return took / inputs.shape[1]


def measured(title: str, chip: IntegerNetwork, inputs: np.ndarray, ratios: dict[str, timing.Ratio]) -> str:
    """The page's row of a network; its ratios are added."""
    alone, streamed, many = (np.ascontiguousarray(inputs[:, :count]) for count in (ALONE, STREAMED, LANED))
    # What suits a set that is too long for one lane, which these samples stand for.
    lanes = min(graph.chosen_lanes(chip, len(inputs), sys.maxsize), many.shape[1])
    rounds = [
        (
            elsewhere(PER_SAMPLE, chip, alone) / alone.shape[1],
            seconds(chip, streamed, lanes=1),
            seconds(chip, many, lanes),
        )
        for _ in range(ROUNDS)
    ]
    each, one, laned = zip(*rounds, strict=True)
    ratios[f"{title}: a runtime for every sample / lanes"] = timing.ratio(each, laned, lower_is_better=False)
    ratios[f"{title}: a runtime for every sample / one lane"] = timing.ratio(each, one, lower_is_better=False)
    return (
        f"| {title} | {len(inputs)} | {1 / median(each):,.1f} | {1 / median(one):,.0f} | {many.shape[1]:,} | {lanes} "
        f"| {1 / median(laned):,.0f} | {median(each) / median(laned):,.0f} |"
    )


def samples_of(run: Path) -> np.ndarray:
    """The held-out samples of a run, and of the training part as many as still count, [T, N, *input_shape]."""
    shown = held_out.load(run / "quantize/inputs.npz").inputs
    settings = config.read(run / "config.toml")
    learned = building.dataset_of(settings).train
    chosen = np.arange(min(len(learned), max(0, LANED - shown.shape[1])))
    more = encode(learned.values[chosen], chosen, building.encoding_of(settings)).numpy()
    return np.concatenate([shown, more], axis=1)


def main() -> None:
    parser = ArgumentParser(description=__doc__, usage="python -m benchmarks.lava [RUN ...]")
    parser.add_argument("runs", type=Path, nargs="*")
    runs = parser.parse_args().runs
    ratios = dict[str, timing.Ratio]()
    rows = [measured("784-256-10, 10%", network(), spikes(0.1, LANED), ratios)]
    for run in runs:
        rows.append(measured(run.name, load(run / "quantize/network.npz"), samples_of(run), ratios))
    command = shlex.join(["python", "-m", "benchmarks.lava", *sys.argv[1:]])
    timing.write(PAGE.with_suffix(".json"), command, ratios)
    write_text(PAGE, page(command, rows))


def page(command: str, rows: list[str]) -> str:
    lines = "\n".join
    return f"""# Whole data sets on Lava

    OMP_NUM_THREADS=1 uv run {command}

wrote this page: samples a second on two cores that other work shares, medians of {ROUNDS} rounds of {ALONE},
{STREAMED} and up to {LANED:,} samples of the data set, held-out ones first. With "a runtime each" Lava's processes are
made, compiled, run and stopped for every sample, as its tutorials do; imports and the layout of weights are not
counted. The others are what `pipeline.py deploy` does: one runtime in a guarded process, whose start is counted, one
lane on stock processes throughout, or as many lanes as it chooses by itself for a long set. One start, of about two
seconds, is shared by all samples: verifying a set of a few hundred cannot be many hundred times as fast.
Every spike of every population was the engine's.

| network | T | a runtime each | one lane | samples | lanes | with lanes | times a runtime each |
|---|---:|---:|---:|---:|---:|---:|---:|
{lines(rows)}
"""


if __name__ == "__main__":
    main()
