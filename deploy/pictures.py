"""The report's pictures: each a function from the report's numbers to one SVG, as a data URI that needs nothing else.

Ink is `currentColor`, set inside each SVG for light and dark; marks have middle tones that read on both. Names that a
user chose stay out of the pictures, for fonts lack some of them: they stand in the captions.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from io import StringIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK = "#010203"  # stands for currentColor while matplotlib draws
SPIKE, ONLY_HERE, MISSING = "#4a86d8", "#e0443e", "#e9a13b"
CURRENT, VOLTAGE, THRESHOLD = "#2fa58d", "#4a86d8", "#e0443e"
LINES = (SPIKE, "#e0752d", "#2fa58d", "#a46cc9")
POPULATIONS = (*LINES, "#d6518d", "#8a8f2f", "#3f9fc4", "#9a6b4a")
WIDTH = 4.2  # inches; drawn so that text is readable three pictures abreast and on a phone
ROWS_THICK = 16  # fewer rows are thick enough to be seen without rings around what differs
RINGS_MAX = 60  # with more differing cells, rings would hide the raster

STYLE: Any = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "spikeproof",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}
THEME = "<style>svg{color:#27303b}@media(prefers-color-scheme:dark){svg{color:#d5dce4}}</style>"
FONT = "system-ui,-apple-system,'Segoe UI',Roboto,sans-serif"


def raster(population: dict[str, Any], anchor: str) -> str:
    """One population's spikes in one sample, backends above each other; what differs from `anchor` is coloured."""
    rows = {name: _cells(texts) for name, texts in population["rows"].items()}
    truth = rows[anchor]
    height = 0.95 if len(truth) > ROWS_THICK else 0.75
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 0.45 + (height + 0.28) * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (name, fires) in zip(axes, rows.items(), strict=True):
            picture = np.zeros((*fires.shape, 4))
            picture[fires & truth] = to_rgba(SPIKE)
            picture[fires & ~truth] = to_rgba(ONLY_HERE)
            picture[~fires & truth] = to_rgba(MISSING)
            axis.imshow(picture, aspect="auto", interpolation="none", origin="lower")
            differing = np.argwhere(fires != truth)
            words = f"{name}: {int(fires.sum()):,} spikes"
            if name != anchor:
                words += f", {len(differing):,} cells differ from {anchor}"
            axis.set_title(words, loc="left", fontsize=9)
            if name != "float" and len(fires) > ROWS_THICK and len(differing) <= RINGS_MAX:
                ring = {"s": 70, "facecolors": "none", "edgecolors": ONLY_HERE, "linewidths": 1.2, "clip_on": False}
                axis.scatter(differing[:, 1], differing[:, 0], **ring)
            axis.set_yticks([0, len(fires) - 1] if len(fires) > 1 else [0])
            axis.set_yticklabels([f"{population['neurons'][int(row)]}" for row in axis.get_yticks()])
            axis.tick_params(length=2)
        _steps(axes[-1])
        return _svg(figure)


def trace(traces: Sequence[dict[str, Any]], step: int | None = None) -> str:
    """u and v of one neuron against its threshold, one panel per backend; `step` is marked."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 0.45 + 1.75 * len(traces)), layout="constrained")
        axes = figure.subplots(len(traces), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axis, one in zip(axes, traces, strict=True):
            steps = np.arange(len(one["v"]))
            # Each step has two voltages, before and after the reset: the fall between them is the spike.
            axis.plot(
                np.repeat(steps, 2), np.ravel([one["voltage"], one["v"]], order="F"), color=VOLTAGE, lw=1.3, label="v"
            )
            axis.plot(steps, one["u"], color=CURRENT, lw=1.0, drawstyle="steps-mid", label="u")
            axis.axhline(one["threshold"], color=THRESHOLD, lw=0.9, ls=(0, (4, 3)), label="threshold")
            fired = np.flatnonzero(one["spikes"])
            axis.plot(fired, np.array(one["voltage"])[fired], "v", color=VOLTAGE, ms=5, label="spike")
            if step is not None:
                axis.axvspan(step - 0.5, step + 0.5, color=MISSING, alpha=0.25, lw=0)
            axis.margins(y=0.15)
            axis.set_title(one["backend"], loc="left", fontsize=9)
            axis.grid(axis="y", color=INK, alpha=0.12, lw=0.5)
            axis.yaxis.set_major_locator(MaxNLocator(4))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False, fontsize=8
        )
        _steps(axes[-1])
        return _svg(figure)


def weights(values: Sequence[int], counts: Sequence[int]) -> str:
    """Histogram of one connection's weights, a bar for each integer of the grid."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 1.9), layout="constrained")
        axis = figure.subplots()
        axis.bar(values, counts, width=2, color=SPIKE, lw=0)
        axis.set_xlim(-260, 258)
        axis.set_xticks([-256, -128, 0, 128, 254])
        axis.set_xlabel("weight (even integers)")
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.grid(axis="y", color=INK, alpha=0.12, lw=0.5)
        return _svg(figure)


