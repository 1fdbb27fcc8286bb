"""A sensitivity's pictures: layers by widths, and memory against what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deploy.pictures import INK, ONLY_HERE, SPIKE, svg
from run.drawing import drawing

CELL = (0.48, 0.3)  # inches
Points = Sequence[tuple[float, float]]  # KiB of an allocation, and what it costs or reaches


def heat(panels: Mapping[str, np.ndarray], layers: Sequence[str], widths: Sequence[str]) -> str:
    """A panel for each quantity [layers, widths], in percent; the deeper a cell's colour, the further it is from what
    the first width has."""
    with drawing():
        figure = Figure((1.2 + CELL[0] * len(widths) * len(panels), 0.9 + CELL[1] * len(layers)), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (quantity, values) in zip(axes, panels.items(), strict=True):
            moved = np.abs(values - values[:, :1])
            deep = 0.75 * moved / (moved.max() or 1.0)
            for (row, column), value in np.ndenumerate(values):
                axis.fill_between([column, column + 1], row, row + 1, color=SPIKE, alpha=deep[row, column], lw=0)
                axis.text(column + 0.5, row + 0.5, f"{100 * value:.3g}", ha="center", va="center", fontsize=7.5)
            axis.set_title(quantity, loc="left", fontsize=9)
            axis.set_xlim(0, len(widths))
            axis.set_ylim(len(layers), 0)
            axis.set_xticks(np.arange(len(widths)) + 0.5, widths)
            axis.set_yticks(np.arange(len(layers)) + 0.5, layers)
            axis.tick_params(length=0)
        figure.supxlabel("bits of this layer alone", fontsize=9)
        return svg(figure)


def fronts(panels: Mapping[str, tuple[Points, ...]]) -> str:
    """A panel for each quantity over memory: all that was measured, the front, equal widths everywhere, the choice."""
    with drawing():
        figure = Figure((4.2 * len(panels), 3.0), layout="constrained")
        for axis, (quantity, points) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            _front(axis, *(np.array(each, float).reshape(-1, 2) for each in points))
            axis.set_ylabel(quantity)
            axis.set_xlabel("memory of the weights, KiB")
            axis.grid(color=INK, alpha=0.12, lw=0.5)
            axis.xaxis.set_major_locator(MaxNLocator(6))
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
        return svg(figure)


def _front(axis: Axes, measured: np.ndarray, front: np.ndarray, uniform: np.ndarray, chosen: np.ndarray) -> None:
    axis.plot(*measured.T, "o", color=INK, alpha=0.18, ms=3, mew=0, label="measured")
    axis.step(*front.T, where="post", color=SPIKE, lw=1.4, marker="o", ms=3, label="front")
    axis.plot(*uniform.T, "s", color=INK, mfc="none", ms=5, mew=0.8, label="one width everywhere")
    if len(chosen):
        axis.plot(*chosen.T, "*", color=ONLY_HERE, ms=13, mew=0, label="chosen")
