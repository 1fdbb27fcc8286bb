"""nengo-loihi's emulator: prints the seconds for FOLDER/inputs.npy, samples one after the other, through network.npz.

    uv venv X --python 3.10; uv pip install --python X nengo-loihi 'numpy<1.24'        (GPL-2, never required)

and X/bin/python as --peer nengo_loihi=PYTHON of benchmarks.engine. Its own discretization makes the integers; nothing
is cleared between samples, and no spikes are compared: this is about time alone.
"""

import sys
import time
import warnings
from pathlib import Path

import numpy as np

warnings.simplefilter("ignore")

from nengo_loihi.block import Axon, LoihiBlock, Synapse  # noqa: E402
from nengo_loihi.builder import Model  # noqa: E402
from nengo_loihi.builder.discretize import discretize_model  # noqa: E402
from nengo_loihi.emulator import EmulatorInterface  # noqa: E402
from nengo_loihi.inputs import SpikeInput  # noqa: E402

from quantize.integer_network import load  # noqa: E402


def main(folder: Path) -> None:
    network, inputs = load(folder / "network.npz"), np.load(folder / "inputs.npy")
    stream = inputs.swapaxes(0, 1).reshape(-1, inputs.shape[2])
    model = Model()
    source = SpikeInput(stream.shape[1])
    for step, spikes in enumerate(stream, start=1):
        source.add_spikes(step, np.flatnonzero(spikes), permanent=True)
    model.add_input(source)
    for connection in network.connections:
        population = network[connection.target]
        block = LoihiBlock(population.size)
        beta = 1 - float(population.decay_v) / 4096
        block.compartment.configure_lif(tau_rc=-0.001 / np.log(beta), tau_ref=0.0)
        block.compartment.configure_filter(0.0)
        synapse = Synapse(connection.weight.shape[1])
        synapse.set_weights(connection.weight.T / float(population.threshold_mant))
        block.add_synapse(synapse)
        axon = Axon(connection.weight.shape[1])
        axon.target = synapse
        axon.compartment_map = np.arange(connection.weight.shape[1])
        source.add_axon(axon)
        model.add_block(block)
        source = block
    discretize_model(model)
    EmulatorInterface.strict = False
    with EmulatorInterface(model) as emulator:
        began = time.perf_counter()
        emulator.run_steps(len(stream))
        print(time.perf_counter() - began)


main(Path(sys.argv[1]))
