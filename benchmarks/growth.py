"""How time and memory of a training update and of the engine grow, with one quantity after another.

OMP_NUM_THREADS=1 uv run python -m benchmarks.growth          rewrites docs/results/speed/growth.md, some minutes

Each quantity runs over two decades while all others stay. Time is the processor's on one thread, the median of rounds
that take turns; memory is the process's peak beyond what it held before the work.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import process_time
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from rich.console import Console
from rich.progress import track
from scipy.optimize import nnls

from base.files import write_text
from benchmarks.timing import Ratio, interleaved, ratio, write
from deploy.pictures import INK, LINES, svg
from quantize import engine
from quantize.fold import fold
from quantize.precision import Bits, Precision
from quantize.scales import quantize
from run.drawing import drawing
from train.architecture import build
from train.neurons import LIF
from train.training import Training
from train.updates import by_backpropagation, optimizer_of

PAGE = Path("docs/results/speed/growth.md")
COMMAND = "OMP_NUM_THREADS=1 uv run python -m benchmarks.growth"
ROUNDS = 5
LIVELY = 2.0  # times the initial weights, some 10 % of neurons spike at a step however deep they are
WORKS = {"training": "a training update", "engine": "the engine"}


@dataclass(frozen=True)
class Setting:
    """A chain of dense populations, and its input. density: share of inputs that spike at a step."""

    steps: int = 20
    batch: int = 32
    inputs: int = 256
    neurons: int = 256
    populations: int = 2
    density: float = 0.05
    bits: Bits = 8

    def works(self) -> dict[str, Callable[[], object]]:
        """A training update, and a run of the engine on the quantized network."""
        network = build(
            "-".join([str(self.neurons)] * (self.populations - 1) + ["10"]), (self.inputs,), neuron=LIF, seed=0
        )
        with torch.no_grad():
            for stage in network.stages:
                stage.synapse.get_parameter("weight").mul_(LIVELY)
        drawn = torch.rand(self.steps, self.batch, self.inputs, generator=torch.Generator().manual_seed(0))
        spikes, labels = (drawn < self.density).to(torch.uint8), torch.arange(self.batch) % 10
        integers, _ = quantize(fold(network), (self.inputs,), 1, Precision(self.bits, calibration="max"))
        training = Training(learning_rate=1e-9)
        optimizer = optimizer_of(network, training)
        shown = spikes.numpy()
        return {
            "training": lambda: by_backpropagation(network, optimizer, spikes, labels, training, (0,)),
            "engine": lambda: engine.run(integers, shown),
        }


INTRODUCTION = f"""\
# How cost grows

    {COMMAND}

A chain of dense populations: 256 inputs, of which 5 % spike, 256 hidden neurons and 10, T = 20, batches of 32, 8 bits,
one thread; one quantity at a time runs over two decades. An exponent is the slope in the doubly logarithmic picture;
a + b x is a fixed cost and one for each unit, with how far the line is from the points at most.

![Time and memory, doubly logarithmic](growth.svg)"""
EXPLAINED = {
    "steps": """\
Linear behind a fixed cost: a call of every layer, of its gradient and of the optimiser takes as long for one step as
for ten. The engine's memory bends where its activations would take more than 2 MiB: samples are then run in turns.""",
    "batch": """\
As with steps, since every product is over steps and samples at once.""",
    "neurons": """\
As with steps. The scan takes 4,096 neurons at a time through all steps, so that their state stays in cache; that a
training update ends a little above linear is the rasters, 16 MB each, which no cache holds.""",
    "inputs": """\
Below 1: of 5 % of the inputs rows of weights are added up, and what stays the same is the neurons' scan. What grows are
looking at every input, the optimiser's pass over all weights and the memory of three more numbers for each.""",
    "density": """\
Far below 1, for the same reasons: looking at 2,048 inputs and the optimiser cost most, whatever spikes. Rows are added
up to a density of 0.25 in training, and in the engine as long as that is cheaper than a product of bytes (0.23 here);
products beyond that cost the same however many spike.""",
    "populations": """\
Linear: each population is a call of its own. In the engine 200 of them are above that: which of them lie on a common
cycle is found anew in every run, in time that grows with their square, 0.04 of its seconds here. Its memory holds an
activation for each population.""",
    "bits": """\
None, as it should be: fewer bits are fewer levels in the same bytes. What fewer bits save is on the chip
(`pipeline.py check`).""",
}
BASE = Setting()
QUANTITIES: dict[str, tuple[str, list[Setting]]] = {
    "steps": ("steps T", [replace(BASE, steps=4 * n) for n in (1, 3, 10, 30, 100)]),
    "batch": ("samples of a batch", [replace(BASE, batch=4 * n) for n in (1, 3, 10, 30, 100)]),
    "neurons": ("neurons, of 16 inputs", [replace(BASE, inputs=16, neurons=64 * n) for n in (1, 3, 10, 30, 100)]),
    "inputs": ("synapses of a neuron", [replace(BASE, inputs=64 * n) for n in (1, 3, 10, 30, 100)]),
    "density": (
        "share of 2,048 inputs that spike",
        [replace(BASE, inputs=2048, density=0.005 * n) for n in (1, 3, 10, 30, 100)],
    ),
    "populations": ("populations of 64", [replace(BASE, neurons=64, populations=n) for n in (2, 6, 20, 60, 200)]),
    "bits": ("bits of a weight", [replace(BASE, bits=n) for n in (1, 2, 4, 8)]),
}


