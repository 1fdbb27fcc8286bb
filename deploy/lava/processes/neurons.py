"""An integer LIF for what `LIFReset` cannot hold: parameters per neuron, a floor, a soft or late reset.

Its step is `quantize.arithmetic.lif_step` itself, so that there is one arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from quantize.arithmetic import lif_step


class IntegerLIF(AbstractProcess):
    """Neurons of any shape (with lanes: [neurons, lanes]), cleared where `time_step % reset_interval == reset_offset`.

    `rule` holds the keyword arguments of `lif_step` but the bias; its arrays broadcast to the shape.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        rule: dict[str, Any],
        bias_mant: np.ndarray,
        bias_exp: int,
        reset_interval: int,
        reset_offset: int,
    ) -> None:
        super().__init__(rule=rule, bias_exp=bias_exp, reset_interval=reset_interval, reset_offset=reset_offset)
        self.a_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.u = Var(shape=shape, init=0)
        self.v = Var(shape=shape, init=0)
        self.bias_mant = Var(shape=shape, init=bias_mant)


@implements(proc=IntegerLIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyIntegerLIFModel(PyLoihiProcessModel):
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=1)
    u: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    v: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    bias_mant: np.ndarray = LavaPyType(np.ndarray, np.int16, precision=13)

    def run_spk(self) -> None:
        activation = self.a_in.recv()
        if self.time_step % self.proc_params["reset_interval"] == self.proc_params["reset_offset"]:
            self.u[:] = self.v[:] = 0
        bias = self.bias_mant.astype(np.int64) << self.proc_params["bias_exp"]
        self.u[:], self.v[:], spikes = lif_step(self.u, self.v, activation, bias=bias, **self.proc_params["rule"])
        self.s_out.send(spikes)
