"""A synapse with lanes: it carries several samples side by side for the price of one message."""

from __future__ import annotations

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

from quantize.arithmetic import shift


class LanedSynapse(AbstractProcess):
    """[in, lanes] -> [out, lanes], one step late as Lava's `Dense` is; the sums are shifted by `weight_exp`.

    weights: [out, in], CSR or dense, of a type in which every partial sum is exact.
    """

    def __init__(self, *, weights: object, weight_exp: int, lanes: int) -> None:
        super().__init__(weights=weights, weight_exp=weight_exp)
        outputs, inputs = weights.shape  # type: ignore[attr-defined]
        self.s_in = InPort(shape=(inputs, lanes))
        self.a_out = OutPort(shape=(outputs, lanes))
        self.a_buff = Var(shape=(outputs, lanes), init=0)


@implements(proc=LanedSynapse, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyLanedSynapseModel(PyLoihiProcessModel):
    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=8)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    a_buff: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)

    def run_spk(self) -> None:
        self.a_out.send(self.a_buff)
        weights = self.proc_params["weights"]
        sums = weights @ self.s_in.recv().astype(weights.dtype)
        self.a_buff[:] = shift(sums.astype(np.int64), self.proc_params["weight_exp"])
