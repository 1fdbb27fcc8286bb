"""The search for widths, every allocation measured once: what was measured stays in the file, for the next goal too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import UserError
from base.files import write_json
from quantize.precision import BITS
from quantize.recording import Recording
from quantize.sensitivity import (
    Allocation,
    Allocations,
    Measure,
    Measured,
    best_within,
    descent,
    one_layer_at_a_time,
    smallest_reaching,
    stored_bits,
)
from run.files import Progress

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}


@dataclass(frozen=True)
class Goal:
    """What to choose an allocation by: bytes it may take, or accuracy it must reach, a share; or nothing of both."""

    budget: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True, eq=False)
class Shown:
    """Samples to choose by. inputs: [T, B, *input_shape] as the integers take them; floats: what the float network
    emitted for them; labels [B]; part: of the data set, where they come from."""

    inputs: np.ndarray
    floats: Recording
    labels: np.ndarray
    part: str


def goal(budget: str | None, accuracy: float | None) -> Goal:
    """The goal that a user's words name. Raises UserError for two of them, and for what is no size or no share."""
    if budget is not None and accuracy is not None:
        raise UserError(f"--budget {budget} --accuracy {accuracy:g}: are two goals; give one of them.")
    if accuracy is not None and not 0 < accuracy <= 1:
        raise UserError(f"--accuracy {accuracy:g}: is no share of samples; give one above 0 and up to 1, as 0.97.")
    if budget is None:
        return Goal(accuracy=accuracy)
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?(B|KiB|MiB)", budget.strip())
    if size is None:
        raise UserError(f"--budget {budget}: is no size of memory; give a number of B, KiB or MiB, as 24KiB.")
    return Goal(budget=float(size[1]) * UNITS[size[2]])


def size_text(size: float) -> str:
    """Bytes as a person reads them."""
    unit = next((unit for unit in ("MiB", "KiB") if size >= UNITS[unit]), "B")
    return f"{size / UNITS[unit]:.4g} {unit}"


def explore(
    allocations: Allocations, shown: Shown, wanted: Goal, file: Path, key: str, progress: Progress
) -> dict[str, Any]:
    """Measure layer by layer and down to the least memory, and choose for the goal; all that is known then, as JSON
    data. key: of all that decides a measurement; those in the file that have it are not made again.

    Raises UserError for a goal that cannot be reached.
    """
    layers, narrowest = allocations.layers, allocations.uniform(1)
    least = allocations.bytes(narrowest)
    if wanted.budget is not None and wanted.budget < least:
        raise UserError(
            f"--budget {size_text(wanted.budget)}: the weights take at least {size_text(least)}, with 1 bit each; give "
            "no less, or make the network smaller."
        )
    known = {_key(found.allocation): found for found in of_file(file, key)}

    def measure(allocation: Allocation) -> Measured:
        if _key(allocation) not in known:
            known[_key(allocation)] = allocations.measure(allocation, shown.inputs, shown.floats, shown.labels)
        return known[_key(allocation)]

    try:
        chosen = _search(allocations, measure, known.values(), wanted, progress)
    finally:  # stopped or refused, what was measured is kept
        write_json(file, {"key": key, "measured": [asdict(found) for found in known.values()]})
    return {
        "key": key,
        "part": shown.part,
        "samples": len(shown.labels),
        "layers": {name: allocations.weights(name) for name in layers},
        "goal": asdict(wanted),
        "chosen": chosen and asdict(chosen),
        "measured": [asdict(found) for found in known.values()],
    }


def of_file(file: Path, key: str) -> list[Measured]:
    """What was measured for that key."""
    try:
        numbers = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file} cannot be read ({error}); delete it, and all is measured again.") from error
    return [Measured(**found) for found in numbers["measured"]] if numbers.get("key") == key else []


def _search(
    allocations: Allocations, measure: Measure, known: Iterable[Measured], wanted: Goal, progress: Progress
) -> Measured | None:
    what, eight = "sensitivity", allocations.uniform(8)
    best = measure(eight).accuracy
    if wanted.accuracy is not None and wanted.accuracy > best:
        raise UserError(
            f"--accuracy {wanted.accuracy:g}: with 8 bits in every layer it is {best:.4f} of the samples chosen by; "
            "ask for no more, or train further."
        )
    singly = one_layer_at_a_time(allocations.layers)
    sizes = len({stored_bits(bits) for bits in BITS})
    total = len(singly) + (sizes - 1) * len(allocations.layers) + 1
    for done, allocation in enumerate(singly):
        progress(what, done, total, "each layer at every width")
        measure(allocation)
    for step, here in enumerate(descent(measure, eight)):
        progress(what, len(singly) + step, total, f"down to 1 bit: {size_text(here.bytes)}")
    found = None
    if wanted.budget is not None:
        found = best_within(wanted.budget, measure, allocations.bytes, list(known))
    if wanted.accuracy is not None:
        found = smallest_reaching(wanted.accuracy, measure, list(known))
    progress(what, total, total, "")
    return found


def _key(allocation: Allocation) -> tuple[Any, ...]:
    return tuple(allocation.items())
