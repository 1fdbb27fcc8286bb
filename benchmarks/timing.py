"""Works that take turns, the ratios of their times, and the one file in which every benchmark stores such ratios.

Only ratios of one run are kept: seconds depend on the machine and on what else it does. The file is JSON:

    {"command": "...", "machine": {...}, "ratios": {NAME: {"ratio": x, "lower_is_better": true, "spread": [lo, hi]}}}
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from base.files import write_json

PACKAGES = ("numpy", "numba", "torch")  # that decide how fast we are


class Ratio(NamedTuple):
    """The median over rounds, and the quartiles between which half of the rounds lie."""

    ratio: float
    spread: tuple[float, float]
    lower_is_better: bool = True


def interleaved(
    rounds: int, works: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every work in every round, all works once in each, after one round that is not counted.

    clock: `time.process_time` for works of one thread, which what else runs on the machine then disturbs less.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            began = clock()
            work()
            if turn:
                times[name].append(clock() - began)
    return times


def ratio(times: Sequence[float], others: Sequence[float], lower_is_better: bool = True) -> Ratio:
    """The times over those of another work, round by round."""
    low, median, high = np.percentile(np.divide(times, others), [25, 50, 75]).tolist()
    return Ratio(median, (low, high), lower_is_better)


def write(path: Path, command: str, ratios: Mapping[str, Ratio]) -> None:
    """The file of a run. command: what makes it anew."""
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }
    write_json(
        path,
        {"command": command, "machine": machine, "ratios": {name: found._asdict() for name, found in ratios.items()}},
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
