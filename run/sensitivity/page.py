"""The page of a sensitivity: sensitivity.md, its pictures beside it, and sensitivity.json with every number on it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from base.files import write_json, write_text
from quantize.precision import BITS, TERNARY, Bits
from quantize.sensitivity import Measured, front
from run.files import SENSITIVITY, SENSITIVITY_PAGE, SENSITIVITY_PICTURES
from run.markdown import line
from run.sensitivity import pictures
from run.sensitivity.search import UNITS, size_text

LAYERS, FRONT = SENSITIVITY_PICTURES
WIDTHS: tuple[Bits, ...] = tuple(sorted(BITS, key=lambda bits: -2.5 if bits == TERNARY else -int(bits)))

FIELDS = ("memory", "divergence %", "accuracy %", "agreement %")

Table = tuple[list[str], list[list[str]]]  # headings and rows, as text

READING = """\
All of it was measured on {samples} samples of the {part} part; nothing was chosen by the test part. The **divergence**
is the mean over populations of the share of neuron-steps that differ from the float network's, so that each population
counts the same; a readout's share is the mean square error of its current over the current's variance, 1 at most.
**Agreement** is the share of samples predicted as by the float network. **Memory** is what the weights take: each as
many bits as it is wide, ternary two, a convolution's kernels once; biases, thresholds and decays are not counted.
"""


def _own(key: str) -> Callable[[Measured, str], float]:
    """Of the layer's own population; 0 of a readout, which has no rate."""
    return lambda found, layer: found.populations[layer].get(key, 0.0)


# Of an allocation, and the layer that it is about.
QUANTITIES: tuple[tuple[str, Callable[[Measured, str], float]], ...] = (
    ("Divergence, %", lambda found, layer: found.divergence),
    ("Differing neuron-steps of the layer's own population, %", _own("differing_share")),
    ("Drift of its own firing rate, spikes per 100 neuron-steps", _own("rate_drift")),
    ("Accuracy, %", lambda found, layer: found.accuracy),
    ("Agreement, %", lambda found, layer: found.agreement),
)


def write(numbers: dict[str, Any], command: str, run: Path) -> None:
    """Write the page, its pictures and its JSON into the run's folder. command: what made them."""
    measured = _measured(numbers)
    chosen = Measured(**numbers["chosen"]) if numbers["chosen"] else None
    numbers = {"command": command, **numbers, "use": chosen and _use(chosen, run)}
    write_text(run / LAYERS, _heat(numbers))
    write_text(run / FRONT, _fronts(measured, chosen))
    write_json(run / SENSITIVITY, numbers)
    write_text(run / SENSITIVITY_PAGE, "\n".join(_page(numbers, measured)))


def load(run: Path) -> dict[str, Any]:
    """All that a run's page tells."""
    return dict(json.loads((run / SENSITIVITY).read_text(encoding="utf-8")))


def tables(numbers: dict[str, Any]) -> Iterable[tuple[str, Table]]:
    """Titles and tables for a terminal, the last one of what was chosen."""
    for title, quantity in (QUANTITIES[0], QUANTITIES[3]):
        yield f"{title}, one layer at so many bits", layer_table(by_layer(numbers, quantity), numbers["layers"])
    yield f"of {numbers['samples']} samples of the {numbers['part']} part", choice_table(numbers)


def _use(chosen: Measured, run: Path) -> str:
    """The command that runs the whole way with an allocation's widths."""
    widths = ", ".join(f"{layer} = {json.dumps(bits)}" for layer, bits in chosen.allocation.items())
    return f"uv run pipeline.py --out {shlex.quote(str(run))} --set {shlex.quote(f'quantize.per_layer={{{widths}}}')}"


def by_layer(numbers: dict[str, Any], quantity: Callable[[Measured, str], float]) -> np.ndarray:
    """A quantity of an allocation and the layer it is about, [layers, WIDTHS], the other layers at 8 bits."""
    layers = list(numbers["layers"])
    found = {tuple(each.allocation.items()): each for each in _measured(numbers)}
    eight = dict.fromkeys(layers, 8)
    return np.array(
        [[quantity(found[tuple({**eight, layer: bits}.items())], layer) for bits in WIDTHS] for layer in layers]
    )


