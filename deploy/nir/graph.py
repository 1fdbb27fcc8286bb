"""Populations and connections as a NIR graph, and what NIR cannot say of them.

NIR's neurons are differential equations. They are written for the tools that step them forward by Euler's rule with
`DT`, as most do, so that one step of theirs is one step here:

    u' = (1 - dt / tau_syn) u + (dt / tau_syn) w_in x            = alpha u + x
    v' = (1 - dt / tau_mem) v + (dt / tau_mem) (v_leak + r u')   = beta v + u' + bias

Weights are what `quantize/folded.py` has, pooling within them. A bias goes in with the weights (`Affine`, `Conv2d`)
where nothing filters the current, else it is `v_leak`. A population that hears itself a step later does so without a
`Delay` node: every tool puts that step into a loop.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import nir
import numpy as np

from base.differences import Difference
from base.errors import UserError
from quantize.folded import FoldedConnection, FoldedLayer
from quantize.integer_network import INPUT

FORMAT, FORMAT_VERSION = "spikeproof-nir", 1
OUTPUT = "output"
DT = 1e-4  # seconds: snnTorch's, which NIR itself does not know
LEAST_LEAK = 2.0**-24  # of tau = dt / leak where nothing leaks: less than float32 can lose in a step


def build(layers: Sequence[FoldedLayer], input_shape: Sequence[int], about: dict[str, Any]) -> nir.NIRGraph:
    """The graph of folded layers, the last one the output; thresholds and biases may be of the layer's whole shape, and
    a connection's weight a number for each input to be multiplied with. `about` goes into its metadata.

    Raises UserError for names that HDF5 cannot hold or that two nodes would share.
    """
    nodes: dict[str, nir.NIRNode] = {INPUT: nir.Input(_numbers(input_shape))}
    edges: list[tuple[str, str]] = []
    end = OUTPUT if all(layer.name != OUTPUT for layer in layers) else f"{OUTPUT}_"

    def add(name: str, node: nir.NIRNode) -> str:
        if name in nodes or name == "." or "\0" in name:
            raise UserError(f"nir: a node cannot be called '{name}', the name is taken or has no place; rename it.")
        nodes[name] = node
        return name

    shapes = {INPUT: tuple(input_shape)} | {layer.name: layer.shape for layer in layers}
    heads = {}  # of each layer the node that its connections lead to
    for layer in layers:
        neurons = _neurons(layer)
        heads[layer.name] = end if neurons is None else add(layer.name, neurons)
    add(end, nir.Output(_numbers(shapes[layers[-1].name])))
    if heads[layers[-1].name] != end:
        edges.append((layers[-1].name, end))
    for layer in layers:
        bias = None if _bias_leaks(layer) else _bias(layer).reshape(layer.shape[0], -1)[:, 0]
        for index, connection in enumerate(layer.connections):
            at, name = connection.source, weights_name(layer.name, index)
            steps = 0 if connection.source == layer.name and connection.delay == 1 else connection.delay
            passed = _before_weights(connection, shapes[at], steps) | {
                "": _weights(connection, shapes[at], bias if index == 0 else None)
            }
            for what, node in passed.items():
                edges.append((at, add(f"{name}{what}", node)))
                at = edges[-1][1]
            edges.append((at, heads[layer.name]))
    described = {"format": FORMAT, "version": FORMAT_VERSION, "dt": DT} | about
    # NIR 1.0.8 does not know the shapes of grouped convolutions and of kernels that are not square.
    return nir.NIRGraph(nodes, edges, described, type_check=False)


def weights_name(layer: str, index: int) -> str:
    """The node that holds the weights of a layer's connection of that index."""
    return f"{layer}.from{index}"


def unsaid(layers: Sequence[FoldedLayer], payload_max: int = 1) -> list[Difference]:
    """What the graph of these layers leaves out, of inputs up to `payload_max`."""
    rows = [Difference("all", "dt", "not in NIR", f"{DT:g} s", f"set it to {DT:g} s where the file is read")]
    if payload_max > 1:
        rows.append(Difference(INPUT, "payload", "spikes", f"values 0..{payload_max}", "feed the values as they are"))
    for layer in layers:

        def row(what: str, theirs: str, ours: str, consequence: str, name: str = layer.name) -> None:
            rows.append(Difference(name, what, theirs, ours, consequence))

        if layer.time_weights is not None:
            row("time weights", "none", f"{len(layer.time_weights)}", "weigh the output's steps, as metadata tells")
        if layer.neuron == "none":
            continue
        if layer.reset != "hard":
            row("reset", "to v_reset, in the spike's step", layer.reset, "other spikes, unless set where it is read")
        if layer.floor:
            row("floor", "none", "0", "other spikes wherever inhibition meets a voltage near 0")
        if np.any(layer.alpha):
            row("order", "not in NIR", "current first, then voltage", "spikes a step late in tools that read it before")
            if np.any(layer.input_is_bias):
                row("input", "filtered as current", "added to the voltage", "another onset of the current")
        if _bias_leaks(layer):
            row("bias", "v_leak", "added to the voltage", "exact by NIR's equations; some tools refuse a v_leak")
    return rows


