"""lava-dl's own reader runs the file: the spikes of every layer, on Lava's simulator, are the engine's.

`uv run --group lava-dl pytest -m peers tests/peers/test_netx.py`
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploy import netx
from quantize import engine
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population

pytestmark = [pytest.mark.peers, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent

if importlib.util.find_spec("lava.lib") is None:
    pytest.skip("lava-dl is not installed: uv sync --group lava-dl", allow_module_level=True)


def population(random, name, *shape, bias=True):
    """Neurons with any decays, and a bias that fits netx's mantissas."""
    mantissas = random.integers(-20, 200, shape if random.random() < 0.5 else (shape[0], *[1] * (len(shape) - 1)))
    decay_u, decay_v = random.choice([0, 1000, 4094, 4095]), random.choice([0, 300, 4095])
    threshold = random.integers(20, 200)
    return Population(name, shape, decay_u, decay_v, threshold, mantissas if bias else 0, 6)


def connection(random, source, target, *shape, low=-127, high=128, **options):
    return Connection(source, target, 2 * random.integers(low, high, shape), **options)


def dense(random, **signs):
    populations = population(random, "a", 32), population(random, "b", 20, bias=False), population(random, "c", 5)
    connections = (
        connection(random, INPUT, "a", 32, 24, **signs),
        connection(random, "a", "b", 20, 32, low=-12, high=13, exponent=2),
        connection(random, "b", "c", 5, 20, low=-60, high=61, exponent=-1),
    )
    return IntegerNetwork((24,), populations, connections, "c")


def image(random):
    populations = population(random, "a", 4, 4, 3), population(random, "b", 6, 3, 3), population(random, "c", 5)
    connections = (
        connection(random, INPUT, "a", 4, 1, 3, 2, stride=(2, 2), padding=(1, 1), groups=2),
        connection(random, "a", "b", 6, 4, 2, 1),
        connection(random, "b", "c", 5, 54),
    )
    return IntegerNetwork((2, 7, 5), populations, connections, "c")


NETWORKS = {
    "dense": dense,
    "dense, none below 0": lambda random: dense(random, low=0),
    "dense, none above 0": lambda random: dense(random, low=-6, high=0),
    "convolutions, then dense": image,
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_fires_the_spikes_of_the_engine(name, seed, tmp_path):
    random = np.random.default_rng(seed)
    network = NETWORKS[name](random)
    inputs = (random.random((15, 4, *network.input_shape)) < 0.4).astype(np.uint8)
    netx.save(network, tmp_path / "network.net")
    np.save(tmp_path / "inputs.npy", inputs)
    worker = [sys.executable, Path(__file__).with_name("run_netx.py"), tmp_path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(worker, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = engine.run(network, inputs).spikes
    for index, population_name in enumerate(network.order):
        ran = np.load(tmp_path / f"{index}.npy")
        assert np.array_equal(ran, expected[population_name]), population_name
    assert expected["a"].any()
