"""Trained modules of snnTorch (0.9.4 and 1.0): Leaky, Synaptic, Lapicque, RLeaky, RSynaptic. What becomes of options:

beta, alpha             one or per neuron, clamped to 0..1: the same shares, if the chip can hold them
threshold               the same, if it is one number; what was learned is a constant here
reset "subtract"        "soft-late"; with reset_delay=False "soft", equal while no membrane is above two thresholds
reset "zero"            "hard-late", of Leaky "hard", since it clears before anything arrives; without delay "hard"
reset "none"            refused: no neuron here goes without a reset
R, C, time_step         of Lapicque: it keeps 1 - T / RC and takes T / C of its input, by which the threshold is divided
V, all_to_all           recurrent weights of the dense layer in front; convolutional ones are refused
inhibition, state_quant, graded_spikes_factor other than 1: refused
spike_grad, surrogate_disable, init_hidden, output: they change no spike
"""

from __future__ import annotations

from typing import Any

import numpy as np
import snntorch
from torch import Tensor, nn

from base.differences import Difference
from base.errors import UserError
from train.frameworks.importing import Framework, Translation, fixed_row, imported, reset_rows
from train.frameworks.watching import Ways
from train.network import SpikingNetwork
from train.neurons import LIF


def from_snntorch(
    module: nn.Module, inputs: Tensor | np.ndarray, payload_bits: int = 1
) -> tuple[SpikingNetwork, list[Difference]]:
    """See `importing.imported`."""
    return imported(module, inputs, FRAMEWORK, payload_bits)


def _leaky(neuron: Any) -> Translation:
    return _translation(neuron, 0.0, _share(neuron.beta), loses_step=False)


def _synaptic(neuron: Any) -> Translation:
    return _translation(neuron, _share(neuron.alpha), _share(neuron.beta), loses_step=True)


def _lapicque(neuron: Any) -> Translation:
    step, resistance, capacity = (float(value) for value in (neuron.time_step, neuron.R, neuron.C))
    kept, taken = 1 - step / (resistance * capacity), step / capacity
    translation = _translation(neuron, 0.0, kept, loses_step=True, gain=taken)
    translation.rows.append(
        ("beta", f"{float(neuron.beta):.6g}, of which it computes with 1 - T / RC", f"beta = {kept:.6g}", "exact")
    )
    return translation


def _rleaky(neuron: Any) -> Translation:
    return _recurrent(neuron, _translation(neuron, 0.0, _share(neuron.beta), loses_step=True))


def _rsynaptic(neuron: Any) -> Translation:
    if not neuron.reset_delay:
        raise UserError("snnTorch's own code for reset_delay=False does not reset it; train with reset_delay=True")
    return _recurrent(neuron, _synaptic(neuron))


def _translation(neuron: Any, alpha: Any, beta: Any, loses_step: bool, gain: float = 1.0) -> Translation:
    """gain: the share of the input that v takes. v / gain takes all of it, and spikes above threshold / gain."""
    for option, plain, instead in (
        ("inhibition", False, "lets one neuron of a population fire at a time"),
        ("state_quant", False, "rounds states in a way of its own; quantize here instead"),
        ("graded_spikes_factor", 1, "makes spikes other than 0 and 1; multiply the weights behind them instead"),
    ):
        if getattr(neuron, option) != plain:
            raise UserError(f"{option} = {_shown(getattr(neuron, option))} {instead}")
    mechanism, late = neuron.reset_mechanism, getattr(neuron, "reset_delay", True)
    if mechanism == "none":
        raise UserError("reset_mechanism = 'none': no neuron here goes without a reset")
    if neuron.threshold.numel() != 1:
        raise UserError("it has a threshold for each neuron; divide the weights in front by them, and set it to 1")
    kind = "soft" if mechanism == "subtract" else "hard"
    reset: Any = f"{kind}-late" if late and (kind == "soft" or loses_step) else kind
    theirs = f"{mechanism}, {'a step late' if late else 'at once'}"
    threshold = float(neuron.threshold.detach())
    lif = LIF(beta, alpha, threshold / gain, reset, detach_reset=late)
    rows = reset_rows(theirs, lif)
    if reset == "hard" and late:
        rows.append(("reset", theirs, "hard", "exact: it clears before anything arrives, as if at once"))
    if reset == "soft":
        rows.append(
            ("reset above twice the threshold", "once more in the next step", "once", "equal only below it, as shown")
        )
    if gain != 1:
        rows.append(("threshold", f"{threshold:.6g}, input times T / C", f"{lif.threshold:.6g}", "exact"))
    learned = [what for what in ("alpha", "beta", "threshold") if isinstance(getattr(neuron, what, None), nn.Parameter)]
    return Translation(lif, [*rows, *map(fixed_row, learned)])


def _recurrent(neuron: Any, translation: Translation) -> Translation:
    if isinstance(neuron.recurrent, nn.Conv2d):
        raise UserError("it hears its own spikes through a convolution, and only dense recurrence exists here")
    if isinstance(neuron.recurrent, nn.Linear):
        translation.recurrent = neuron.recurrent.weight.detach()
        translation.recurrent_bias = neuron.recurrent.bias.detach()
    else:
        translation.recurrent = neuron.V.detach()
    return translation


def _share(share: Tensor) -> float | Tensor:
    share = share.detach().clamp(0, 1)
    return float(share) if share.numel() == 1 else share


def _shown(value: Any) -> Any:
    return f"{float(value):g}" if isinstance(value, Tensor) else value


def _clear(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, snntorch.SpikingNeuron):
            part.reset_mem()


def _steps(module: nn.Module, shown: Tensor) -> None:
    for arriving in shown:
        module(arriving)


FRAMEWORK = Framework(
    "snnTorch",
    kinds=(snntorch.SpikingNeuron,),
    neurons={
        snntorch.Leaky: _leaky,
        snntorch.Synaptic: _synaptic,
        snntorch.Lapicque: _lapicque,
        snntorch.RLeaky: _rleaky,
        snntorch.RSynaptic: _rsynaptic,
    },
    layers={},
    ways=Ways(_clear, _steps, sees_all_steps=lambda neuron: False),
)
