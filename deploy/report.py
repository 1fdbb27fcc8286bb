"""The report: one self-contained HTML page for people, and its JSON twin with every number on it.

The numbers are gathered once (`numbers`): the twin is exactly they, and the page is drawn from nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from base.errors import UserError
from base.files import write_json, write_text
from deploy import pictures
from deploy.causes import voltage_before_reset
from deploy.chip import words
from deploy.verify import Comparison, describe
from quantize.arithmetic import ARITHMETIC_ID, STATE_SHIFT, TIME_WEIGHT_UNITY
from quantize.integer_network import Connection, IntegerNetwork, Population
from quantize.recording import Recording, predictions

FORMAT = "spikeproof-report"
FORMAT_VERSION = 1
RASTER_NEURONS = 96  # more rows than that are thinner than a pixel
SHOWN_POPULATIONS = 4  # in rasters and traces: the first ones and the output
FLOAT = "float"


@dataclass(frozen=True)
class ReportData:
    """Everything that a run has to show.

    `recordings` are keyed by backend, "float" among them or not, u and v present for the first samples of some;
    `inputs` [T, B, *input_shape] and classes `labels` [B] are those of the recorded samples, `scales` rows of free
    columns, `training` metrics per epoch, `bounds` rows of each population's quantities and `range` what was proven of
    them, as the verdict has it. `differences` between neurons of another framework and these, and the `ways` to deploy
    a network that was trained there, are rows too; `chip` is the summary of `deploy/chip/summary.py`, or empty.
    """

    title: str
    config: dict[str, Any]
    network: IntegerNetwork
    inputs: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]
    recordings: dict[str, Recording]
    comparisons: list[Comparison]
    accuracy: dict[str, float]
    fidelity: dict[str, Any]
    scales: list[dict[str, Any]]
    seconds: dict[str, float]
    versions: dict[str, str]
    training: list[dict[str, Any]]
    bounds: list[dict[str, Any]]
    range: dict[str, Any]
    chip: dict[str, Any] = field(default_factory=dict)
    differences: list[dict[str, Any]] = field(default_factory=list)
    ways: list[dict[str, Any]] = field(default_factory=list)


def write(data: ReportData, folder: Path) -> Path:
    """Write `report.html` and `report.json` into the folder and return the page's path.

    Raises UserError where no integer recording is given, or the labels are not one per sample.
    """
    page = numbers(data)
    templates = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=templates, autoescape=True, undefined=StrictUndefined)
    html = environment.get_template("report.html.j2").render(page=page, pictures=pictures, words=words)
    write_json(folder / "report.json", page)
    write_text(folder / "report.html", html)
    return folder / "report.html"


def numbers(data: ReportData) -> dict[str, Any]:
    """All that the page shows, JSON-ready; a float that JSON cannot hold is None."""
    integer = {name: recording for name, recording in data.recordings.items() if name != FLOAT}
    if not integer:
        raise UserError("report: there is no recording of the integer network; run 'deploy' first.")
    anchor = next((name for name in ("reference", "engine") if name in integer), next(iter(integer)))
    truth, network = data.recordings[anchor], data.network
    if np.shape(data.labels) != (truth.samples,):
        raise UserError(
            f"report: there are labels of shape {np.shape(data.labels)} for {truth.samples} recorded samples; "
            "give one class per sample."
        )
    divergences = [c.first_divergence for c in data.comparisons if c.first_divergence]
    sample = divergences[0].sample if divergences else 0
    firing = [name for name in network.order if network[name].spiking]
    shown = firing if len(firing) <= SHOWN_POPULATIONS else [*firing[: SHOWN_POPULATIONS - 1], firing[-1]]
    confusion = _confusion(data, anchor)
    page = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "title": data.title,
        "verdict": _verdict(data),
        "anchor": anchor,
        "comparisons": [
            c.to_json() | {"text": describe(c), "traces": _divergence_traces(data, c)} for c in data.comparisons
        ],
        "accuracy": data.accuracy,
        "differences": data.differences,
        "ways": data.ways,
        "fidelity": data.fidelity,
        "integers": {
            "populations": [_population_row(network, population) for population in network.populations],
            "connections": [_connection_row(connection) for connection in network.connections],
            "scales": data.scales,
            "time_weights": network.time_weights,
            "time_weight_unity": TIME_WEIGHT_UNITY,
        },
        "range": data.range,
        "bounds": {
            name: [row for row in data.bounds if row["population"] == name]
            for name in dict.fromkeys(row["population"] for row in data.bounds)
        },
        "weights": [
            {"connection": f"{c.source} → {c.target}", "values": values, "counts": counts}
            for c in network.connections
            for values, counts in [np.unique(c.weight, return_counts=True)]
        ],
        "rates": [
            {"population": p.name, "neurons": p.size}
            | {
                name: float(recording.spikes[p.name].mean())
                for name, recording in data.recordings.items()
                if p.name in recording.spikes
            }
            for p in network.populations
            if p.spiking
        ],
        "rasters": {
            "sample": sample,
            "label": confusion["classes"][int(data.labels[sample])],
            "populations": [_raster(data, anchor, name, sample) for name in shown],
        },
        "traces": _traces(data, anchor, shown, sample),
        "confusion": confusion,
        "chip": data.chip,
        "curves": _curves(data.training),
        "training": data.training,
        "seconds": data.seconds,
        "config": data.config,
        "versions": data.versions,
        "hashes": {"network": network.hash, "input": truth.inputs}
        | {f"recording: {name}": recording.hash for name, recording in data.recordings.items()},
    }
    return _plain(page)


def _verdict(data: ReportData) -> dict[str, Any]:
    comparisons = data.comparisons
    word = "NOT COMPARED" if not comparisons else "EQUAL" if all(c.equal for c in comparisons) else "DIFFERENT"
    backends = list(dict.fromkeys(name for c in comparisons for name in (c.a, c.b)))
    meaning = (
        "Equal means: the same spike of every neuron, at every step, for every sample, and the same u and v "
        "wherever both sides recorded them. Nothing is tolerated."
    )
    if any(name.startswith("lava") for name in backends):
        release = data.versions.get("lava-nc", "0.10.0")
        meaning += f" Lava is the simulator of lava-nc {release}; nothing here ran on silicon."
    else:
        meaning += " Lava was not among the backends compared."
    totals = ("spikes_compared", "spikes_different", "states_compared", "states_different")
    counts = {total: sum(getattr(c, total) for c in comparisons) for total in totals}
    return {"word": word, "backends": backends, "meaning": meaning, "arithmetic": ARITHMETIC_ID} | counts


def _population_row(network: IntegerNetwork, population: Population) -> dict[str, Any]:
    neuron = {
        "decay_u": _range(population.decay_u),
        "decay_v": _range(population.decay_v),
        "threshold": _range(population.threshold_mant),
        "reset": population.reset,
        "floor at 0": "yes" if population.floor else "no",
    }
    return {
        "population": population.name,
        "shape": " × ".join(map(str, population.shape)),
        "bias": "the input" if population.name == network.input_is_bias_of else _range(population.bias_mant),
        "bias exponent": population.bias_exp,
    } | (neuron if population.spiking else dict.fromkeys(neuron, "–"))


def _connection_row(connection: Connection) -> dict[str, Any]:
    geometry = [
        f"{name} {value[0]}" if value[0] == value[1] else f"{name} {value}"
        for name, usual in (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1)))
        for value in [getattr(connection, name)]
        if value != usual
    ]
    geometry += [f"groups {connection.groups}"] if connection.groups > 1 else []
    return {
        "connection": f"{connection.source} → {connection.target}",
        "kind": "convolution" if connection.is_conv else "dense",
        "weights": " × ".join(map(str, connection.weight.shape)),
        "range": _range(connection.weight),
        "zero": f"{float((connection.weight == 0).mean()):.1%}",
        "exponent": connection.exponent,
        "largest row sum": int(connection.row_sums.max()),
        "delay": connection.delay,
        "geometry": ", ".join(geometry) or "–",
    }


def _raster(data: ReportData, anchor: str, name: str, sample: int) -> dict[str, Any]:
    """Spikes of one sample, at most RASTER_NEURONS neurons: those where integer backends differ, then evenly spread."""
    rows = {
        backend: recording.spikes[name][:, sample].reshape(recording.steps, -1).T.astype(bool)
        for backend, recording in data.recordings.items()
        if name in recording.spikes
    }
    truth = rows[anchor]
    differing = sum(
        ((fires != truth).any(axis=1) for backend, fires in rows.items() if backend != FLOAT),
        np.zeros(len(truth), bool),
    )
    first = np.flatnonzero(differing)[:RASTER_NEURONS]
    others = np.setdiff1d(np.arange(len(truth)), first)
    room = min(RASTER_NEURONS, len(truth)) - len(first)
    spread = others[np.linspace(0, len(others) - 1, room).round().astype(int)] if room else others[:0]
    neurons = np.sort(np.concatenate([first, spread]))
    texts = {b: ["".join("01"[int(s)] for s in row) for row in fires[neurons]] for b, fires in rows.items()}
    return {"population": name, "size": len(truth), "neurons": neurons, "rows": texts}


def _traces(data: ReportData, anchor: str, shown: Sequence[str], sample: int) -> list[dict[str, Any]]:
    """Two neurons of each shown population, the one that fires most and a middling one, in a sample with states."""
    recordings = data.recordings
    integer = [recordings[anchor], *(r for name, r in recordings.items() if name != FLOAT)]
    recording = next((r for r in integer if all(_has_states(r, name, 0) for name in shown)), None)
    if recording is None or not shown:
        return []
    sample = sample if _has_states(recording, shown[0], sample) else 0
    chosen = []
    for name in shown:
        counts = recording.spikes[name][:, sample].sum(axis=0, dtype=np.int64).ravel()
        by_count = np.argsort(-counts, kind="stable")
        middle = by_count[np.count_nonzero(counts) // 2]
        for flat in dict.fromkeys((int(by_count[0]), int(middle))):
            neuron = tuple(int(i) for i in np.unravel_index(flat, data.network[name].shape))
            chosen.append(_trace(data, name, recording, sample, neuron))
    return chosen


def _divergence_traces(data: ReportData, comparison: Comparison) -> list[dict[str, Any]]:
    """u and v of the diverging neuron over the whole sample, of each side that recorded them."""
    where = comparison.first_divergence
    if where is None:
        return []
    return [
        _trace(data, where.population, recording, where.sample, where.neuron)
        for side in (comparison.a, comparison.b)
        for recording in [data.recordings.get(side)]
        if recording and _has_states(recording, where.population, where.sample)
    ]


def _has_states(recording: Recording, population: str, sample: int) -> bool:
    return all(population in traces and traces[population].shape[1] > sample for traces in (recording.u, recording.v))


def _trace(data: ReportData, name: str, recording: Recording, sample: int, neuron: tuple[int, ...]) -> dict[str, Any]:
    population = data.network.with_bias(name, data.inputs[0, sample])
    u, v = (traces[population.name][:, sample].astype(np.int64) for traces in (recording.u, recording.v))
    voltage = voltage_before_reset(population, u, np.concatenate([np.zeros_like(v[:1]), v[:-1]]))
    at: tuple[slice | int, ...] = (slice(None), *neuron)
    return {
        "backend": recording.backend,
        "population": population.name,
        "sample": sample,
        "neuron": neuron,
        "threshold": int(np.broadcast_to(population.threshold_mant, population.shape)[neuron]) << STATE_SHIFT,
        "u": u[at],
        "v": v[at],
        "voltage": voltage[at],
        "spikes": recording.spikes[population.name][:, sample][at],
    }


def _confusion(data: ReportData, anchor: str) -> dict[str, Any]:
    """Counts [true class, predicted class] of the integer network on the recorded samples."""
    predicted = predictions(data.recordings[anchor], data.network)
    labels = np.asarray(data.labels)
    classes = max(data.network.shape_of(data.network.output)[-1], int(labels.max()) + 1)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    names = [str(name) for name in data.class_names][:classes]
    return {"backend": anchor, "classes": names + [str(i) for i in range(len(names), classes)], "counts": counts}


def _curves(training: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """The metrics whose names hold 'loss' or 'accuracy', each over the epochs."""
    names = dict.fromkeys(name for epoch in training for name in epoch)
    kinds = {kind: [name for name in names if kind in name] for kind in ("loss", "accuracy")}
    return {
        kind: {name: [epoch.get(name) for epoch in training] for name in members}
        for kind, members in kinds.items()
        if members
    }


def _range(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} … {high:,}"


def _plain(value: Any) -> Any:
    """The value in JSON's own types: arrays as lists, unknown types as text, non-finite floats as None."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | bool | int) else str(value)
