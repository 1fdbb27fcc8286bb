"""The page of a comparison: comparison.md with its pictures beside it, and comparison.json with every number on it.

All of it is made anew from the cells at each call, and the same cells give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from base.files import write_json, write_text
from run.comparison import pictures
from run.markdown import escaped, line

PAGE, JSON = "comparison.md", "comparison.json"

Cell = dict[str, Any]  # as `numbers` holds it

READING = """\
Mean ± standard deviation over seeds. **float** and **integer** are shares of the {samples} test samples that the float
network and its integers get right after the last epoch; nothing was chosen by the test part. **rate** is spikes
per neuron and step of the integers, **in window** the share of neuron-steps of the float network with
|v − threshold| < width / 2, both over all neurons on the test samples. **s/epoch** is the median over epochs on one
thread, with as many trainings side by side as there were jobs, **MiB** the peak memory of the training process.

**Δ** is the mean difference of integer accuracy to “{baseline}” in percentage points, with its {confidence:.0%}
confidence interval, and **p** that of a paired t-test (two-sided, SciPy {scipy}) over the seeds in brackets: equal
seeds start from equal weights where architectures are equal, and see the same samples in the same order. The p values
are not corrected for the number of methods, and all seeds share one test part.
"""


def write(numbers: dict[str, Any], command: str, folder: Path) -> Path:
    """Write the page, its pictures and its JSON into the folder; returns the page's path."""
    drawn = _pictures(numbers)
    for name, (_, picture) in drawn.items():
        write_text(folder / name, picture)
    write_json(folder / JSON, {"command": command, **numbers})
    captions = {name: caption for name, (caption, _) in drawn.items()}
    write_text(folder / PAGE, "\n".join(_page(numbers, command, captions)))
    return folder / PAGE


def table(numbers: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the comparison's table, as text; a column that no cell has anything for is left out."""
    rows = [_row(numbers, row) for row in numbers["rows"]]
    headings = [heading for heading in rows[0] if any(row[heading] for row in rows)]
    return headings, [[row[heading] or "–" for heading in headings] for row in rows]


def _row(numbers: dict[str, Any], row: dict[str, Any]) -> dict[str, str]:
    accuracy, difference = row["accuracy"], row["difference"]
    delta = p = ""
    if difference:
        delta = f"{100 * difference['mean']:+.2f}"
        if difference["p"] is not None:
            delta += f" [{100 * difference['low']:+.2f}, {100 * difference['high']:+.2f}]"
            found = difference["p"]
            p = f"{'<0.001' if found < 0.0005 else f'{found:.3f}'} ({difference['pairs']})"
    return {
        "method": row["method"],
        numbers["swept"]: "" if row["value"] is None else str(row["value"]),
        "seeds": str(row["cells"]),
        "validation %": _with_spread(accuracy["validation"], 100, 2),
        "float %": _with_spread(accuracy["float"], 100, 2),
        "integer %": _with_spread(accuracy["integer"], 100, 2),
        "Δ": delta,
        "p": p,
        "rate": _with_spread(row["rate"], 1, 3),
        "in window": _with_spread(row["in_window"], 1, 3),
        "s/epoch": _with_spread(row["seconds_per_epoch"], 1, 2),
        "MiB": _with_spread(row["peak_memory_mib"], 1, 0),
    }


def _with_spread(spread: dict[str, float | None], scale: float, digits: int) -> str:
    if spread["mean"] is None:
        return ""
    text = f"{scale * spread['mean']:.{digits}f}"
    return text if spread["std"] is None else f"{text} ± {scale * spread['std']:.{digits}f}"


def _page(numbers: dict[str, Any], command: str, captions: dict[str, str]) -> Iterable[str]:
    cells: list[Cell] = numbers["cells"]
    yield f"# {len(numbers['methods'])} ways to train, {len(numbers['seeds'])} seeds\n"
    yield f"    {command}\n"
    if cells:
        config = cells[0]["config"]
        yield (
            f"Data set {config['data']['dataset']}, network {escaped(config['network']['architecture'])}, "
            f"{config['data']['steps']} steps, {config['train']['epochs']} epochs, unless a method or the sweep says "
            "otherwise:\n"
        )
    for name, keys in numbers["methods"].items():
        said = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in keys.items()) or "as it stands"
        yield f"* **{escaped(name)}**: {said}" + ("; the baseline" if name == numbers["baseline"] else "")
    yield ""
    headings, rows = table(numbers)
    users = {"method", numbers["swept"]}
    yield line([escaped(heading) for heading in headings])
    yield "|" + "---|" + "---:|" * (len(headings) - 1)
    for row in rows:
        named = zip(headings, row, strict=True)
        yield line([escaped(text) if heading in users else text for heading, text in named])
    yield ""
    for failure in numbers["failed"]:
        yield f"* **Failed: {escaped(failure['cell'])}**: {escaped(failure['reason'])}"
    yield ""
    if cells:
        samples = sorted({cell["samples"] for cell in cells})
        yield READING.format(
            samples=" or ".join(map(str, samples)),
            baseline=escaped(numbers["baseline"]),
            confidence=numbers["confidence"],
            scipy=scipy.__version__,
        )
        equal = sum(cell["reference"]["equal"] for cell in cells)
        checked = cells[0]["reference"]["samples"]
        yield (
            f"The integers ran on the engine. On the first {checked} test samples its spikes, u and v equal the "
            f"reference's in {equal} of {len(cells)} trainings.\n"
        )
    for name, caption in captions.items():
        yield f"![{caption}]({name})\n\n{caption}\n"
    if cells:
        yield f"Versions: {_versions(cells)}.\n"


