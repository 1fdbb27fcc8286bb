"""A network of your own, from plain torch layers to Lava, in Python instead of on the command line.

uv run python examples/own_network.py
"""

import sys
from pathlib import Path

import numpy as np
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that it runs from a clone without being installed

from deploy import backends
from deploy.verify import compare, describe
from quantize import engine
from quantize.fold import fold
from quantize.integer_network import save
from quantize.recording import predictions
from quantize.scales import quantize
from train.datasets import load
from train.encoding import Encoding, encode
from train.network import SpikingNetwork
from train.neurons import LIF
from train.trainer import evaluate, fit
from train.training import Training

FOLDER = Path("runs/own-network")

digits = load("digits")
encoding = Encoding("rate", steps=12, seed=1)
network = SpikingNetwork(
    digits.shape,
    [
        nn.Conv2d(1, 8, kernel_size=3, stride=2, padding=1),
        LIF(beta=0.8),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
        LIF(beta=0.9, alpha=0.5),
    ],
)
fit(network, digits, encoding, Training(epochs=20, seed=1), FOLDER)
print(f"float accuracy {evaluate(network, digits.test, encoding):.1%}")

integers, table = quantize(fold(network), digits.shape, encoding.payload_bits)
save(integers, FOLDER / "network.npz")
for row in table:
    print({key: row[key] for key in ("population", "exponent", "weight_max", "threshold_mant", "decay_u", "decay_v")})

inputs = encode(digits.test.values, np.arange(len(digits.test)), encoding).numpy()
here = engine.run(integers, inputs)
print(f"integer accuracy {(predictions(here, integers) == digits.test.labels).mean():.1%}")

on_lava = backends.run("lava", integers, inputs)
verdict = compare(here, on_lava, integers.order)
print(describe(verdict))
sys.exit(0 if verdict.equal else 1)
