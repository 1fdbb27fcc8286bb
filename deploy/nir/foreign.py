"""NIR files from elsewhere as folded layers, and what the graph leaves open or says otherwise.

A graph has differential equations and no step, and how they are stepped decides the spikes. They are taken as most
tools step them: Euler's rule, the current before the voltage, strictly above the threshold; see `deploy/nir/graph.py`.
What of that NIR does not say, or has to be said otherwise here, is a row of `Foreign.differences`; what cannot be said
here at all is refused by the node's name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from base.differences import Difference
from base.errors import UserError, claims_of, nearest
from deploy import hdf5
from deploy.nir.graph import DT, FORMAT, LEAST_LEAK
from deploy.nir.ways import PASS, ROUNDED, Node, Way, as_weights, by_row, over_rows, shared, span
from quantize import arithmetic as rules
from quantize.folded import FoldedConnection, FoldedLayer
from quantize.integer_network import INPUT

NEURONS = ("IF", "LIF", "CubaLIF")
PARAMETERS = ("tau", "tau_mem", "tau_syn", "r", "w_in", "v_leak", "v_reset", "v_threshold")

Edges = list[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Foreign:
    """Folded layers, the last one the output, of inputs of that shape."""

    layers: tuple[FoldedLayer, ...]
    input_shape: tuple[int, ...]
    differences: tuple[Difference, ...]


def read(path: Path, dt: float = DT, reset: str = "hard") -> Foreign:
    """The network of a NIR file, stepped every `dt` seconds, its neurons reset in that way (of `arithmetic.RESETS`).

    Raises UserError for a file that is no whole graph, and for what the graph says and no layer here can.
    """
    path = Path(path)
    if reset not in rules.RESETS:
        raise UserError(f"unknown reset '{reset}'; {nearest(reset, rules.RESETS)}")
    if not 0 < dt < math.inf:
        raise UserError(f"dt = {dt}: a step takes more than 0 seconds; {DT:g} is snnTorch's.")
    tree = hdf5.read(path, "NIR")
    with claims_of(path, "write it again"):
        nodes, edges = _flat(tree["node"], "")
        found = _Reading(nodes, edges, dt, reset).network()
        return _with_own_neurons(found, tree["node"].get("metadata", {}))


def _with_own_neurons(found: Foreign, about: Any) -> Foreign:
    """Resets and floors from the metadata that `deploy/nir/floats.py` wrote."""
    if not isinstance(about, dict) or str(about.get("format")) != FORMAT or "neurons" not in about:
        return found
    own = {name: (neuron["reset"], neuron["floor"]) for name, neuron in json.loads(about["neurons"]).items()}
    for reset, floor in own.values():
        if reset not in rules.RESETS or not isinstance(floor, bool):
            raise UserError(f"metadata: reset {reset} and floor {floor} are none of this program's; write it again.")
    layers = tuple(
        replace(layer, reset=own[layer.name][0], floor=own[layer.name][1]) if layer.name in own else layer
        for layer in found.layers
    )
    return replace(found, layers=layers, differences=tuple(row for row in found.differences if row.what != "reset"))


def _flat(graph: Node, prefix: str) -> tuple[dict[str, Node], Edges]:
    """Nodes and edges of a graph and of all graphs within it, whose inputs and outputs become nodes that pass on."""
    if graph["type"] != "NIRGraph":
        raise UserError(f"node '{prefix or 'node'}' is a {graph['type']}, no graph; give a whole network.")
    nodes: dict[str, Node] = {}
    inner: Edges = []
    enters, leaves = {}, {}
    for name, node in graph["nodes"].items():
        full = f"{prefix}{name}"
        enters[name] = leaves[name] = full
        if node["type"] != "NIRGraph":
            nodes[full] = node
            continue
        more_nodes, more_edges = _flat(node, f"{full}.")
        ends = {
            kind: [child for child, found in node["nodes"].items() if found["type"] == kind]
            for kind in ("Input", "Output")
        }
        if any(len(names) != 1 for names in ends.values()):
            raise UserError(f"node '{full}' is a graph with inputs {ends['Input']} and outputs {ends['Output']}; "
                            "give it one of each.")  # fmt: skip
        enters[name], leaves[name] = f"{full}.{ends['Input'][0]}", f"{full}.{ends['Output'][0]}"
        for end in (enters[name], leaves[name]):
            more_nodes[end] = {"type": "Identity"}
        if any(child in nodes or child in graph["nodes"] for child in more_nodes):
            raise UserError(f"node '{full}' holds a node whose name, behind its own, is taken; rename it.")
        nodes |= more_nodes
        inner += more_edges
    for a, b in graph["edges"]:
        if a not in leaves or b not in enters:
            raise UserError(f"edge '{prefix}{a}' -> '{prefix}{b}' joins a node that is not there; take it out.")
    return nodes, inner + [(leaves[a], enters[b]) for a, b in graph["edges"]]


class _Reading:
    """A flat graph while it is read."""

    def __init__(self, nodes: dict[str, Node], edges: Edges, dt: float, reset: str) -> None:
        self.nodes, self.dt, self.reset = nodes, dt, reset
        self.into: dict[str, list[str]] = {name: [] for name in nodes}
        for a, b in edges:
            self.into[b].append(a)
        self.neurons = [name for name, node in nodes.items() if node["type"] in NEURONS]
        self.rows = [
            Difference("all", "dt", "not in NIR", f"{dt:g} s", "other decays and delays if it was another: give dt")
        ]
        for name, node in nodes.items():
            if node["type"] not in (*NEURONS, *PASS, "Input", "Output", "Identity"):
                raise UserError(
                    f"node '{name}' is a {node['type']}, which has no integer form here; known are "
                    f"{', '.join((*NEURONS, *PASS))}."
                )

    def network(self) -> Foreign:
        start, end = self.only("Input"), self.only("Output")
        shape = tuple(int(size) for size in np.ravel(self.nodes[start]["shape"]))
        if not shape or min(shape) < 1:
            raise UserError(f"node '{start}': shape {shape} holds no input; every dimension must be at least 1.")
        if INPUT in self.neurons:
            raise UserError(f"node '{INPUT}': neurons cannot be called so, that is the input's name; rename them.")
        shapes = {INPUT: shape}
        chains = {name: [self.chain(before, name) for before in self.into[name]] for name in self.neurons}
        ends = [self.chain(before, end) for before in self.into[end]]
        (source, passed), *others = ends or [(INPUT, [])]
        if others or passed or source == INPUT:
            chains[end], output = ends, end
        else:
            output = source
        layers: dict[str, FoldedLayer] = {}
        waiting = dict(chains)
        while waiting:
            # A population's shape is that of its first chain whose source is known already.
            name = next((name for name, found in waiting.items() if any(s in shapes for s, _ in found)), "")
            if not name:
                raise UserError(f"no way leads from the input to {sorted(waiting)}; join them or leave them out.")
            known = next(found for found in waiting.pop(name) if found[0] in shapes)
            shapes[name] = self.passed(known, shapes[known[0]], name).shape
        for name, found in chains.items():
            layers[name] = self.layer(name, [self.passed(one, shapes[one[0]], name) for one in found], shapes[name])
        return Foreign(self.ordered(layers, output), shape, tuple(self.rows))

    def only(self, kind: str) -> str:
        names = [name for name, node in self.nodes.items() if node["type"] == kind]
        if len(names) != 1:
            raise UserError(f"the graph has {len(names)} nodes of type {kind}, {names}; a network here has one.")
        return names[0]

    def chain(self, at: str, end: str) -> tuple[str, list[str]]:
        """The source that a node hears in the end, and the nodes that its spikes pass on the way."""
        passed: list[str] = []
        while at not in self.neurons and self.nodes[at]["type"] != "Input":
            if at in passed:
                raise UserError(f"node '{at}' hears itself without neurons in between; put some there.")
            passed.append(at)
            before = self.into[at]
            if len(before) != 1:
                raise UserError(
                    f"node '{at}', on the way to '{end}', hears {len(before)} nodes, {before}; currents add up in "
                    "neurons alone here, give each its own way there."
                )
            at = before[0]
        weighed = [name for name in passed[::-1] if self.nodes[name]["type"] != "Identity"]
        return (at if at in self.neurons else INPUT), weighed

    def passed(self, chain: tuple[str, list[str]], shape: tuple[int, ...], end: str) -> Way:
        source, names = chain
        way = Way(source, shape, shape)
        for name in names:
            node = self.nodes[name]
            try:
                way = PASS[node["type"]](way, node, self.dt)
            except UserError as error:
                raise UserError(f"node '{name}', a {node['type']}, {error}") from error
        if way.weight is None:
            way = as_weights(way)
        if source == end and not way.delay:  # every tool puts a step into a loop
            way = replace(way, delay=1)
        return way

    def layer(self, name: str, ways: Sequence[Way], shape: tuple[int, ...]) -> FoldedLayer:
        if any(way.shape != shape for way in ways):
            raise UserError(f"node '{name}' hears shapes {[way.shape for way in ways]}; they must be one.")
        connections = [
            FoldedConnection(way.source, np.asarray(way.weight), way.geometry or {}, way.delay) for way in ways
        ]
        bias = np.sum([np.broadcast_to(way.bias, shape[:1]) for way in ways], axis=0)
        bare = FoldedLayer(name, shape, tuple(connections), bias, 0.0, 1.0, 0.0, neuron="none")
        if name not in self.neurons:
            return bare
        node = self.nodes[name]
        neurons = {what: np.asarray(values, np.float64) for what, values in node.items() if what in PARAMETERS}
        try:
            return self.with_neurons(bare, node["type"], neurons)
        except UserError as error:
            raise UserError(f"node '{name}', a {node['type']}, {error}") from error

    def with_neurons(self, bare: FoldedLayer, kind: str, given: dict[str, np.ndarray]) -> FoldedLayer:
        """The layer, its neurons those of a node of that kind and parameters."""
        shape, bias = bare.shape, bare.bias

        def row(what: str, theirs: str, ours: str, consequence: str) -> None:
            self.rows.append(Difference(bare.name, what, theirs, ours, consequence))

        if given.get("v_reset", np.zeros(1)).any():
            raise UserError(f"has v_reset = {span(given['v_reset'])}; neurons here are reset to 0.")
        row("reset", "to v_reset in the spike's step; NIR has no other", self.reset,
            "other spikes if it was subtracted or came a step late: give reset")  # fmt: skip
        alpha: float | np.ndarray = 0.0
        beta: float | np.ndarray = 1.0
        leaked: np.ndarray | float = 0.0
        if kind == "IF":
            gain = given["r"] * self.dt
            if (given["r"] == 1).all():
                row("r", f"1 a second, {self.dt:g} a step", "1 a step", "as snnTorch and sinabs mean it")
                gain = given["r"]
        else:
            what = "tau" if kind == "LIF" else "tau_mem"
            leak = self.leak(given[what], what, row)
            beta = shared(1 - np.where(leak <= 2 * LEAST_LEAK, 0.0, leak), shape)
            # snnTorch writes infinite tau and r where nothing leaks.
            never = np.isinf(given[what]) & np.isinf(given["r"])
            gain = np.where(never, 1.0, np.where(never, 0.0, given["r"]) * leak)
            if given["v_leak"].any():
                row("v_leak", span(given["v_leak"]), "in the bias", "exact")
                leaked = by_row(given["v_leak"] * leak, shape)
        if kind == "CubaLIF":
            leak = self.leak(given["tau_syn"], "tau_syn", row)
            if not leak.all():
                raise UserError(
                    "has a current that never decays, tau_syn = inf; the chip's loses 1/4096 a step at least."
                )
            alpha = shared(1 - leak, shape)
            gain = gain * given.get("w_in", np.ones(1)) * leak
            row("order", "not in NIR", "current first, then voltage", "other spikes if the voltage came first")
            if bias.any() and np.any(alpha):
                row("bias", "enters the current", "added to the voltage, as what it settles to", "another onset")
                bias = bias / by_row(leak, shape)
        rows = by_row(gain, shape)
        rows = np.where(np.abs(rows - 1) <= ROUNDED, 1.0, rows)
        if (rows != 1).any():
            row("gain", f"{span(rows)} by r, tau and w_in", "in the weights", "exact")
        bias = bias * rows + leaked
        threshold = by_row(given["v_threshold"], shape)
        if not ((threshold > 0) & np.isfinite(threshold)).all() or not np.isfinite(bias).all():
            raise UserError(f"has thresholds of {span(threshold)} and biases of {span(bias)}; they must be above 0, "
                            "and finite.")  # fmt: skip
        if (threshold != threshold[0]).any():
            row("v_threshold", span(threshold), "1, and weights over it", "exact")
            rows, bias, threshold = rows / threshold, bias / threshold, np.ones(1)
        return replace(
            bare,
            connections=tuple(replace(c, weight=over_rows(c.weight, rows)) for c in bare.connections),
            bias=bias,
            alpha=alpha,
            beta=beta,
            threshold=float(threshold[0]),
            reset=self.reset,
            neuron="lif",
        )

    def leak(self, tau: np.ndarray, what: str, row: Callable[[str, str, str, str], None]) -> np.ndarray:
        """The share that is lost in a step."""
        leak = self.dt / tau
        outside = ~((leak >= 0) & (leak <= 1 + ROUNDED))
        if outside.any():
            raise UserError(
                f"has {what} = {tau[outside].flat[0]:g} s, no decay in steps of {self.dt:g} s; read it with a dt of at "
                "most the time constant."
            )
        row(what, f"{span(tau)} s", f"{span(1 - leak)} kept a step", "other decays if it was not Euler's rule")
        return np.minimum(leak, 1.0)

    def ordered(self, layers: dict[str, FoldedLayer], output: str) -> tuple[FoldedLayer, ...]:
        """Each after all that it hears within a step, the output last."""
        waiting = {
            name: {c.source for c in layer.connections if not c.delay} - {INPUT} for name, layer in layers.items()
        }
        done: list[str] = []
        while waiting:
            ready = [name for name, sources in waiting.items() if sources <= set(done)]
            if not ready:
                raise UserError(f"the cycle through {sorted(waiting)} has no delay; put a Delay of a step into it.")
            done += ready
            waiting = {name: sources for name, sources in waiting.items() if name not in ready}
        if any(not c.delay and c.source == output for layer in layers.values() for c in layer.connections):
            raise UserError(f"node '{output}' is the output and heard by others within the step; give it a Delay.")
        return tuple(layers[name] for name in [*(name for name in done if name != output), output])
