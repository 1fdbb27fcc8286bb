"""The backend `lava-models`: Lava's own ProcessModel classes, stepped one after the other without Lava's runtime.

The plan is the same as for the full runtime, and so are the objects: Lava's processes, connected by Lava, built by
Lava's builder. Only the channels between them are queues in one process, and a reference port is an attribute.
"""

from __future__ import annotations

import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

import deploy.lava.compat

# isort: split
from lava.magma.compiler.builders.py_builder import PyProcessBuilder
from lava.magma.compiler.utils import PortInitializer, VarInitializer
from lava.magma.core.process.ports.ports import create_port_id
from lava.magma.core.process.process import AbstractProcess

from deploy.lava.catalogue import assemble, model_of
from deploy.lava.graph import Plan, Schedule, plan
from deploy.lava.job import collect, prepare
from quantize.integer_network import IntegerNetwork
from quantize.recording import Recording


class _Channel:
    """What Lava's shared-memory channel does to a message: it must have the shape, and is cast to the sender's type."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype
        self.messages: deque[np.ndarray] = deque()
        self.early: deque[np.ndarray] = deque()

    def send_early(self, data: np.ndarray) -> None:
        """Send what the sender will send at its next turn, which is then only compared."""
        self.send(data)
        self.early.append(self.messages[-1])

    def send(self, data: np.ndarray) -> None:
        if data.shape != self.shape:
            raise AssertionError(f"{data.shape=} {self.shape=} Mismatch")
        message = np.empty(self.shape, self.dtype)
        message[:] = data[:]
        if self.early:
            assert np.array_equal(message, self.early.popleft()), f"{self.name}: sent otherwise than announced"
        else:
            self.messages.append(message)

    def recv(self) -> np.ndarray:
        return self.messages.popleft()


class _Reference:
    def __init__(self, model: Any, variable: str) -> None:
        self.model, self.variable = model, variable

    def read(self) -> np.ndarray:
        return getattr(self.model, self.variable).copy()

    def write(self, data: np.ndarray) -> None:
        setattr(self.model, self.variable, data)

    def wait(self) -> None:
        """A write is done when it returns."""


def run(network: IntegerNetwork, inputs: np.ndarray, states: int = 0, convolution: str = "Sparse") -> Recording:
    """Run inputs [T, B, *input_shape]; u and v of the first `states` samples are recorded too.

    Raises UserError where the inputs do not fit the network, and for what `graph.check` refuses.
    """
    inputs = network.check_inputs(inputs)
    steps, samples = inputs.shape[:2]
    return run_scheduled(network, inputs, Schedule(steps, samples, min(states, samples)), convolution)


def run_scheduled(network: IntegerNetwork, inputs: np.ndarray, schedule: Schedule, convolution: str) -> Recording:
    """Run checked inputs under a schedule, lanes included."""
    with tempfile.TemporaryDirectory(prefix="spikeproof-") as name, deploy.lava.compat.visiting():
        folder = Path(name)
        made = plan(network, schedule, convolution, folder)
        prepare(folder, network, inputs, schedule)
        models = _build(made)
        for step in range(1, made.total_steps + 1):
            _send_buffers(models)
            for model in models:
                model.time_step = step
                model.run_spk()
            for model in models:
                if model.post_guard():
                    model.run_post_mgmt()
        return collect(folder, network, inputs, schedule, "lava-models")


def _send_buffers(models: list[Any]) -> None:
    """Let every synapse send what it holds from the step before.

    Lava's synapses do so before they receive, and a cycle of processes runs because of that. Here, where each has one
    turn a step, the neurons of a cycle need the message before the synapse can have its turn.
    """
    for model in models:
        for buffer in ("a_buff", "a_buf"):  # the second in Conv
            if hasattr(model, buffer):
                for channel in model.a_out.csp_ports:
                    channel.send_early(getattr(model, buffer))


def _build(made: Plan) -> list[Any]:
    """The plan's models in its order: once the synapses' buffers are sent, each finds the messages that it reads."""
    processes = assemble(made)
    builders = {process: _builder(process) for process in processes.values()}
    for target, receiver in builders.items():
        for port in target.in_ports.members:
            for source in port.get_src_ports():
                dtype = getattr(model_of(source.process), source.name).d_type
                sending, arriving = (_Channel(end, source.shape, dtype) for end in (source.name, port.name))
                sending.messages = arriving.messages
                builders[source.process].set_csp_ports([sending])
                receiver.set_csp_ports([arriving])
                receiver.add_csp_port_mapping(create_port_id(source.process.id, source.name), arriving)
    models = {process: builder.build() for process, builder in builders.items()}
    for part, (neurons, variables) in made.references.items():
        for variable in variables:
            setattr(models[processes[part]], variable, _Reference(models[processes[neurons]], variable))
    return list(models.values())


def _builder(process: AbstractProcess) -> PyProcessBuilder:
    model = model_of(process)
    builder = PyProcessBuilder(model, process.id, process.proc_params)
    builder.set_variables([VarInitializer(var.name, var.shape, var.init, var.id) for var in process.vars.members])
    builder.set_py_ports(
        [
            PortInitializer(
                port.name,
                port.shape,
                getattr(model, port.name).d_type,
                type(port).__name__,
                0,
                port.get_incoming_transform_funcs(),
            )
            for port in (*process.in_ports.members, *process.out_ports.members)
        ]
    )
    return builder
