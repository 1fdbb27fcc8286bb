"""A comparison's pictures: every seed is a point or a thin line, and the baseline stands behind every method in ink."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deploy.pictures import INK, SPIKE, svg
from run.drawing import drawing

PANEL = 2.6  # inches that a panel is wide
ABREAST = 3  # panels
MANY = 10  # places along a curve from which on lines without points are clearer

Rows = Mapping[str, Sequence[float]]  # a quantity's value for each seed, by row


def dots(panels: Mapping[str, Rows], baseline: Collection[str]) -> str:
    """A panel for each quantity, the same rows in each: a point a seed, a bar for the mean, baselines in ink."""
    rows = list(dict.fromkeys(row for panel in panels.values() for row in panel))
    with drawing():
        figure, axes = _grid(len(panels), 0.45 + 0.26 * len(rows), left=1.2)
        for axis, (quantity, panel) in zip(axes, panels.items(), strict=True):
            for place, row in enumerate(rows):
                values = panel.get(row, [])
                colour = INK if row in baseline else SPIKE
                axis.plot(values, [place] * len(values), "o", color=colour, ms=4, alpha=0.55, mew=0)
                if len(values):
                    axis.plot(np.mean(values), place, "|", color=colour, ms=13, mew=2)
            axis.set_title(quantity, loc="left", fontsize=9)
            axis.set_yticks(range(len(rows)), rows)
            axis.set_ylim(len(rows) - 0.4, -0.6)
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.grid(axis="x", color=INK, alpha=0.12, lw=0.5)
            axis.tick_params(axis="y", length=0)
        return svg(figure)


def curves(lines: tuple[Sequence[Any], Mapping[str, np.ndarray]], along: str, up: str) -> str:
    """A panel for each method: mean over seeds, a band of one standard deviation, and every seed.

    lines: the places along the axis, whole numbers or names, and [seeds, places] by method; NaN leaves a gap. The first
    method, the baseline, is drawn in ink into every panel.
    """
    places, methods = lines
    baseline, *others = methods
    numeric = all(isinstance(place, int) for place in places)
    x = np.array(places if numeric else range(len(places)), float)
    shown = others or [baseline]
    with drawing():
        figure, axes = _grid(len(shown), 1.9, left=0.6, sharex=True)
        for axis, name in zip(axes, shown, strict=True):
            _band(axis, x, methods[baseline], INK)
            if name != baseline:
                _band(axis, x, methods[name], SPIKE)
            axis.set_title(name, loc="left", fontsize=9)
            axis.grid(axis="y", color=INK, alpha=0.12, lw=0.5)
            axis.yaxis.set_major_locator(MaxNLocator(4))
            if numeric:
                axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            else:
                axis.set_xticks(x, places)
            axis.tick_params(labelbottom=True)
        figure.supxlabel(along, fontsize=9)
        figure.supylabel(up, fontsize=9)
        return svg(figure)


def _grid(panels: int, height: float, left: float, sharex: bool = False) -> tuple[Figure, Sequence[Axes]]:
    """A figure with so many panels of one vertical scale, at most ABREAST in a row; sizes in inches."""
    abreast = min(ABREAST, panels)
    down = -(-panels // abreast)
    figure = Figure((left + PANEL * abreast, 0.5 + height * down), layout="constrained")
    grid = figure.subplots(down, abreast, sharex=sharex, sharey=True, squeeze=False).ravel()
    for empty in grid[panels:]:
        empty.remove()
    return figure, list(grid[:panels])


def _band(axis: Axes, x: np.ndarray, values: np.ndarray, colour: str) -> None:
    known = np.ma.masked_invalid(values)
    axis.plot(x, values.T, color=colour, lw=0.5, alpha=0.5, marker="o" if len(x) < MANY else "", ms=2.5, mew=0)
    axis.plot(x, known.mean(axis=0), color=colour, lw=1.5)
    if len(values) > 1:
        mean, spread = known.mean(axis=0), known.std(axis=0, ddof=1)
        axis.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
