"""Every Lava process that a plan may name, with the one model class that computes it, and their assembly."""

from __future__ import annotations

import functools

from deploy.lava.compat import load

# isort: split
from lava.magma.core.model.py.model import AbstractPyProcessModel
from lava.magma.core.process.process import AbstractProcess
from lava.utils.weightutils import SignMode

from deploy.lava.graph import Part, Plan

# Kind: where its process is defined, where its model is, and the model's name. Imported when used: Conv alone
# imports SciPy's signal processing, which takes longer than all of Lava.
KINDS = {
    "Dense": ("lava.proc.dense.process", "lava.proc.dense.models", "PyDenseModelBitAcc"),
    "Sparse": ("lava.proc.sparse.process", "lava.proc.sparse.models", "PySparseModelBitAcc"),
    "Conv": ("lava.proc.conv.process", "lava.proc.conv.models", "PyConvModelFixed"),
    "LIFReset": ("lava.proc.lif.process", "lava.proc.lif.models", "PyLifResetModelBitAcc"),
    "IntegerLIF": ("deploy.lava.processes.neurons", "deploy.lava.processes.neurons", "PyIntegerLIFModel"),
    "LanedSynapse": ("deploy.lava.processes.synapses", "deploy.lava.processes.synapses", "PyLanedSynapseModel"),
    "Axon": ("deploy.lava.processes.axons", "deploy.lava.processes.axons", "PyAxonModel"),
    "Player": ("deploy.lava.processes.files", "deploy.lava.processes.files", "PyPlayerModel"),
    "BiasLoader": ("deploy.lava.processes.files", "deploy.lava.processes.files", "PyBiasLoaderModel"),
    "RasterRecorder": ("deploy.lava.processes.files", "deploy.lava.processes.files", "PyRasterRecorderModel"),
    "StateRecorder": ("deploy.lava.processes.files", "deploy.lava.processes.files", "PyStateRecorderModel"),
}


@functools.cache
def classes(kind: str) -> tuple[type[AbstractProcess], type[AbstractPyProcessModel]]:
    """The process class and the model class of a kind."""
    process_module, model_module, model = KINDS[kind]
    return getattr(load(process_module), kind), getattr(load(model_module), model)


def model_of(process: AbstractProcess) -> type[AbstractPyProcessModel]:
    return classes(type(process).__name__)[1]


def assemble(plan: Plan) -> dict[str, AbstractProcess]:
    """The plan's processes by name, connected, in the plan's order."""
    processes = {name: _make(part) for name, part in plan.parts.items()}
    for wire in plan.wires:
        port = processes[wire.source].out_ports.members[0]
        for change, value in wire.layout:
            port = getattr(port, change)(value)
        port.connect(processes[wire.target].in_ports.members[0])
    for part, (neurons, variables) in plan.references.items():
        for variable in variables:
            getattr(processes[part], variable).connect_var(getattr(processes[neurons], variable))
    return processes


def _make(part: Part) -> AbstractProcess:
    # Lava would guess the sign mode from the weights and then drop other bits of them.
    explicit = {"sign_mode": SignMode.MIXED} if part.kind in ("Dense", "Sparse") else {}
    return classes(part.kind)[0](**part.arguments, **explicit)
