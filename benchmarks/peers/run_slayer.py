"""lava-dl's slayer in inference, on the CPU: prints the seconds for FOLDER/inputs.npy through FOLDER/network.npz.

    uv sync --group lava-dl, and its python as --peer slayer=PYTHON of benchmarks.engine

The CUBA blocks get the network's weights and decays in slayer's units, 64 to 1, and carry the whole batch at once.
"""

import sys
import time
import warnings
from pathlib import Path

import numpy as np

import deploy.lava.compat  # noqa: F401

warnings.simplefilter("ignore")

import torch  # noqa: E402
from lava.lib.dl import slayer  # noqa: E402

from quantize.integer_network import load  # noqa: E402


def main(folder: Path) -> None:
    network, inputs = load(folder / "network.npz"), np.load(folder / "inputs.npy")
    torch.set_num_threads(1)
    blocks = []
    for connection in network.connections:
        population = network[connection.target]
        neuron = {
            "threshold": int(population.threshold_mant) / 64,
            "current_decay": (int(population.decay_u) + 1) / 4096,
            "voltage_decay": int(population.decay_v) / 4096,
        }
        outputs, width = connection.weight.shape
        block = slayer.block.cuba.Dense(neuron, width, outputs)
        weight = torch.from_numpy(connection.weight.astype(np.float32) / 64)
        block.synapse.weight.data = weight.reshape(block.synapse.weight.shape)
        blocks.append(block)
    shown = torch.from_numpy(inputs.transpose(1, 2, 0).astype(np.float32))  # [B, I, T]
    with torch.no_grad():
        for counted in (False, True):
            began, spikes = time.perf_counter(), shown
            for block in blocks:
                spikes = block(spikes)
            if counted:
                print(time.perf_counter() - began)


main(Path(sys.argv[1]))