def ranges(rows: Sequence[dict[str, Any]]) -> str:
    """One population's quantities as shares of their registers: what none can leave, in it what was observed."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 0.55 + 0.34 * len(rows)), layout="constrained")
        axis = figure.subplots()
        for place, row in enumerate(rows):
            least, most = row["limit"]
            colour = {"proven": SPIKE, "undecided": MISSING, "refuted": ONLY_HERE}[row["answer"]]
            for values, height, alpha in ((row["bound"], 0.7, 0.4), (row["observed"], 0.3, 1.0)):
                if values is not None:
                    low, high = (value / (-least if value < 0 else most) for value in values)
                    axis.barh(place, high - low, height, low, color=colour, alpha=alpha, lw=0)
        for limit in (-1, 1):
            axis.axvline(limit, color=THRESHOLD, lw=0.9, ls=(0, (4, 3)))
        axis.set_yticks(range(len(rows)), [row["quantity"] for row in rows])
        axis.invert_yaxis()
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axis.grid(axis="x", color=INK, alpha=0.12, lw=0.5)
        return _svg(figure)


def time_weights(integers: Sequence[int], unity: int) -> str:
    """How much more or less than 1 each step of the output counts."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 1.9), layout="constrained")
        axis = figure.subplots()
        axis.bar(range(len(integers)), np.divide(integers, unity) - 1, width=0.8, bottom=1, color=SPIKE, lw=0)
        axis.axhline(1, color=INK, lw=0.6)
        axis.set_ylabel("weight")
        axis.yaxis.set_major_locator(MaxNLocator(4))
        axis.grid(axis="y", color=INK, alpha=0.12, lw=0.5)
        _steps(axis)
        return _svg(figure)


def learning(curves: dict[str, dict[str, list[Any]]]) -> str:
    """Learning curves over epochs: a panel per kind of metric, a line per metric; None leaves a gap."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 0.4 + 1.75 * len(curves)), layout="constrained")
        axes = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (kind, lines) in zip(axes, curves.items(), strict=True):
            for index, (name, values) in enumerate(lines.items()):
                heights = np.array([np.nan if value is None else value for value in values], float)
                epochs = np.arange(1, len(values) + 1)
                axis.plot(epochs, heights, color=LINES[index % len(LINES)], lw=1.4, marker="o", ms=2.5, label=name)
            axis.set_title(kind, loc="left", fontsize=9)
            axis.grid(axis="y", color=INK, alpha=0.12, lw=0.5)
            axis.legend(frameon=False, fontsize=8)
            axis.yaxis.set_major_locator(MaxNLocator(4))
        axes[-1].set_xlabel("epoch")
        axes[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
        return _svg(figure)


def population_colours(placement: dict[str, Any]) -> dict[str, str]:
    """The colour of each population in `cores`; beyond eight they repeat."""
    names = [row["population"] for row in placement["populations"]]
    return {name: POPULATIONS[number % len(POPULATIONS)] for number, name in enumerate(names)}


def cores(placement: dict[str, Any]) -> str:
    """Every core a square, filled as far as its fullest limit is, in the colour of the population with most neurons
    there; every chip starts a row."""
    colours, columns = population_colours(placement), 16
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        axis = figure.subplots()
        row, column, chip = 0, 0, 0
        for core in placement["utilisation"]:
            if column == columns or core["chip"] != chip:
                row, column = row + 1 + (core["chip"] != chip), 0
            chip = core["chip"]
            largest = max(core["parts"], key=lambda part: part["neurons"])["population"]
            fill = min(1.0, max(core["shares"].values(), default=0.0))
            axis.add_patch(Rectangle((column, -row), 0.86, 0.86 * fill, color=colours[largest], lw=0))
            axis.add_patch(Rectangle((column, -row), 0.86, 0.86, fill=False, ec=INK, lw=0.4))
            column += 1
        axis.set_xlim(-0.1, columns)
        axis.set_ylim(-row - 0.1, 1)
        axis.set_aspect("equal")
        axis.axis("off")
        figure.set_size_inches(WIDTH, max(0.5, WIDTH * (row + 1.1) / columns))
        return _svg(figure)


def traffic(pairs: Sequence[Sequence[float]], size: int, unit: str) -> str:
    """From which core (rows, the last one the host) to which how much goes; white is nothing."""
    amounts = np.full((size + 1, size), np.nan)
    for source, target, amount in pairs:
        amounts[int(source), int(target)] = amount
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 3.3), layout="constrained")
        axis = figure.subplots()
        shown = axis.imshow(amounts, cmap="viridis", norm=LogNorm() if pairs else None, interpolation="none")
        axis.set_xlabel("to core")
        axis.set_ylabel("from core; last row: the host")
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        bar = figure.colorbar(shown, ax=axis, shrink=0.8, label=unit)
        bar.formatter = bar.minorformatter = FuncFormatter(lambda value, _: f"{value:,g}")
        return _svg(figure)


def _cells(texts: Sequence[str]) -> np.ndarray:
    """Rows of '0' and '1' as booleans [neurons, steps]."""
    return np.array([[mark == "1" for mark in text] for text in texts], bool)


def _steps(axis: Axes) -> None:
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def svg(figure: Figure) -> str:
    """The figure as the text of an SVG, its ink light or dark as the reader's screen is."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
    drawn = re.sub(r"(font: [^'\";]*px) [^;\"]*", rf"\1 {FONT}", drawn)
    return re.sub(r"(<svg[^>]*>)", rf"\1{THEME}", drawn, count=1)


def _svg(figure: Figure) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg(figure).encode()).decode()
