"""What lies between a population and a synapse that hears it later than Lava's one step: a delay line and a gate."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class Axon(AbstractProcess):
    """Sends what it received `delay` Lava steps ago, at first zeros, and drops what would reach the next sample.

    In layer time a spike arrives `layer_delay` steps after it was fired. The source's samples take `window` steps each,
    the first of them starts at Lava step `first_step`.
    """

    def __init__(self, *, shape: tuple[int, ...], delay: int, layer_delay: int, window: int, first_step: int) -> None:
        super().__init__(shape=shape, delay=delay, layer_delay=layer_delay, window=window, first_step=first_step)
        self.s_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)


@implements(proc=Axon, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyAxonModel(PyLoihiProcessModel):
    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=8)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=8)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.silence = np.zeros(proc_params["shape"], np.int32)
        self.under_way = deque([self.silence] * proc_params["delay"])
        self.layer_delay: int = proc_params["layer_delay"]
        self.window: int = proc_params["window"]
        self.first_step: int = proc_params["first_step"]

    def run_spk(self) -> None:
        spikes = self.s_in.recv()
        arrival = (self.time_step - self.first_step) % self.window + self.layer_delay
        self.under_way.append(spikes if arrival < self.window else self.silence)
        self.s_out.send(self.under_way.popleft())
