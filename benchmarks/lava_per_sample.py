"""Lava as its tutorials use it: processes made, compiled, run and stopped for every single sample. Prints the seconds.

    python -m benchmarks.lava_per_sample FOLDER       with network.npz and inputs.npy [T, B, ...] in it

Its own process, since Lava's runtime must not share one with much else; importing Lava and laying out weights are not
counted. The output must be the engine's, unless there are biases, which such a run lets act before any input arrives.
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
from lava.proc.sparse.process import Sparse
from lava.utils.weightutils import SignMode

from deploy.lava.graph import unroll
from quantize import engine
from quantize.integer_network import INPUT, Connection, IntegerNetwork, load


def laid_out(network: IntegerNetwork, connection: Connection) -> object:
    if connection.is_conv:
        return unroll(connection, network.shape_of(connection.source))
    return connection.weight.astype(np.int32)


def run_one(network: IntegerNetwork, weights: list[object], sample: np.ndarray) -> np.ndarray:
    """Output [T, outputs] of one sample [T, inputs] through a chain of populations; a readout's activation."""
    steps, depth = len(sample), len(network.populations)
    source = Source(data=np.concatenate([sample, np.zeros((depth, sample.shape[1]), sample.dtype)]).T.astype(np.int32))
    port = source.s_out
    for connection, weight in zip(network.connections, weights, strict=True):
        population = network[connection.target]
        bits = network.payload_bits if connection.source == INPUT and network.payload_bits > 1 else connection.is_conv
        kind = Sparse if connection.is_conv else Dense
        options = {"weight_exp": connection.exponent, "num_message_bits": int(bits), "sign_mode": SignMode.MIXED}
        synapse = kind(weights=weight, **options)
        port.connect(synapse.s_in)
        port = synapse.a_out
        if population.spiking:
            du, dv, vth = (int(getattr(population, name)) for name in ("decay_u", "decay_v", "threshold_mant"))
            bias = np.broadcast_to(population.bias_mant, population.shape).reshape(-1)
            shape, bias = (population.size,), {"bias_mant": bias, "bias_exp": population.bias_exp}
            neurons = LIF(shape=shape, du=du, dv=dv, vth=vth, **bias)
            port.connect(neurons.a_in)
            port = neurons.s_out
    sink = Sink(shape=(population.size,), buffer=steps + depth)
    port.connect(sink.a_in)
    sink.run(condition=RunSteps(num_steps=steps + depth), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    emitted = sink.data.get().T[depth:]
    sink.stop()
    return emitted


def main(folder: Path) -> None:
    network, inputs = load(folder / "network.npz"), np.load(folder / "inputs.npy")
    weights = [laid_out(network, connection) for connection in network.connections]
    flat = inputs.reshape(*inputs.shape[:2], -1)
    began = time.perf_counter()
    emitted = np.stack([run_one(network, weights, flat[:, sample]) for sample in range(flat.shape[1])], axis=1)
    took = time.perf_counter() - began
    if not any(population.bias_mant.any() for population in network.populations):
        assert np.array_equal(emitted, engine.run(network, inputs).spikes[network.output])
    print(took)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
