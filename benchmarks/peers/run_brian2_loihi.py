"""brian2_loihi: prints the seconds for FOLDER/inputs.npy, samples one after the other, through FOLDER/network.npz.

    uv venv X --python 3.10; uv pip install --python X brian2-loihi 'numpy<1.24' 'setuptools<80'   (GPL, never required)

and X/bin/python as --peer brian2_loihi=PYTHON of benchmarks.engine. Nothing is cleared between samples, and no spikes
are compared: this is about time alone.
"""

import sys
import time
from pathlib import Path

import numpy as np
from brian2 import prefs
from brian2_loihi import LoihiNetwork, LoihiNeuronGroup, LoihiSpikeGeneratorGroup, LoihiSynapses, synapse_sign_mode

from quantize.integer_network import load


def main(folder: Path) -> None:
    network, inputs = load(folder / "network.npz"), np.load(folder / "inputs.npy")
    prefs.codegen.target = "cython"
    stream = inputs.swapaxes(0, 1).reshape(-1, inputs.shape[2])
    times, indices = np.nonzero(stream)
    source = LoihiSpikeGeneratorGroup(stream.shape[1], indices, times)
    parts = [source]
    for connection in network.connections:
        population = network[connection.target]
        neurons = LoihiNeuronGroup(
            population.size,
            threshold_v_mant=int(population.threshold_mant),
            decay_v=int(population.decay_v),
            decay_I=int(population.decay_u) + 1,
        )
        synapses = LoihiSynapses(source, neurons, sign_mode=synapse_sign_mode.MIXED)
        synapses.connect()
        synapses.w = connection.weight.T.reshape(-1).astype(np.int64)
        parts += [neurons, synapses]
        source = neurons
    simulated = LoihiNetwork(*parts)
    simulated.run(1)  # makes and compiles its code
    began = time.perf_counter()
    simulated.run(len(stream))
    print(time.perf_counter() - began)


main(Path(sys.argv[1]))
