"""Trained modules of SpikingJelly 2: IFNode, LIFNode, ParametricLIFNode and KLIFNode. What becomes of options:

tau                     beta = 1 - 1 / tau; where it was learned, a constant here
decay_input=True        the input is divided by tau, so the threshold is multiplied by it
v_reset                 0 is "hard", None "soft"; neurons with another one rest there too, so voltages are counted from
                        it, and the threshold is lowered by it; KLIF's is refused
v >= threshold          v above the largest float below the threshold
k, scale_reset          of KLIF: neuron="klif", scale_reset
step_mode, store_v_seq, detach_reset, surrogate_function: they change no spike
layer.Linear, Conv2d, AvgPool2d, MaxPool2d, BatchNorm1d, BatchNorm2d, Flatten: torch's own
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from spikingjelly.activation_based import base, functional, layer, neuron
from torch import Tensor, nn

from base.differences import Difference
from base.errors import UserError
from train.frameworks.importing import Framework, Translation, fixed_row, imported, reset_rows
from train.frameworks.watching import Ways
from train.network import SpikingNetwork
from train.neurons import LIF


def from_spikingjelly(
    module: nn.Module, inputs: Tensor | np.ndarray, payload_bits: int = 1
) -> tuple[SpikingNetwork, list[Difference]]:
    """See `importing.imported`."""
    return imported(module, inputs, FRAMEWORK, payload_bits)


def _integrate_and_fire(node: Any) -> Translation:
    return _translation(node, 0.0, decay_input=False)


def _lif(node: Any) -> Translation:
    return _translation(node, 1 / node.tau, node.decay_input)


def _parametric(node: Any) -> Translation:
    translation = _translation(node, float(node.w.detach().sigmoid()), node.decay_input)
    translation.rows.append(fixed_row("tau"))
    return translation


def _klif(node: Any) -> Translation:
    if node.v_reset:
        raise UserError(f"v_reset = {node.v_reset}: KLIF's floor is at 0, and it can rest nowhere else; use 0 or None")
    translation = _translation(node, 1 / node.tau, node.decay_input, neuron="klif", scale_reset=node.scale_reset)
    assert translation.lif.k is not None
    k = translation.lif.k.data.copy_(node.k.detach())
    translation.lif.keep_in_range()
    if k != node.k:
        raise UserError(f"k = {float(node.k.detach()):g}, with which no decay here can follow; it may be {float(k):g}")
    return translation


def _translation(node: Any, lost: float, decay_input: bool, **options: Any) -> Translation:
    """lost: the share of the voltage that leaks in a step, and with `decay_input` the share of the input taken up."""
    rest = node.v_reset or 0.0
    threshold = (node.v_threshold - rest) / (lost if decay_input else 1.0)
    lif = LIF(
        1 - lost,
        threshold=math.nextafter(threshold, 0.0),
        reset="soft" if node.v_reset is None else "hard",
        detach_reset=node.detach_reset,
        **options,
    )
    rows = [*reset_rows("minus the threshold", lif), ("spike", "v >= threshold", "v > the float below it", "exact")]
    if decay_input:
        rows.append(("input", f"divided by tau = {1 / lost:.6g}", f"whole, threshold {threshold:.6g}", "exact"))
    if rest:
        rows.append(("resting voltage", f"{rest:g}", f"0, threshold lowered to {threshold:.6g}", "exact"))
    return Translation(lif, rows)


def _steps(module: nn.Module, shown: Tensor) -> None:
    for arriving in shown:
        module(arriving)


FRAMEWORK = Framework(
    "SpikingJelly",
    kinds=(base.MemoryModule, neuron.PSN),
    neurons={
        neuron.IFNode: _integrate_and_fire,
        neuron.LIFNode: _lif,
        neuron.ParametricLIFNode: _parametric,
        neuron.KLIFNode: _klif,
    },
    layers={
        layer.Linear: nn.Linear,
        layer.Conv2d: nn.Conv2d,
        layer.AvgPool2d: nn.AvgPool2d,
        layer.MaxPool2d: nn.MaxPool2d,
        layer.BatchNorm1d: nn.BatchNorm1d,
        layer.BatchNorm2d: nn.BatchNorm2d,
        layer.Flatten: nn.Flatten,
    },
    ways=Ways(functional.reset_net, _steps, sees_all_steps=lambda node: node.step_mode == "m"),
)
