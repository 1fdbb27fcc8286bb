"""Trained modules of Norse 1.1: LIFCell, LIFBoxCell, and LIF, which runs over all steps. What becomes of parameters:

dt, tau_mem_inv         beta = 1 - dt tau_mem_inv, and the threshold is divided by dt tau_mem_inv, as is the input there
tau_syn_inv             alpha = 1 - dt tau_syn_inv; a spike's current acts in its own step, as here; LIFBox has none
v_leak                  voltages are counted from there, the threshold is lowered by it
v_reset                 must be v_leak
reset_method            of LIFBox: reset_value is "hard", reset_subtract "soft", with v_leak = 0
method, alpha           they change no spike; "adjoint" is refused
Other neurons are refused: none here is refractory, adapts or only integrates, and recurrence has its weights elsewhere.
"""

from __future__ import annotations

from typing import Any

import norse.torch as norse
import numpy as np
import torch
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from torch import Tensor, nn

from base.differences import Difference
from base.errors import UserError
from train.frameworks.importing import Framework, Translation, imported, reset_rows
from train.frameworks.watching import Ways
from train.network import SpikingNetwork
from train.neurons import LIF


def from_norse(
    module: nn.Module, inputs: Tensor | np.ndarray, payload_bits: int = 1
) -> tuple[SpikingNetwork, list[Difference]]:
    """See `importing.imported`."""
    return imported(module, inputs, FRAMEWORK, payload_bits)


def _lif(cell: Any) -> Translation:
    return _translation(cell, 1 - _rate(cell, "tau_syn_inv"))


def _box(cell: Any) -> Translation:
    if cell.p.reset_method not in (reset_value, reset_subtract):
        raise UserError("its reset_method is one of its own; use reset_value or reset_subtract")
    return _translation(cell, 0.0, soft=cell.p.reset_method is reset_subtract)


def _translation(cell: Any, alpha: float, soft: bool = False) -> Translation:
    if cell.p.method == "adjoint":
        raise UserError("method = 'adjoint' computes with another step than the others; choose one of those")
    taken, rest = _rate(cell, "tau_mem_inv"), _one(cell, "v_leak")
    if not soft and _one(cell, "v_reset") != rest:
        raise UserError(
            f"v_reset = {_one(cell, 'v_reset'):g} and v_leak = {rest:g}: here neurons are reset to where they rest; "
            "train with both the same"
        )
    threshold = (_one(cell, "v_th") - rest) / taken
    lif = LIF(1 - taken, alpha, threshold, "soft" if soft else "hard")
    rows = reset_rows("minus the threshold", lif)
    rows.append(("input", f"times dt tau_mem_inv = {taken:.6g}", f"whole, threshold {threshold:.6g}", "exact"))
    if rest:
        rows.append(("resting voltage", f"{rest:g}", "0, threshold lowered by it", "exact"))
    if soft and rest:
        raise UserError(f"v_leak = {rest:g} with a reset that subtracts all of the threshold; use v_leak = 0")
    return Translation(lif, rows)


def _rate(cell: Any, name: str) -> float:
    """The share that is lost in a step, as the cell computes it."""
    _one(cell, name)
    return float(cell.dt * getattr(cell.p, name))


def _one(cell: Any, name: str) -> float:
    value = torch.as_tensor(getattr(cell.p, name))
    if value.numel() != 1:
        raise UserError(f"{name} has {value.numel()} values; here a population has one")
    return float(value)


def _clear(module: nn.Module) -> None:
    """Modules keep no states."""


def _steps(module: nn.Module, shown: Tensor) -> None:
    states: tuple[Any, ...] = ()
    for arriving in shown:
        result = module(arriving, *states)
        states = result[1:] if isinstance(result, tuple) else ()


FRAMEWORK = Framework(
    "Norse",
    kinds=(SNN, SNNCell, SNNRecurrent, SNNRecurrentCell),
    neurons={norse.LIFCell: _lif, norse.LIF: _lif, norse.LIFBoxCell: _box},
    layers={},
    ways=Ways(_clear, _steps, sees_all_steps=lambda neuron: isinstance(neuron, SNN)),
)