def layer_table(values: np.ndarray, layers: Iterable[str]) -> Table:
    """Shares [layers, WIDTHS] in percent."""
    rows = [[layer, *(f"{100 * value:.3g}" for value in row)] for layer, row in zip(layers, values, strict=True)]
    return ["bits", *map(str, WIDTHS)], rows


def choice_table(numbers: dict[str, Any]) -> Table:
    """8 bits everywhere, and what was chosen, if anything was."""
    eight = next(found for found in _measured(numbers) if set(found.allocation.values()) == {8})
    shown = {"8 bits": eight} | ({"chosen": Measured(**numbers["chosen"])} if numbers["chosen"] else {})
    names = [*FIELDS, *(f"bits of {layer}" for layer in numbers["layers"])]
    return ["", *shown], [list(row) for row in zip(names, *map(_fields, shown.values()), strict=True)]


def _fields(found: Measured) -> list[str]:
    shares = (found.divergence, found.accuracy, found.agreement)
    return [size_text(found.bytes), *(f"{100 * share:.2f}" for share in shares), *map(str, found.allocation.values())]


def _measured(numbers: dict[str, Any]) -> list[Measured]:
    return [Measured(**found) for found in numbers["measured"]]


def _page(numbers: dict[str, Any], measured: list[Measured]) -> Iterable[str]:
    yield "# How few bits each layer can do with\n"
    yield f"    {numbers['command']}\n"
    yield from _table(*choice_table(numbers))
    if numbers["use"]:
        yield f"The whole way with the chosen widths:\n\n    {numbers['use']}\n"
    yield READING.format(samples=numbers["samples"], part=numbers["part"])
    yield "## One layer at a time\n"
    caption = "Divergence and accuracy, in percent, with one layer at so many bits and the others at 8."
    yield f"![{caption}]({Path(LAYERS).name})\n\n{caption}\n"
    for title, quantity in QUANTITIES:
        yield f"{title}:\n"
        yield from _table(*layer_table(by_layer(numbers, quantity), numbers["layers"]))
    yield "## Mixed widths\n"
    caption = f"Memory against divergence and accuracy, of {len(measured)} measured allocations."
    yield f"![{caption}]({Path(FRONT).name})\n\n{caption}\n"
    for title, found in (("divergence", _divergence_front(measured)), ("accuracy", _accuracy_front(measured))):
        yield f"The front of {title}: nothing measured that is as small or smaller does as well.\n"
        yield from _table([*FIELDS, *numbers["layers"]], [_fields(each) for each in found])


def _table(headings: list[str], rows: list[list[str]]) -> Iterable[str]:
    yield line(headings)
    yield "|---|" + "---:|" * (len(headings) - 1)
    yield from map(line, rows)
    yield ""


def _heat(numbers: dict[str, Any]) -> str:
    panels = {
        "divergence, %": by_layer(numbers, lambda found, layer: found.divergence),
        "accuracy, %": by_layer(numbers, lambda found, layer: found.accuracy),
    }
    return pictures.heat(panels, list(numbers["layers"]), [str(bits).replace(TERNARY, "tern.") for bits in WIDTHS])


def _divergence_front(measured: list[Measured]) -> list[Measured]:
    return front(measured, lambda found: found.divergence)


def _accuracy_front(measured: list[Measured]) -> list[Measured]:
    return front(measured, lambda found: -found.accuracy)


def _fronts(measured: list[Measured], chosen: Measured | None) -> str:
    uniform = [found for found in measured if len(set(found.allocation.values())) == 1]
    panels: dict[str, tuple[pictures.Points, ...]] = {}
    for quantity, kept in (("divergence", _divergence_front(measured)), ("accuracy", _accuracy_front(measured))):
        groups = (measured, kept, uniform, [chosen] if chosen else [])
        panels[quantity] = tuple(
            [(found.bytes / UNITS["KiB"], getattr(found, quantity)) for found in group] for group in groups
        )
    return pictures.fronts(panels)
