"""Input and output without arithmetic: samples are played or loaded from a file, rasters and states written to files.

Lava reads a variable value by value (20 microseconds each) and its ring buffers copy all data into messages; these
processes map `.npy` files instead. Files are [steps, samples, neurons]; a window of `steps` Lava steps holds `lanes`
samples, and the first window starts at Lava step `first_step` (Lava counts from 1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort, PyRefPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort, RefPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class Player(AbstractProcess):
    """Sends the file's samples one after the other, and zeros where no sample is left."""

    def __init__(self, *, shape: tuple[int, ...], path: str, lanes: int, first_step: int) -> None:
        super().__init__(path=path, lanes=lanes, first_step=first_step)
        self.s_out = OutPort(shape=shape)


class BiasLoader(AbstractProcess):
    """Writes the file's samples, one step of each, into the neurons' bias mantissas before a sample's first step."""

    def __init__(self, *, shape: tuple[int, ...], path: str, lanes: int, first_step: int) -> None:
        super().__init__(shape=shape, path=path, lanes=lanes, first_step=first_step)
        self.bias_mant = RefPort(shape=shape)


class RasterRecorder(AbstractProcess):
    """Writes the spikes it receives to `spikes_path`."""

    def __init__(self, *, shape: tuple[int, ...], spikes_path: str, lanes: int, first_step: int, **paths: str) -> None:
        super().__init__(spikes_path=spikes_path, lanes=lanes, first_step=first_step, **paths)
        self.s_in = InPort(shape=shape)


class StateRecorder(RasterRecorder):
    """Also reads the neurons' u and v at the end of each step, after the reset, and writes them."""

    def __init__(self, *, shape: tuple[int, ...], u_path: str, v_path: str, **recording: Any) -> None:
        super().__init__(shape=shape, u_path=u_path, v_path=v_path, **recording)
        self.u = RefPort(shape=shape)
        self.v = RefPort(shape=shape)


class _FileModel(PyLoihiProcessModel):
    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.lanes: int = proc_params["lanes"]
        self.first_step: int = proc_params["first_step"]

    def rows(self, file: np.ndarray, step: int) -> np.ndarray:
        """The file's rows [at most lanes, neurons] for a Lava step: fewer or none at either end of the run."""
        window, row = divmod(step - self.first_step, len(file))
        return file[row, window * self.lanes : (window + 1) * self.lanes] if window >= 0 else file[0, :0]


class _SampleModel(_FileModel):
    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.samples = np.load(proc_params["path"], mmap_mode="r")

    def shown(self, step: int) -> np.ndarray:
        """The samples of a Lava step, int32 [neurons, lanes]."""
        rows = self.rows(self.samples, step)
        values = np.zeros((self.samples.shape[2], self.lanes), np.int32)
        values[:, : len(rows)] = rows.T
        return values


@implements(proc=Player, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyPlayerModel(_SampleModel):
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=8)

    def run_spk(self) -> None:
        self.s_out.send(self.shown(self.time_step).reshape(self.s_out.shape))


@implements(proc=BiasLoader, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyBiasLoaderModel(_SampleModel):
    bias_mant: PyRefPort = LavaPyType(PyRefPort.VEC_DENSE, np.int32, precision=13)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.shape: tuple[int, ...] = proc_params["shape"]

    def post_guard(self) -> bool:
        return (self.time_step + 1 - self.first_step) % len(self.samples) == 0

    def run_post_mgmt(self) -> None:
        self.bias_mant.write(self.shown(self.time_step + 1).reshape(self.shape))
        self.bias_mant.wait()  # without it, Lava may set the value a step later


class _RecorderModel(_FileModel):
    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=1)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.raster = np.load(proc_params["spikes_path"], mmap_mode="r+")

    def run_spk(self) -> None:
        received = self.s_in.recv().reshape(-1, self.lanes)
        rows = self.rows(self.raster, self.time_step)
        rows[:] = received.T[: len(rows)]


@implements(proc=RasterRecorder, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyRasterRecorderModel(_RecorderModel):
    pass


@implements(proc=StateRecorder, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyStateRecorderModel(_RecorderModel):
    u: PyRefPort = LavaPyType(PyRefPort.VEC_DENSE, np.int32, precision=24)
    v: PyRefPort = LavaPyType(PyRefPort.VEC_DENSE, np.int32, precision=24)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.files = {name: np.load(proc_params[f"{name}_path"], mmap_mode="r+") for name in ("u", "v")}

    def post_guard(self) -> bool:
        return len(self.rows(self.files["u"], self.time_step)) > 0

    def run_post_mgmt(self) -> None:
        for port, file in ((self.u, self.files["u"]), (self.v, self.files["v"])):
            rows = self.rows(file, self.time_step)
            rows[:] = port.read().reshape(-1, self.lanes).T[: len(rows)]
