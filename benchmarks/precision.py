"""What fewer bits cost, with and without aware training, and what a plainer way to round costs: the results page.

OMP_NUM_THREADS=1 uv run python -m benchmarks.precision examples/digits.toml --aware 8,4 20 0.001 \
    --aware 2,ternary,1 20 0.01 --seeds 3

Trains the configuration from each seed, quantizes at every width, trains on from the same weights with the integers in
the forward pass, and deploys and verifies all of these on every backend. Runs are kept in runs/precision and gone on
with; the numbers go to docs/results/precision, whose page is written anew from all that it holds.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from base.files import write_json, write_text
from deploy import BACKENDS
from quantize import arithmetic as rules
from quantize import engine, held_out, integer_network
from quantize.fold import FoldedLayer, fold
from quantize.held_out import HeldOut
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population
from quantize.precision import Bits
from quantize.recording import predictions
from run import building, files, stages
from run import config as configuration
from run.comparison import pictures
from run.config import Config
from run.folder import RunFolder
from train.checkpoint import load_weights
from train.modes import evaluating
from train.network import SpikingNetwork
from train.objectives import predict
from train.time_weights import weighted
from train.trainer import EVALUATION_BATCH

WIDTHS: tuple[Bits, ...] = (8, 4, 2, "ternary", 1)
RUNS, PAGE = Path("runs/precision"), Path("docs/results/precision")
WAYS = {
    "rounded": "rounded, no retraining",
    "aware": "with aware training",
    "max": "rounded with the largest weight as scale",
}

INTRODUCTION = """\
# What fewer bits cost

Each section is written by the command at its top, on the processor, without a GPU. Accuracy is in per cent of all
held-out samples, the mean over seeds, with every seed in brackets where there are several; ± is the standard error of
a mean difference over seeds, or of a single seed's over samples, all of which both networks answer. The float recipes
are those of the examples. How long aware training goes on, and how fast it learns, was settled on validation parts for
spoken digits, with the decay of its weights at few bits, for N-MNIST, for dense Fashion-MNIST, and for the
convolutional one at 4 and 8 bits, else with numbers like these in view. One sample is {one}.

Aware epochs come on top of the float ones. Where a set is small they are also a longer training, and may end above the
floats they start from: spoken digits has 600 recordings to learn from.

* **rounded**: the trained float network, quantized as `pipeline.py quantize` does (`calibration = "membrane"`).
* **aware**: the same weights trained on with the integers in the forward pass, scales learned; for the epochs, with the
  learning rate and with the weights' decay, if any, that the command names for each width.
* **largest weight**: what a user would write first: every layer scaled by its largest weight, rounded, threshold and
  bias by the same scale (`calibration = "max"`).
* **1/64 grid**: the same float network on lava-dl's grid, one step of 2/64 for all weights of all layers, threshold
  64 x as a whole number (its `quantize_8bit` without its training). Graded input is scaled to the grid's best use.
* **equal**: whether all of
  {backends}
  fired the same spikes, in every pair, for rounded and for aware: samples, and spikes compared.
"""


def main() -> None:
    parser = ArgumentParser(description=__doc__, usage="python -m benchmarks.precision CONFIG [options]")
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--aware",
        nargs="+",
        action="append",
        required=True,
        metavar=("WIDTHS EPOCHS RATE", "DECAY"),
        help="how aware training goes at some widths: epochs, learning rate and perhaps the weights' decay",
    )
    parser.add_argument("--set", action="append", default=[], help="change one key of the configuration")
    parser.add_argument("--name", help="of the section on the page. Default: the configuration's")
    chosen = parser.parse_args()
    name = chosen.name or chosen.config.stem
    try:
        aware = recipes(chosen.aware)
    except (TypeError, ValueError):
        parser.error("--aware takes widths, epochs, a learning rate and perhaps a decay, like --aware 2,1 20 0.01")
    if missing := [str(bits) for bits in WIDTHS if str(bits) not in aware]:
        parser.error(f"--aware says nothing of {', '.join(missing)} bits; give it for every width")
    seeds = []
    for seed in range(chosen.seeds):
        config = configuration.read(chosen.config, [*chosen.set, f"seed={seed}"])
        config = replace(config, deploy=replace(config.deploy, backends=BACKENDS))
        seeds.append(measure(config, aware, RUNS / name / str(seed)))
    command = f"uv run python -m benchmarks.precision {shlex.join(sys.argv[1:])}"
    write_json(PAGE / f"{name}.json", {"command": command, "seeds": seeds})
    write_page(PAGE)


def recipes(given: Iterable[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Keys of `train` by width, of what `--aware` was given."""
    return {
        width: {
            "aware_epochs": int(epochs),
            "aware_learning_rate": float(rate),
            "aware_weight_decay": float(*decay),
        }
        for widths, epochs, rate, *decay in given
        for width in widths.split(",")
    }


