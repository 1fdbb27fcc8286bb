"""Lava as its tutorials use it: processes made, compiled, run and stopped for every single sample. Prints the seconds.

    python -m benchmarks.lava_per_sample NETWORK.npz INPUTS.npy

Its own process, since Lava's runtime must not share one with much else; importing Lava is not counted.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

import deploy.lava.compat  # noqa: F401

# isort: split
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.dense.process import Dense
from lava.proc.io.sink import RingBuffer as Sink
from lava.proc.io.source import RingBuffer as Source
from lava.proc.lif.process import LIF
from lava.utils.weightutils import SignMode

from quantize.integer_network import IntegerNetwork, load


def run_one(network: IntegerNetwork, sample: np.ndarray) -> np.ndarray:
    """Output spikes [T, outputs] of one sample [T, inputs] through a chain of dense populations."""
    steps, depth = len(sample), len(network.populations)
    source = Source(data=np.concatenate([sample, np.zeros((depth, sample.shape[1]), sample.dtype)]).T.astype(np.int32))
    port = source.s_out
    for connection in network.connections:
        population = network[connection.target]
        synapse = Dense(weights=connection.weight.astype(np.int32), sign_mode=SignMode.MIXED)
        du, dv, vth = (int(getattr(population, name)) for name in ("decay_u", "decay_v", "threshold_mant"))
        neurons = LIF(shape=population.shape, du=du, dv=dv, vth=vth)
        port.connect(synapse.s_in)
        synapse.a_out.connect(neurons.a_in)
        port = neurons.s_out
    sink = Sink(shape=population.shape, buffer=steps + depth)
    port.connect(sink.a_in)
    sink.run(condition=RunSteps(num_steps=steps + depth), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    spikes = sink.data.get().T[depth:]
    sink.stop()
    return spikes


def main(network_file: str, inputs_file: str) -> None:
    network, inputs = load(Path(network_file)), np.load(inputs_file)
    began = time.perf_counter()
    spikes = [run_one(network, inputs[:, sample]) for sample in range(inputs.shape[1])]
    print(time.perf_counter() - began)
    np.save(Path(inputs_file).with_suffix(".out.npy"), np.stack(spikes, axis=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
