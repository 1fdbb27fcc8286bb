"""A comparison's numbers, from its cells alone: means over seeds, and methods tested against the baseline, paired."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from scipy import stats

from run.comparison.plan import Plan
from run.comparison.workers import Measured

CONFIDENCE = 0.95


def numbers(plan: Plan, measured: Measured, failed: dict[str, str]) -> dict[str, Any]:
    """All that the page shows, JSON-ready. What too few cells were made for is None.

    rows: one for each value of the swept key and method. `difference` is of integer test accuracy to the baseline at
    the same value, over the seeds that both have.
    """
    baseline = next(iter(plan.methods))
    rows = []
    for value in plan.values:
        made = {
            name: {
                c.config.seed: measured[c.key]
                for c in plan.cells
                if (c.method, c.value) == (name, value) and c.key in measured
            }
            for name in plan.methods
        }
        rows += [_row(name, value, made[name], made[baseline] if name != baseline else {}) for name in plan.methods]
    return {
        "baseline": baseline,
        "methods": {name: dict(keys) for name, keys in plan.methods.items()},
        "swept": plan.swept,
        "values": list(plan.values),
        "seeds": list(plan.seeds),
        "confidence": CONFIDENCE,
        "rows": rows,
        "failed": [{"cell": str(c), "reason": failed[c.key]} for c in plan.cells if c.key in failed],
        "cells": [
            {"method": c.method, "value": c.value, "seed": c.config.seed, "folder": f"cells/{c.key}", **measured[c.key]}
            for c in plan.cells
            if c.key in measured
        ],
    }


def paired(differences: Sequence[Fraction]) -> dict[str, Any] | None:
    """Mean of paired differences, with Student's t-test of its being 0 (two-sided) and its confidence interval.

    None without a pair; p and interval are None where the differences have no spread to judge the mean by.
    """
    if not differences:
        return None
    mean, p, low, high = float(statistics.mean(differences)), None, None, None
    if min(differences) < max(differences):  # exact, as fractions are: of floats, rounding alone would be a spread
        test = stats.ttest_1samp([float(difference) for difference in differences], 0.0)
        interval = test.confidence_interval(CONFIDENCE)
        p, low, high = float(test.pvalue), float(interval.low), float(interval.high)
    return {"mean": mean, "pairs": len(differences), "p": p, "low": low, "high": high}


def _row(
    method: str, value: Any, made: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    cells = list(made.values())
    both = sorted(made.keys() & baseline.keys())
    return {
        "method": method,
        "value": value,
        "cells": len(cells),
        "accuracy": {
            kind: _spread([cell["accuracy"][kind] for cell in cells]) for kind in ("validation", "float", "integer")
        },
        "difference": paired([_correct(made[seed]) - _correct(baseline[seed]) for seed in both]),
        "rate": _spread([_over_neurons(cell, "integer_rate") for cell in cells]),
        "in_window": _spread([_over_neurons(cell, "in_window") for cell in cells]),
        "seconds_per_epoch": _spread([cell["cost"]["seconds_per_epoch"] for cell in cells]),
        "peak_memory_mib": _spread([cell["cost"]["peak_memory_mib"] for cell in cells]),
    }


def _correct(cell: dict[str, Any]) -> Fraction:
    """Share of test samples that the integers get right, exactly."""
    return Fraction(round(cell["accuracy"]["integer"] * cell["samples"]), cell["samples"])


def _over_neurons(cell: dict[str, Any], quantity: str) -> float | None:
    """A quantity of populations over all neurons of the network; None for a readout alone, which has none."""
    populations = cell["populations"].values()
    if not populations:
        return None
    return sum(p[quantity] * p["neurons"] for p in populations) / sum(p["neurons"] for p in populations)


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation (of a sample: n - 1)."""
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "std": statistics.stdev(known) if len(known) > 1 else None,
    }