class Growth(NamedTuple):
    """slope, last: the exponent, fitted to all points and to those of the last decade. fixed: a of the a + b x, neither
    below 0, that fits best by relative error; off: the largest relative error of that line."""

    slope: float
    last: float
    fixed: float
    off: float


def growth(x: np.ndarray, y: np.ndarray) -> Growth:
    upper = x >= 0.0999 * x[-1]
    slopes = [np.polyfit(np.log(x[part]), np.log(y[part]), 1)[0] for part in (x > 0, upper)]
    (fixed, each), _ = nnls(np.stack([1 / y, x / y], axis=1), np.ones(len(x)))
    return Growth(*map(float, slopes), float(fixed), float(np.abs((fixed + each * x) / y - 1).max()))


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that the process held during the work, done for the second time, beyond what it held before."""
    work()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew: proc(5)
    before = _status("VmRSS")
    work()
    return max(_status("VmHWM") - before, 1)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


Points = Mapping[str, np.ndarray]  # by work, in the order of a quantity's settings


def page(seconds: Mapping[str, Points], memory: Mapping[str, Points]) -> Iterator[str]:
    yield INTRODUCTION
    for quantity, (title, settings) in QUANTITIES.items():
        x = np.array([getattr(setting, quantity) for setting in settings], float)
        yield f"\n## {title}\n"
        yield (
            "| | "
            + " | ".join(f"{value:g}" for value in x)
            + " | exponent | of the last decade | a + b x fits within |"
        )
        yield "|---|" + "---:|" * (len(x) + 3)
        for measured, unit, form in ((seconds[quantity], "ms", 1e3), (memory[quantity], "MiB", 2**-20)):
            for work, name in WORKS.items():
                found = growth(x, measured[work])
                values = " | ".join(f"{form * value:.3g}" for value in measured[work])
                line = f"{found.off:.0%}, a = {form * found.fixed:.2g} {unit}"
                yield f"| {name}, {unit} | {values} | {found.slope:.2f} | {found.last:.2f} | {line} |"
        yield f"\n{EXPLAINED[quantity]}"


def picture(seconds: Mapping[str, Points], memory: Mapping[str, Points]) -> str:
    with drawing():
        figure = Figure((3.2 * 4, 2.6 * 4), layout="constrained")
        axes = figure.subplots(4, 4)
        for place, (quantity, (title, settings)) in enumerate(QUANTITIES.items()):
            x = np.array([getattr(setting, quantity) for setting in settings], float)
            row, column = 2 * (place // 4), place % 4
            for below, (measured, unit) in enumerate(((seconds, 1e3), (memory, 2**-20))):
                axis = axes[row + below, column]
                for (work, name), colour in zip(WORKS.items(), LINES, strict=False):
                    axis.loglog(x, unit * measured[quantity][work], "o-", color=colour, ms=3, lw=1.2, label=name)
                y = unit * measured[quantity]["training"]
                axis.loglog(x, y[-1] * x / x[-1], color=INK, lw=0.6, ls=":", label="linear")
                for scale in (axis.xaxis, axis.yaxis):
                    scale.set_major_formatter(StrMethodFormatter("{x:g}"))
                    scale.set_minor_formatter(NullFormatter())
                axis.set_ylabel("ms" if not below else "MiB")
                if not below:
                    axis.set_title(title, loc="left", fontsize=9)
        axes[0, 0].legend(frameon=False, fontsize=7)
        for empty in axes[2:, 3]:
            empty.remove()
        return svg(figure)


def measure_memory() -> dict[str, dict[str, list[int]]]:
    """Peaks in bytes by quantity and work, in the order of the settings."""
    found = {}
    for quantity, (_, settings) in track(QUANTITIES.items(), "measuring memory", console=Console(stderr=True)):
        peaks = [{name: peak_bytes(work) for name, work in setting.works().items()} for setting in settings]
        found[quantity] = {name: [peak[name] for peak in peaks] for name in WORKS}
    return found


def main() -> None:
    parser = ArgumentParser(description=__doc__, usage="python -m benchmarks.growth")
    parser.add_argument("--memory", action="store_true", help="measure memory alone and print it")
    torch.set_num_threads(1)
    if parser.parse_args().memory:
        print(json.dumps(measure_memory()))
        return
    seconds: dict[str, Points] = {}
    ratios: dict[str, Ratio] = {}
    for quantity, (_, settings) in track(QUANTITIES.items(), "measuring"):
        works = [setting.works() for setting in settings]
        turns = {f"{name} {place}": work for place, each in enumerate(works) for name, work in each.items()}
        times = interleaved(ROUNDS, turns, process_time)
        of = {name: [times[f"{name} {place}"] for place in range(len(settings))] for name in WORKS}
        seconds[quantity] = {name: np.array([median(each) for each in found]) for name, found in of.items()}
        ratios |= {f"{name}, {quantity}": ratio(found[-1], found[0]) for name, found in of.items()}
    # A process whose arrays go back to the system as soon as they are freed: its peak is that of the work alone.
    giving_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    asked = [sys.executable, "-m", "benchmarks.growth", "--memory"]
    answer = subprocess.run(asked, env=giving_back, stdout=subprocess.PIPE, check=True).stdout
    peaks = json.loads(answer)
    memory = {quantity: {name: np.array(found[name], float) for name in WORKS} for quantity, found in peaks.items()}
    write_text(PAGE, "\n".join(page(seconds, memory)) + "\n")
    write_text(PAGE.with_suffix(".svg"), picture(seconds, memory))
    write(PAGE.with_suffix(".json"), COMMAND, ratios)


if __name__ == "__main__":
    main()