def _pictures(numbers: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Caption and SVG by file name; none without cells."""
    cells, values = numbers["cells"], numbers["values"]
    if not cells:
        return {}
    metric = "train_accuracy" if cells[0]["accuracy"]["validation"] is None else "validation_accuracy"
    label = metric.replace("_", " ")
    at = f", at {numbers['swept']} = {values[0]}" if numbers["swept"] else ""
    bands = "mean, standard deviation and every seed, in front of the baseline's"
    baseline = {_label(cell) for cell in cells if cell["method"] == numbers["baseline"]}
    found = {
        "accuracy.svg": (
            "Accuracy on the test samples: a point for each seed, a bar for the mean, the baseline in ink.",
            pictures.dots({kind: _by_row(cells, "accuracy", kind) for kind in ("float", "integer")}, baseline),
        ),
        "learning.svg": (
            f"Learning curves, {label} over epochs{at}: {bands}.",
            pictures.curves(_learning(numbers, metric), "epoch", label),
        ),
    }
    if numbers["swept"]:
        found["sweep.svg"] = (
            f"Integer accuracy on the test samples over {numbers['swept']}: {bands}.",
            pictures.curves(_over_values(numbers), numbers["swept"], "integer accuracy"),
        )
    populations = list(dict.fromkeys(name for cell in cells for name in cell["populations"]))
    for file, quantity, caption in (
        ("rates.svg", "integer_rate", "Spikes per neuron and step of the integers"),
        ("window.svg", "in_window", "Share of neuron-steps inside the surrogate's window, float network"),
    ):
        if populations:
            panels = {name: _by_row(cells, "populations", name, quantity) for name in populations}
            found[file] = (f"{caption}, by population: a point for each seed.", pictures.dots(panels, baseline))
    return found


def _label(cell: Cell) -> str:
    """What stands before a cell's row in a picture."""
    return cell["method"] + ("" if cell["value"] is None else f", {cell['value']}")


def _by_row(cells: Sequence[Cell], *path: str) -> dict[str, list[float]]:
    """What stands at that path in each cell, where it does, by method and value of the swept key."""
    rows: dict[str, list[float]] = {}
    for cell in cells:
        row = rows.setdefault(_label(cell), [])
        found: Any = cell
        for name in path:
            found = found.get(name, {})
        if found != {}:
            row.append(found)
    return rows


def _learning(numbers: dict[str, Any], metric: str) -> tuple[list[int], dict[str, np.ndarray]]:
    """Epochs, and the metric [seeds, epochs] of every method at the first value; NaN after a method's last epoch."""
    cells = [cell for cell in numbers["cells"] if cell["value"] == numbers["values"][0]]
    epochs = max((len(cell["curve"]) for cell in cells), default=0)
    found = {}
    for name in numbers["methods"]:
        lines = [[epoch[metric] for epoch in cell["curve"]] for cell in cells if cell["method"] == name]
        padded = [line + [np.nan] * (epochs - len(line)) for line in lines]
        found[name] = np.array(padded, float).reshape(-1, epochs)
    return list(range(1, epochs + 1)), found


def _over_values(numbers: dict[str, Any]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The swept values, and integer accuracies [seeds, values] of every method; NaN where a cell is missing."""
    made = {(c["method"], c["value"], c["seed"]): c["accuracy"]["integer"] for c in numbers["cells"]}
    return [str(value) for value in numbers["values"]], {
        name: np.array([[made.get((name, v, seed), np.nan) for v in numbers["values"]] for seed in numbers["seeds"]])
        for name in numbers["methods"]
    }


def _versions(cells: Sequence[Cell]) -> str:
    """The packages that made the cells; of several versions all."""
    return ", ".join(
        f"{package} {' and '.join(sorted({cell['versions'][package] for cell in cells}))}"
        for package in cells[0]["versions"]
    )
