"""The integer network as a NIR graph, in units of activation: weights times the power of two of their exponent,
threshold mantissas, biases over 64, decays over 4096 as time constants.

All but the time constants are exact in float32. Who reads the graph without its metadata sees this network in real
numbers: sums and shifts that do not round, decays that do not truncate, states that neither wrap nor saturate. Metadata
has the contract: the arithmetic, each population's registers, reset and floor, exponents, delays, payload bits, and the
network's hash.
"""

from __future__ import annotations

import json
from typing import Any

import nir
import numpy as np

from base.differences import Difference
from deploy.nir.graph import build, grouped, told, unsaid, weights_name
from quantize import arithmetic as rules
from quantize.folded import FoldedConnection, FoldedLayer
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population, pack, unpack

ROUNDING = (
    "decayed states truncate towards zero, negative exponents shift the sum towards minus infinity, current wraps and "
    "voltage saturates at 24 bits; activation 1 is 64 in state units, as is threshold 1"
)
STATE_UNIT = 1 << rules.STATE_SHIFT


def graph_of(network: IntegerNetwork) -> tuple[nir.NIRGraph, list[Difference]]:
    """The network's graph, and what of it only the metadata say. Raises UserError for names that NIR cannot hold."""
    layers = _layers(network)
    rows = [
        *unsaid(layers, 1 if network.input_is_bias_of else network.payload_max(INPUT)),
        Difference("all", "arithmetic", "real numbers", rules.ARITHMETIC_ID, "near, not equal, but here"),
    ]
    header, arrays = pack(network)
    registers: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        if name.startswith("population/"):
            _, population, field = name.split("/")
            registers.setdefault(population, {})[field] = array if array.ndim else array[()]
    about = {
        "arithmetic": rules.ARITHMETIC_ID,
        "rounding": ROUNDING,
        "network": json.dumps(header),
        "network_sha256": network.hash,
        "registers": registers,
        "unsaid": told(rows),
    }
    if network.time_weights is not None:
        about["time_weights"] = network.time_weights
    return build(layers, network.input_shape, about), rows


def network_of(node: dict[str, Any]) -> IntegerNetwork:
    """The network of a graph's metadata and weights, which may contradict the rest of the graph.

    Raises any exception for a node that is no such graph, and UserError for what is no IntegerNetwork.
    """
    about = node["metadata"]
    header = json.loads(about["network"])
    arrays = {
        f"population/{population}/{field}": np.asarray(array)
        for population, fields in about["registers"].items()
        for field, array in fields.items()
    }
    if "time_weights" in about:
        arrays["time_weights"] = about["time_weights"]
    counted: dict[str, int] = {}
    for index, stored in enumerate(header["connections"]):
        target = stored["target"]
        name = weights_name(target, counted.get(target, 0))
        counted[target] = counted.get(target, 0) + 1
        real = np.asarray(node["nodes"][name]["weight"], np.float64) / 2.0 ** stored["exponent"]
        whole = real.astype(np.int64)
        if (whole != real).any():
            raise ValueError(f"the weights of '{name}' are no integers")
        arrays[f"connection/{index}/weight"] = grouped(whole, stored["groups"]) if whole.ndim == 4 else whole
    return unpack(header, arrays)


def numbers_in_graph(network: IntegerNetwork) -> int:
    """How many numbers the graph of the network has, at least."""
    delayed = sum(int(np.prod(network.shape_of(c.source))) for c in network.connections if c.delay > 1)
    weights = sum(c.weight.size * (c.groups if c.is_conv else 1) for c in network.connections)
    return delayed + weights + sum(population.size for population in network.populations if population.spiking)


def _layers(network: IntegerNetwork) -> list[FoldedLayer]:
    return [_layer(network, network[name]) for name in network.order if name != network.output] + [
        _layer(network, network[network.output])
    ]


def _layer(network: IntegerNetwork, population: Population) -> FoldedLayer:
    name, threshold = population.name, population.threshold_mant
    loaded = []
    if name == network.input_is_bias_of:
        loaded = [FoldedConnection(INPUT, np.asarray(2.0**population.bias_exp / STATE_UNIT))]
    real: Any = threshold  # one for each neuron: a graph can say that
    return FoldedLayer(
        name,
        population.shape,
        (*(_connection(connection) for connection in network.into(name)), *loaded),
        np.broadcast_to(population.bias / STATE_UNIT, population.shape),
        alpha=population.alpha,
        beta=population.beta,
        threshold=real,
        reset=population.reset,
        floor=population.floor,
        neuron=population.neuron,
        time_weights=network.time_weights if name == network.output else None,
        input_is_bias=bool(loaded),
    )


def _connection(connection: Connection) -> FoldedConnection:
    names = ("stride", "padding", "dilation", "groups") if connection.is_conv else ()
    geometry = {name: getattr(connection, name) for name in names}
    weight = connection.weight * 2.0**connection.exponent
    return FoldedConnection(connection.source, weight, geometry, connection.delay)