def in_words(rows: Sequence[Difference]) -> str:
    """The rows in one line: what, and of whom."""
    of: dict[str, list[str]] = {}
    for row in rows:
        of.setdefault(row.what, []).append(row.population)
    whom = {what: "" if names == ["all"] else f" of {', '.join(names)}" for what, names in of.items()}
    return "only in its metadata: " + "; ".join(f"{what}{names}" for what, names in whom.items())


def told(rows: Sequence[Difference]) -> str:
    """The rows as JSON, for metadata."""
    return json.dumps([asdict(row) for row in rows])


def _neurons(layer: FoldedLayer) -> nir.NIRNode | None:
    """The layer's own node; None for a readout whose bias went in with the weights."""
    leaks = _bias_leaks(layer)
    if layer.neuron == "none":  # a leaky integrator whose time constant is one step keeps nothing
        one = np.ones(layer.shape)
        return nir.LI(_real(DT * one), _real(one), _real(_bias(layer))) if leaks else None
    alpha, beta, threshold = (
        np.broadcast_to(np.asarray(value, np.float64), layer.shape)
        for value in (layer.alpha, layer.beta, layer.threshold)
    )
    leak = np.maximum(1 - beta, LEAST_LEAK)
    v_leak = _real(_bias(layer) / leak if leaks else np.zeros(layer.shape))
    fires = {"v_threshold": _real(threshold), "v_reset": _real(np.zeros(layer.shape))}
    if alpha.any():
        filtered = {"tau_syn": _real(DT / (1 - alpha)), "w_in": _real(1 / (1 - alpha))}
        return nir.CubaLIF(tau_mem=_real(DT / leak), r=_real(1 / leak), v_leak=v_leak, **filtered, **fires)
    if (beta == 1).all() and not leaks:
        return nir.IF(r=_real(np.full(layer.shape, 1 / DT)), **fires)
    return nir.LIF(tau=_real(DT / leak), r=_real(1 / leak), v_leak=v_leak, **fires)


def _before_weights(connection: FoldedConnection, shape: tuple[int, ...], steps: int) -> dict[str, nir.NIRNode]:
    """What spikes of a source of that shape pass before their weights, by what it is."""
    passed: dict[str, nir.NIRNode] = {}
    if steps:
        passed[".delay"] = nir.Delay(_real(np.full(shape, steps * DT)))
    if len(shape) > 1 and connection.weight.ndim == 2:
        passed[".flatten"] = nir.Flatten(_numbers(shape), start_dim=0, end_dim=-1)
    return passed


def _weights(connection: FoldedConnection, shape: tuple[int, ...], bias: np.ndarray | None) -> nir.NIRNode:
    weight = _real(connection.weight)
    if weight.ndim == 0:
        return nir.Scale(np.full(shape, weight))
    if weight.ndim == 2:
        return nir.Linear(weight) if bias is None else nir.Affine(weight, _real(bias))
    geometry = connection.geometry
    bias = np.zeros(len(weight)) if bias is None else bias
    spelled = ungrouped(weight, geometry["groups"])
    sizes = (geometry["stride"], geometry["padding"], geometry["dilation"])
    return nir.Conv2d(shape[1:], spelled, *sizes, groups=1, bias=_real(bias))


def ungrouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """The kernel [O, C, kh, kw] that does what [O, C / groups, kh, kw] does in groups, which NIR 1.0.8 cannot check."""
    outputs, channels = weight.shape[0] // groups, weight.shape[1]
    spelled = np.zeros((weight.shape[0], groups * channels, *weight.shape[2:]), weight.dtype)
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        spelled[rows, group * channels : (group + 1) * channels] = weight[rows]
    return spelled


def grouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """`ungrouped`, back."""
    outputs, channels = weight.shape[0] // groups, weight.shape[1] // groups
    return np.concatenate(
        [weight[g * outputs : (g + 1) * outputs, g * channels : (g + 1) * channels] for g in range(groups)]
    )


def _bias(layer: FoldedLayer) -> np.ndarray:
    """The bias of every neuron."""
    bias = layer.bias if layer.bias.shape == layer.shape else layer.bias.reshape(-1, *[1] * (len(layer.shape) - 1))
    return np.broadcast_to(bias, layer.shape)


def _bias_leaks(layer: FoldedLayer) -> bool:
    """Whether the bias cannot go in with the weights: behind them the current is filtered, or it is no bias of rows."""
    bias = _bias(layer).reshape(layer.shape[0], -1)
    weighted = bool(layer.connections) and layer.connections[0].weight.ndim > 0
    return bool(bias.any()) and (bool(np.any(layer.alpha)) or not weighted or bool((bias != bias[:, :1]).any()))


def _real(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


def _numbers(values: Sequence[int]) -> np.ndarray:
    return np.asarray(values, np.int64)
