"""How far the float network's spikes are from the integers': the one step that loses something, measured.

Equality is not expected here, so this reports distances, population by population, and what they do to the predictions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from base.errors import UserError
from quantize.integer_network import IntegerNetwork
from quantize.recording import Recording, predictions


def fidelity(
    float_recording: Recording,
    integer_recording: Recording,
    labels: np.ndarray,
    network: IntegerNetwork,
    time_constant: float = 5.0,
) -> dict[str, Any]:
    """Compare the float and the integer run of the same inputs; labels [B] are the classes, and the network says what
    is the output and how it is read. All values are JSON's own.

    Per population with neurons that both recorded: the share of neuron-steps that differ, firing rates (spikes per
    neuron and step), their drift (integer minus float) and the van Rossum distance, its time constant in steps,
    averaged over neurons and samples.
    Overall: both accuracies and the share of samples on which the predictions agree.
    Raises UserError where the inputs, shapes or number of labels differ, or the output is missing from one side.
    """
    if float_recording.inputs != integer_recording.inputs:
        raise UserError(
            f"fidelity: {float_recording.backend} ran the input {float_recording.inputs[:12]}, "
            f"{integer_recording.backend} the input {integer_recording.inputs[:12]}; record both from the same input."
        )
    ours, theirs = float_recording.spikes, integer_recording.spikes
    output = network.output
    for recording in (float_recording, integer_recording):
        if output not in recording.spikes:
            raise UserError(
                f"fidelity: {recording.backend} did not record the output '{output}', only {sorted(recording.spikes)}; "
                "record it too."
            )
    common = [name for name in integer_recording.spiking if name in ours]
    for name in common:
        if ours[name].shape != theirs[name].shape:
            raise UserError(
                f"fidelity: population '{name}' has shape {ours[name].shape} in {float_recording.backend} and "
                f"{theirs[name].shape} in {integer_recording.backend}; record the same steps, samples and neurons."
            )
    labels = np.asarray(labels)
    if labels.shape != (integer_recording.samples,):
        raise UserError(
            f"fidelity: there are labels of shape {labels.shape} for {integer_recording.samples} recorded samples; "
            "give one class per sample."
        )
    float_classes, integer_classes = (predictions(ran, network) for ran in (float_recording, integer_recording))
    return {
        "float": float_recording.backend,
        "integer": integer_recording.backend,
        "samples": integer_recording.samples,
        "steps": integer_recording.steps,
        "time_constant_steps": float(time_constant),
        "populations": {name: _distances(ours[name], theirs[name], time_constant) for name in common},
        "accuracy": {
            "float": float((float_classes == labels).mean()),
            "integer": float((integer_classes == labels).mean()),
        },
        "agreement": float((float_classes == integer_classes).mean()),
    }


def van_rossum(a: np.ndarray, b: np.ndarray, time_constant: float) -> np.ndarray:
    """Distance of spike trains [T, ...] along time, float64 [...]: 0 if equal, sqrt(1/2) for one spike too many.

    D^2 = 1/tau * integral of (f - g)^2 over all time, f and g being the trains filtered with exp(-t / tau), t >= 0
    (van Rossum, "A novel spike distance", Neural Computation 13(4), 2001). For spikes at whole steps, with
    q = exp(-1/tau) and d[t] = q d[t - 1] + a[t] - b[t], the integral is exactly (1 - q^2) / 2 * sum of d[t]^2 over the
    steps, and what follows the last one adds d[T - 1]^2 q^2 / 2.
    """
    q = np.exp(-1.0 / time_constant)
    difference = np.zeros(a.shape[1:])
    total = np.zeros(a.shape[1:])
    for ours, theirs in zip(a, b, strict=True):
        difference = q * difference + (ours.astype(np.float64) - theirs)
        total += difference**2
    return np.sqrt(((1 - q**2) * total + q**2 * difference**2) / 2)


def _distances(ours: np.ndarray, theirs: np.ndarray, time_constant: float) -> dict[str, float]:
    float_rate, integer_rate = float(ours.mean()), float(theirs.mean())
    return {
        "differing_share": float((ours != theirs).mean()),
        "float_rate": float_rate,
        "integer_rate": integer_rate,
        "rate_drift": integer_rate - float_rate,
        "van_rossum": float(van_rossum(ours, theirs, time_constant).mean()),
    }
