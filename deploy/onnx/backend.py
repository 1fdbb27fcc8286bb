"""The backend `onnx`: onnxruntime runs the scan model, the first samples with traces of u and v."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime
from onnx import ModelProto

from deploy.onnx import integer
from deploy.onnx.graph import Step, scan_model
from quantize.integer_network import IntegerNetwork
from quantize.recording import Recording, Traces, hash_of

ERRORS_ONLY = 3
WORKSPACE = 1 << 26  # bytes that one value of every neuron may take in a step; larger batches are cut

Execute = Callable[[Sequence[str], dict[str, np.ndarray]], Sequence[np.ndarray]]  # names of outputs, inputs -> outputs


def run(network: IntegerNetwork, inputs: np.ndarray, states: int = 0) -> Recording:
    """Run inputs [T, B, *input_shape]; u and v of the first `states` samples are recorded too.

    Raises UserError where the inputs do not fit the network, and for what `integer.build` refuses.
    """
    inputs = network.check_inputs(inputs)
    step, samples = integer.build(network), inputs.shape[1]
    states = min(states, samples)
    neurons = sum(population.size for population in network.populations)
    batch = max(1, WORKSPACE // (np.dtype(np.float64).itemsize * neurons))
    ran = []
    for start, stop, traces in ((0, states, True), (states, samples, False)):
        if start < stop:
            execute = executor(scan_model(step, integer.about(network, step), traces))
            batches = [slice(first, min(first + batch, stop)) for first in range(start, stop, batch)]
            ran += [run_scan(execute, step, inputs[:, part], traces) for part in batches]
    return recorded(network, inputs, ran)


def executor(model: ModelProto) -> Execute:
    """onnxruntime on one thread of the CPU, as a function."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run


def run_scan(execute: Execute, step: Step, inputs: np.ndarray, traces: bool = False) -> Traces:
    """What a scan model of that step tells of inputs [T, B, ...] from zero states: each value [T, B, ...] by name, and
    the states after the last step as "<state>/final"."""
    names, finals = _told(step, traces), [f"{state.name}/final" for state in step.states]
    fed = {f"{name}/initial": zeros for name, zeros in step.zeros(inputs.shape[1]).items()}
    outputs = execute([*(f"{name}/steps" for name in names), *finals], fed | {f"{step.input.name}/steps": inputs})
    return dict(zip([*names, *finals], outputs, strict=True))


def run_step(execute: Execute, step: Step, inputs: np.ndarray) -> Traces:
    """The same, u and v with it, from a step model that is called once a step, its states passed on."""
    emitted, states = [value.name for value in step.emitted], step.zeros(inputs.shape[1])
    told: dict[str, list[np.ndarray]] = {name: [] for name in _told(step, True)}
    for now in inputs:
        outputs = execute([*emitted, *(f"{name}/next" for name in states)], states | {step.input.name: now})
        values = dict(zip([*emitted, *states], outputs, strict=True))
        states = {name: values[name] for name in states}
        for name, steps in told.items():
            steps.append(values[name])
    return {name: np.stack(steps) for name, steps in told.items()}


def recorded(network: IntegerNetwork, inputs: np.ndarray, ran: Sequence[Traces]) -> Recording:
    """The Recording of samples that ran in parts; u and v are of the parts that told them."""
    spikes, u, v = (
        {
            name.removesuffix(end): np.concatenate([part[name] for part in ran if name in part], axis=1)
            for name in ran[0]
            for end in ends
            if name.endswith(end)
        }
        for ends in (("/spikes", "/current"), ("/u",), ("/v",))
    )
    return Recording("onnx", network.hash, hash_of(inputs), spikes, u, v)


def _told(step: Step, traces: bool) -> list[str]:
    states = [state.name for state in step.states if traces and state.name.endswith(("/u", "/v"))]
    return [*(value.name for value in step.emitted), *states]
