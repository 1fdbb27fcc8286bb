"""With lava-dl: `run_netx.py FOLDER` shows FOLDER/inputs.npy [T, B, *shape] to the network of
FOLDER/network.net, all samples in one run, and writes every layer's spikes [T, B, *shape] to FOLDER/<layer>.npy."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np

import deploy.lava.compat  # noqa: F401

warnings.simplefilter("ignore")

from lava.lib.dl import netx  # noqa: E402
from lava.magma.core.run_conditions import RunSteps  # noqa: E402
from lava.magma.core.run_configs import Loihi2SimCfg  # noqa: E402
from lava.proc.io.sink import RingBuffer as Sink  # noqa: E402
from lava.proc.io.source import RingBuffer as Source  # noqa: E402


def main(folder: Path) -> None:
    inputs = np.load(folder / "inputs.npy")
    steps, samples = inputs.shape[:2]
    network = netx.hdf5.Network(net_config=str(folder / "network.net"), reset_interval=steps, reset_offset=1)
    depth = len(network.layers)
    # One sample after the other, maps as (W, H, C), time last.
    shown = inputs.swapaxes(0, 1).reshape(samples * steps, *inputs.shape[2:])
    flat = len(network.inp.shape) == 1
    shown = shown.reshape(len(shown), -1) if flat else shown.transpose(0, 3, 2, 1)
    total = samples * steps + depth
    padded = np.concatenate([shown, np.zeros((depth, *shown.shape[1:]), shown.dtype)])
    source = Source(data=np.moveaxis(padded, 0, -1).astype(np.int32))
    source.s_out.connect(network.inp)
    sinks = [Sink(shape=layer.out.shape, buffer=total) for layer in network.layers]
    for layer, sink in zip(network.layers, sinks, strict=True):
        layer.out.connect(sink.a_in)
    network.run(RunSteps(total), Loihi2SimCfg(select_tag="fixed_pt"))
    for index, sink in enumerate(sinks):
        spikes = np.moveaxis(sink.data.get(), -1, 0)[index + 1 : index + 1 + samples * steps]
        spikes = spikes.transpose(0, 3, 2, 1) if spikes.ndim == 4 else spikes
        spikes = spikes.reshape(samples, steps, *spikes.shape[1:]).swapaxes(0, 1)
        np.save(folder / f"{index}.npy", spikes.astype(np.uint8))
    network.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
