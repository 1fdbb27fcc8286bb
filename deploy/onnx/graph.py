"""One time step of a network as ONNX nodes, and the two models that hold it.

    step model   states and one step's input in; the next states, and what every population emits, out
    scan model   initial states and all steps' input in; final states, and everything emitted [T, B, ...], out

The body of the scan model's only node is the step model's graph, so that proving one proves the other. Standard
operators of opset 18, nothing else. T and B are free; all states start from zero.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET, IR_VERSION = 18, 8  # the first opset with BitwiseAnd
FORMAT, FORMAT_VERSION = "spikeproof-onnx", 1  # another version whenever a network would get another graph
TIME, BATCH = "T", "B"
INPUT = "input"
TIME_STEP = (
    "Layer time: a population sees what its source emits in the same step, or `delay` steps before. In a step: current "
    "u, voltage v, spike where v > threshold, reset (late ones in v of the step after). States start from 0."
)


@dataclass(frozen=True)
class Value:
    """A named tensor of one step; BATCH stands in its shape where the samples are."""

    name: str
    dtype: Any
    shape: tuple[int | str, ...]

    def info(self, suffix: str = "", every_step: bool = False) -> ValueInfoProto:
        shape = (TIME, *self.shape) if every_step else self.shape
        return helper.make_tensor_value_info(self.name + suffix, onnx_type(self.dtype), shape)


@dataclass
class Step:
    """The graph of one step while it is built.

    Values are called "<population>/<what>". Initialisers of the network's own arrays have the names that these have in
    `network.npz`; other constants are called by their value. `emitted` are spikes, uint8 [B, *shape], or a readout's
    current.
    """

    input: Value
    states: list[Value] = field(default_factory=list)
    emitted: list[Value] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)
    initialisers: dict[str, TensorProto] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node whose one output has that name; returns the name."""
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def array(self, name: str, values: np.ndarray) -> str:
        self.initialisers[name] = numpy_helper.from_array(values, name)
        return name

    def number(self, value: float, dtype: Any = np.int32) -> str:
        return self.array(f"constant/{np.dtype(dtype).name}/{value}", np.asarray(value, dtype))

    def indices(self, *values: int) -> str:
        """A list of axes or bounds, as operators take them."""
        return self.array(f"constant/indices/{','.join(map(str, values))}", np.array(values, np.int64))

    def state(self, name: str, dtype: Any, shape: Sequence[int]) -> str:
        """A value that the step before left; a node named "<name>/next" must make the one for the step after."""
        self.states.append(Value(name, dtype, (BATCH, *shape)))
        return name

    def emit(self, name: str, dtype: Any, shape: Sequence[int]) -> None:
        self.emitted.append(Value(name, dtype, (BATCH, *shape)))

    def remember(self, connections: Iterable[Any], shape_of: Callable[[str], Sequence[int]]) -> None:
        """Keep what sources emitted for as many steps as connections are late: [steps, B, *shape], the latest first."""
        for connection in connections:
            if connection.delay:
                self.depths[connection.source] = max(connection.delay, self.depths.get(connection.source, 0))
        for source, depth in self.depths.items():
            self.states.append(Value(f"{source}/past", np.uint8, (depth, BATCH, *shape_of(source))))

    def heard(self, source: str, delay: int) -> str:
        """What that source emitted so many steps ago: zeros before the first."""
        if not delay:
            return spikes_of(source)
        name = f"{source}/past/{delay}"
        if all(node.name != name for node in self.nodes):
            self.add(name, "Gather", f"{source}/past", self.number(delay - 1, np.int64), axis=0)
        return name

    def pass_on(self) -> None:
        """Move all that is remembered by one step."""
        for source, depth in self.depths.items():
            past = f"{source}/past"
            latest = self.add(f"{past}/latest", "Unsqueeze", spikes_of(source), self.indices(0))
            longer = self.add(f"{past}/longer", "Concat", latest, past, axis=0)
            bounds = (self.indices(0), self.indices(depth), self.indices(0))
            self.add(f"{past}/next", "Slice", longer, *bounds)

    def zeros(self, samples: int) -> dict[str, np.ndarray]:
        """The states of so many samples before the first step."""
        return {
            state.name: np.zeros([samples if size == BATCH else int(size) for size in state.shape], state.dtype)
            for state in self.states
        }


def reset(step: Step, to: str, v: str, fired: str, threshold: str, kind: str, dtype: Any) -> str:
    """v, where it fired 0 (hard) or less the threshold (soft), under the name `to`."""
    after = step.number(0, dtype) if kind.startswith("hard") else step.add(f"{to}/less", "Sub", v, threshold)
    return step.add(to, "Where", fired, after, v)


def spikes_of(source: str) -> str:
    return INPUT if source == INPUT else f"{source}/spikes"


def onnx_type(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def step_model(step: Step, about: Mapping[str, str]) -> ModelProto:
    """The model of one step; `about` goes into its metadata."""
    return _model(_step_graph(step), step, {"graph": "step"} | dict(about))


def scan_model(step: Step, about: Mapping[str, str], traces: bool = False) -> ModelProto:
    """The model of all steps; with `traces` it also tells u and v after every step."""
    traced = [state for state in step.states if traces and state.name.endswith(("/u", "/v"))]
    told = [*step.emitted, *traced]
    scan = helper.make_node(
        "Scan",
        [*(f"{state.name}/initial" for state in step.states), f"{step.input.name}/steps"],
        [*(f"{state.name}/final" for state in step.states), *(f"{value.name}/steps" for value in told)],
        name="time",
        num_scan_inputs=1,
        body=_step_graph(step, traced),
    )
    graph = helper.make_graph(
        [scan],
        "scan",
        [*(state.info("/initial") for state in step.states), step.input.info("/steps", every_step=True)],
        [*(state.info("/final") for state in step.states), *(value.info("/steps", every_step=True) for value in told)],
    )
    return _model(graph, step, {"graph": "scan"} | dict(about))


def _step_graph(step: Step, traced: Iterable[Value] = ()) -> GraphProto:
    copies = [
        helper.make_node("Identity", [f"{state.name}/next"], [f"{state.name}/trace"], name=f"{state.name}/trace")
        for state in traced
    ]
    return helper.make_graph(
        [*step.nodes, *copies],
        "step",
        [*(state.info() for state in step.states), step.input.info()],
        [
            *(state.info("/next") for state in step.states),
            *(value.info() for value in step.emitted),
            *(state.info("/trace") for state in traced),
        ],
        initializer=list(step.initialisers.values()),
    )


def _model(graph: GraphProto, step: Step, about: Mapping[str, str]) -> ModelProto:
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="spikeproof")
    states = [
        {"name": state.name, "type": np.dtype(state.dtype).name, "shape": list(state.shape), "initial": 0}
        for state in step.states
    ]
    described = {"format": FORMAT, "version": str(FORMAT_VERSION), "time": TIME_STEP, "states": json.dumps(states)}
    helper.set_model_props(model, described | dict(about))
    return model
