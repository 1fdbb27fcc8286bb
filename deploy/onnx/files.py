"""ONNX files: written whole, and read back into the IntegerNetwork they came from.

Metadata says which network a file claims to hold, and initialisers hold its integers. Neither is believed: `load`
builds the graph of that network anew, and the file must hold the same, node for node. So nothing is run, and no session
made, of a graph that this project did not design.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from base.errors import UserError, claims_of
from base.files import read_bytes, whole_file
from deploy.onnx import integer
from deploy.onnx.backend import executor, run_scan, run_step
from deploy.onnx.graph import FORMAT, FORMAT_VERSION, Step, scan_model, step_model
from quantize import arithmetic, engine
from quantize.integer_network import INPUT, IntegerNetwork, unpack

FILE_MAX = 1 << 28  # bytes
NEURONS_MAX = 1 << 22  # inputs among them; four of Loihi 2's chips
AGAIN = "export it again with 'pipeline.py export onnx'"
FORMS = {"step": step_model, "scan": scan_model}
TRIAL_STEPS = 8


def save(model: ModelProto, path: Path) -> None:
    with whole_file(path) as beside:
        beside.write_bytes(model.SerializeToString(deterministic=True))


def load(path: Path) -> IntegerNetwork:
    """The network in a step or scan graph that `pipeline.py export onnx` wrote, with the hash that it had.

    Raises UserError for a file that is missing, too large, cut or foreign, for a graph that is not the one of its
    network, and where onnxruntime runs it otherwise than the engine does.
    """
    path = Path(path)
    model = _read(path)
    about = {entry.key: entry.value for entry in model.metadata_props}
    if about.get("format") != FORMAT:
        raise UserError(
            f"{path}: is an ONNX graph from elsewhere; only what 'pipeline.py export onnx' writes has a known integer "
            "meaning, rebuild other networks from torch layers (README.md, Your own network)."
        )
    if about.get("version") != str(FORMAT_VERSION):
        raise UserError(f"{path}: is {FORMAT} version {about.get('version')}; this program reads {FORMAT_VERSION}.")
    if "network" not in about:
        raise UserError(f"{path}: holds a float network; only integers can be read back, take step.onnx or scan.onnx.")
    form, body = ("scan", _body(model)) if about.get("graph") == "scan" else ("step", model.graph)
    with claims_of(path, AGAIN):
        network = _network(path, about, body)
        _check_size(path, network)
        step = integer.build(network)
        rebuilt = FORMS[form](step, integer.about(network, step))
    if rebuilt != model:
        raise UserError(
            f"{path}: its graph is not the one of the network it describes, {_first_difference(rebuilt, model, form)} "
            f"is different; only graphs as this program writes them are understood, {AGAIN}."
        )
    _prove(path, network, step, model, form)
    return network


def _read(path: Path) -> ModelProto:
    data = read_bytes(path, FILE_MAX, AGAIN, "network")
    try:
        return onnx.load_model_from_string(data)
    except Exception as error:  # the parser's own errors
        raise UserError(f"{path}: is no whole ONNX file ({type(error).__name__}); {AGAIN}.") from error


def _body(model: ModelProto) -> GraphProto:
    """The graph inside the one node of a scan graph; an empty one where there is none."""
    bodies = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.name == "body"]
    return bodies[0] if bodies else GraphProto()


def _network(path: Path, about: dict[str, str], body: GraphProto) -> IntegerNetwork:
    header, beside = json.loads(about["network"]), json.loads(about["beside"])
    if header.get("arithmetic") != arithmetic.ARITHMETIC_ID:
        raise UserError(f"{path}: is for the arithmetic '{header.get('arithmetic')}', not {arithmetic.ARITHMETIC_ID}.")
    arrays: dict[str, np.ndarray] = {name: np.asarray(values, np.int32) for name, values in beside.items()}
    for tensor in body.initializer:
        if uses_external_data(tensor):
            raise UserError(f"{path}: keeps '{tensor.name}' in another file, which is not followed; {AGAIN}.")
        arrays[tensor.name] = numpy_helper.to_array(tensor)
    for index, _ in enumerate(header["connections"]):
        name = f"connection/{index}/weight"
        arrays[name] = integer.weight_of(arrays[name])
    return unpack(header, arrays)


def _check_size(path: Path, network: IntegerNetwork) -> None:
    shapes: list[Any] = [network.input_shape, *(population.shape for population in network.populations)]
    neurons = sum(math.prod(shape) for shape in shapes)
    if neurons > NEURONS_MAX:
        raise UserError(f"{path}: claims {neurons:,} inputs and neurons, above the {NEURONS_MAX:,} that are read.")


def _first_difference(expected: ModelProto, found: ModelProto, form: str) -> str:
    ours, theirs = ((_body(model) if form == "scan" else model.graph) for model in (expected, found))
    parts: tuple[tuple[str, str, Any, Any], ...] = (
        ("node", "name", ours.node, theirs.node),
        ("initialiser", "name", ours.initializer, theirs.initializer),
        ("metadata", "key", expected.metadata_props, found.metadata_props),
    )
    for kind, called, wanted, given in parts:
        for one, other in zip_longest(wanted, given):
            if one != other:
                return f"{kind} '{getattr(one or other, called)}'"
    return "what surrounds its nodes"


def _prove(path: Path, network: IntegerNetwork, step: Step, model: ModelProto, form: str) -> None:
    """Run the file's graph and the network on random and on full inputs; all that the graph tells must be equal."""
    trial, random = replace(network, time_weights=None), np.random.default_rng(0)
    if network.input_is_bias_of:
        half = 1 << (arithmetic.BIAS_BITS - 1)
        shown = random.integers(-half, half, (1, 2, *network.input_shape)).astype(np.int16)
        inputs = np.repeat(shown, TRIAL_STEPS, axis=0)
    else:
        largest = network.payload_max(INPUT)
        inputs = random.integers(0, largest + 1, (TRIAL_STEPS, 2, *network.input_shape)).astype(np.uint8)
        inputs[:, 1] = largest
    ran = (run_scan if form == "scan" else run_step)(executor(model), step, inputs)
    wanted = engine.run(trial, inputs, states=2)
    expected = {f"{name}/{what}": raster for what in ("u", "v") for name, raster in getattr(wanted, what).items()}
    expected |= {f"{name}/final": trace[-1] for name, trace in expected.items()}
    expected |= {f"{name}/{what}": raster for what in ("spikes", "current") for name, raster in wanted.spikes.items()}
    for name, values in ran.items():
        if name in expected and not np.array_equal(values, expected[name]):
            raise UserError(
                f"{path}: this onnxruntime computes '{name}' otherwise than the engine; install another version of it."
            )