def measure(config: Config, aware: dict[str, dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Accuracies and verdicts of one seed, by way and width. aware: keys of `train` at each width."""
    found: dict[str, Any] = {"rounded": {}, "aware": {}, "max": {}}
    with Progress() as bars:
        task = bars.add_task(str(folder), total=1 + 2 * len(WIDTHS))

        def show(what: str, done: int, total: int, note: str) -> None:
            bars.update(task, description=f"{folder} {what} {note}")

        stages.train(config, RunFolder(folder / "float"), show)
        bars.advance(task)
        for bits in WIDTHS:
            at = replace(config, quantize=replace(config.quantize, bits=bits))
            found["rounded"][str(bits)] = run(at, folder, f"rounded-{bits}", show)
            largest = replace(at, quantize=replace(at.quantize, calibration="max"))
            found["max"][str(bits)] = quantized(largest, folder, f"max-{bits}", show)
            bars.advance(task)
            trained = replace(at, train=replace(at.train, **aware[str(bits)]))
            found["aware"][str(bits)] = run(trained, folder, f"aware-{bits}", show)
            bars.advance(task)
    network, held = building.prepare(config)[0], held_out.load(folder / "rounded-8" / files.INPUTS)
    load_weights(network, folder / "rounded-8" / files.WEIGHTS)
    theirs = floats_right(network, held)
    ours = {str(bits): integer_network.load(folder / f"aware-{bits}" / files.NETWORK) for bits in WIDTHS}
    grid = fixed_grid(fold(network), network.input_shape, network.payload_bits)
    return found | {
        "float": float(theirs.mean()),
        "error": {bits: paired_error(right(integers, held), theirs) for bits, integers in ours.items()},
        "grid": float(right(grid, held).mean()),
    }


def run(config: Config, folder: Path, name: str, show: files.Progress) -> dict[str, Any]:
    """All stages of a run that starts from the float weights."""
    kept = from_floats(folder, name)
    for stage in (stages.train, stages.quantize, stages.deploy, stages.verify):
        stage(config, kept, show)
    verdict = stages.verdict(kept)
    return {
        **verdict["accuracy_of_all"],
        "equal": verdict["equal"],
        "samples": verdict["samples"],
        "spikes": sum(pair["spikes_compared"] for pair in verdict["comparisons"]),
    }


def quantized(config: Config, folder: Path, name: str, show: files.Progress) -> dict[str, Any]:
    kept = from_floats(folder, name)
    for stage in (stages.train, stages.quantize):
        stage(config, kept, show)
    return dict(json.loads((kept.path / files.FIDELITY).read_text(encoding="utf-8"))["accuracy"])


def from_floats(folder: Path, name: str) -> RunFolder:
    if not (folder / name).exists():
        shutil.copytree(folder / "float", folder / name)
    return RunFolder(folder / name)


def right(integers: IntegerNetwork, held: HeldOut) -> np.ndarray:
    """Which held-out samples the integers answer rightly, bool [B]."""
    return predictions(engine.run(integers, held.inputs), integers) == held.labels


def floats_right(network: SpikingNetwork, held: HeldOut) -> np.ndarray:
    """Which ones the float network does."""
    with torch.inference_mode(), evaluating(network):
        outputs = (network(inputs) for inputs in torch.from_numpy(held.inputs).split(EVALUATION_BATCH, dim=1))
        answers = torch.cat([predict(weighted(output, network.time_weights)) for output in outputs])
    return answers.numpy() == held.labels


def paired_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Standard error of the difference between two accuracies on the same samples."""
    return float((ours.astype(float) - theirs).std(ddof=1) / len(ours) ** 0.5)


def fixed_grid(layers: Sequence[FoldedLayer], input_shape: tuple[int, ...], payload_bits: int) -> IntegerNetwork:
    """64 units for a float of 1, everywhere: lava-dl 0.6, `lava.lib.dl.slayer.utils.quantize` and its CUBA neuron."""
    populations, connections = [], []
    for layer in layers:
        bias = np.rint(64 * 64 * layer.bias).astype(np.int64)
        exponent = next(e for e in range(8) if np.abs(np.rint(bias / 2**e)).max() <= 4095)
        mantissas = np.rint(bias / 2**exponent).astype(np.int64)
        populations.append(
            Population(
                layer.name,
                layer.shape,
                decay_u=np.rint(4096 * (1 - np.asarray(layer.alpha))).astype(np.int64) - rules.CURRENT_DECAY_OFFSET,
                decay_v=np.rint(4096 * (1 - np.asarray(layer.beta))).astype(np.int64),
                threshold_mant=np.asarray(int(64 * layer.threshold)),
                bias_mant=mantissas if len(layer.shape) == 1 else mantissas.reshape(-1, 1, 1),
                bias_exp=exponent,
                reset=layer.reset,
                floor=layer.floor,
                neuron=layer.neuron,
            )
        )
        for joined in layer.connections:
            graded = payload_bits if joined.source == INPUT and payload_bits > 1 else 0
            weight = (2 * np.rint(32 * 2**graded * joined.weight)).clip(rules.WEIGHT_MIN, rules.WEIGHT_MAX)
            geometry = {"delay": joined.delay, **joined.geometry}
            connections.append(Connection(joined.source, layer.name, weight.astype(np.int64), -graded, **geometry))
    return IntegerNetwork(input_shape, tuple(populations), tuple(connections), layers[-1].name, payload_bits)


def write_page(folder: Path) -> None:
    """precision.md and a picture for each configuration, from all results in the folder."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    for name, result in found.items():
        write_text(folder / f"{name}.svg", picture(result["seeds"]))
    write_text(folder / "precision.md", "\n".join(page(found)))


def picture(seeds: list[dict[str, Any]]) -> str:
    curves = {"float": np.array([[100 * seed["float"]] * len(WIDTHS) for seed in seeds])}
    for way, title in WAYS.items():
        curves[title] = np.array([[100 * seed[way][str(bits)]["integer"] for bits in WIDTHS] for seed in seeds])
    return pictures.curves(([str(bits) for bits in WIDTHS], curves), "bits", "accuracy, %")


def page(found: dict[str, Any]) -> Iterator[str]:
    sizes = {name: result["seeds"][0]["rounded"]["8"]["samples"]["held_out"] for name, result in found.items()}
    one = ", ".join(f"{100 / size:.2f} points ({name}, {size:,})" for name, size in sizes.items())
    yield INTRODUCTION.format(one=one, backends=", ".join(f"`{name}`" for name in BACKENDS))
    for name, result in found.items():
        seeds = result["seeds"]
        yield f"## {name}\n\n    {result['command']}\n"
        shown = ", ".join(f"{100 * seed['float']:.2f}" for seed in seeds)
        yield f"Float: {mean(seed['float'] for seed in seeds)} %" + (f" ({shown})" if len(seeds) > 1 else "") + "\n"
        yield "| bits | rounded | aware | aware − float | largest weight | 1/64 grid | equal |"
        yield "|---|---:|---:|---:|---:|---:|---:|"
        for bits in map(str, WIDTHS):
            columns = [each(seed[way][bits]["integer"] for seed in seeds) for way in ("rounded", "aware", "max")]
            lost = difference([100 * (seed["aware"][bits]["integer"] - seed["float"]) for seed in seeds])
            if len(seeds) == 1:
                lost += f" ± {100 * seeds[0]['error'][bits]:.2f}"
            grid = each(seed["grid"] for seed in seeds) if bits == "8" else ""
            yield f"| {bits} | {columns[0]} | {columns[1]} | {lost} | {columns[2]} | {grid} | {equality(seeds, bits)} |"
        yield f"\n![Accuracy over bits, {name}]({name}.svg)\n"


def equality(seeds: list[dict[str, Any]], bits: str) -> str:
    verdicts = [seed[way][bits] for seed in seeds for way in ("rounded", "aware")]
    samples = verdicts[0]["samples"]["compared"]
    said = "yes" if all(verdict["equal"] for verdict in verdicts) else "**no**"
    return f"{said}: {samples:,}, {sum(verdict['spikes'] for verdict in verdicts):,}"


def each(values: Iterator[float]) -> str:
    known = list(values)
    shown = ", ".join(f"{100 * value:.1f}" for value in known)
    return mean(iter(known)) + (f" ({shown})" if len(known) > 1 else "")


def mean(values: Iterator[float]) -> str:
    return format(100 * np.mean(list(values)), ".2f")


def difference(points: list[float]) -> str:
    """Their mean, and its standard error over seeds."""
    error = f" ± {np.std(points, ddof=1) / len(points) ** 0.5:.2f}" if len(points) > 1 else ""
    return f"{np.mean(points):+.2f}{error}"


if __name__ == "__main__":
    main()
