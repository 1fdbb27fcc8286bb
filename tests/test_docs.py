"""Numbers that the documents state are what the code computes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from quantize.arithmetic import dense_sum, lif_step, shift

ARITHMETIC = Path(__file__).parent.parent / "docs" / "arithmetic.md"


def test_the_worked_example_is_what_the_arithmetic_computes() -> None:
    text = ARITHMETIC.read_text(encoding="utf-8").split("## Three steps by hand")[1]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if re.match(r"\| \d", line)
    ]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    u = v = np.zeros(1, np.int64)
    neuron = {"decay_u": 2047, "decay_v": 410, "bias": 25 << 2, "reset": "hard", "floor": False}
    for _, spikes_in, *stated in rows:
        summed = dense_sum(np.array([[int(s) for s in spikes_in.split()]]), np.array([[120, -50]]))[0]
        activation = shift(summed, 1)
        _, before, _ = lif_step(u, v, activation, threshold_mant=131071, **neuron)
        u, v, spike = lif_step(u, v, activation, threshold_mant=250, **neuron)
        assert [int(number) for number in stated] == [int(x[0]) for x in (summed, activation, u, before, spike, v)]
