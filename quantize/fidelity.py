"""How far the float network's spikes are from the integers': the one step that loses something, measured.

Equality is not expected here, so this reports distances, population by population, and what they do to the predictions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from scipy import stats

from base.errors import UserError
from quantize.integer_network import IntegerNetwork
from quantize.recording import Recording, predictions

TRAINS = 100_000  # that Victor-Purpura distances are averaged over: the time for one grows with its spikes, squared
CONFIDENCE = 0.95


def fidelity(
    float_recording: Recording,
    integer_recording: Recording,
    labels: np.ndarray,
    network: IntegerNetwork,
    time_constant: float = 5.0,
) -> dict[str, Any]:
    """Compare the float and the integer run of the same inputs; labels [B] are the classes, and the network says what
    is the output and how it is read. All values are JSON's own.

    Per population with neurons that both recorded: the share of neuron-steps that differ; firing rates (spikes per
    neuron and step), their drift (integer minus float), and the earth mover's distance between the distributions of the
    neurons' rates, which sees neurons change where the mean does not; the van Rossum distance, its time constant in
    steps, averaged over neurons and samples; and the Victor-Purpura distance of cost 1 / time constant, averaged over
    as many spike trains as it says: all, or TRAINS drawn from seed 0.
    Overall: both accuracies, and the share of samples on which the predictions agree with its 95 % confidence interval
    (Wilson's: it stays inside 0..1 and means something at 100 % too).
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
    agreeing = float_classes == integer_classes
    interval = stats.binomtest(int(agreeing.sum()), len(agreeing)).proportion_ci(CONFIDENCE, method="wilson")
    return {
        "float": float_recording.backend,
        "integer": integer_recording.backend,
        "samples": integer_recording.samples,
        "steps": integer_recording.steps,
        "time_constant_steps": float(time_constant),
        "victor_purpura_cost": 1 / time_constant,
        "populations": {name: _distances(ours[name], theirs[name], time_constant) for name in common},
        "accuracy": {
            "float": float((float_classes == labels).mean()),
            "integer": float((integer_classes == labels).mean()),
        },
        "agreement": float(agreeing.mean()),
        "agreement_interval": [float(interval.low), float(interval.high)],
    }


def differences(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Of the rasters [T, B, *shape] of a float and an integer population: the share of neuron-steps that differ, the
    rates, and the drift from one to the other."""
    float_rate, integer_rate = float(ours.mean()), float(theirs.mean())
    return {
        "differing_share": float((ours != theirs).mean()),
        "float_rate": float_rate,
        "integer_rate": integer_rate,
        "rate_drift": integer_rate - float_rate,
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


def victor_purpura(a: np.ndarray, b: np.ndarray, cost: float) -> np.ndarray:
    """Distance of spike trains [T, ...] along time, float64 [...]: the least that turns one train into the other, where
    adding or removing a spike costs 1 and moving it costs `cost` a step.

    Victor and Purpura, "Nature and precision of temporal coding in visual cortex", J. Neurophysiology 76(2), 1996.
    """
    ours, theirs = (np.ascontiguousarray(trains.reshape(len(trains), -1).T != 0) for trains in (a, b))
    distances = np.empty(len(ours))
    _least_costs(ours, theirs, cost, distances)
    return distances.reshape(a.shape[1:])


@njit(cache=True, nogil=True)
def _least_costs(a, b, cost, distances):  # type: ignore[no-untyped-def]
    """a, b [N, T] bool -> distances [N]. least[j] is that of the spikes of a so far and the first j of b."""
    for n in range(len(a)):
        ours, theirs = np.flatnonzero(a[n]), np.flatnonzero(b[n])
        least = np.arange(len(theirs) + 1).astype(np.float64)
        for i in range(len(ours)):
            diagonal, least[0] = least[0], i + 1.0
            for j in range(len(theirs)):
                moved = diagonal + cost * abs(ours[i] - theirs[j])
                diagonal = least[j + 1]
                least[j + 1] = min(moved, diagonal + 1, least[j] + 1)
        distances[n] = least[-1]


def _distances(ours: np.ndarray, theirs: np.ndarray, time_constant: float) -> dict[str, float]:
    float_rates, integer_rates = (raster.mean(axis=(0, 1)).ravel() for raster in (ours, theirs))
    a, b = (raster.reshape(len(raster), -1) for raster in (ours, theirs))
    if a.shape[1] > TRAINS:
        drawn = np.random.default_rng(0).choice(a.shape[1], TRAINS, replace=False)
        a, b = a[:, drawn], b[:, drawn]
    return differences(ours, theirs) | {
        "rate_earth_mover": float(stats.wasserstein_distance(float_rates, integer_rates)),
        "van_rossum": float(van_rossum(ours, theirs, time_constant).mean()),
        "victor_purpura": float(victor_purpura(a, b, 1 / time_constant).mean()),
        "victor_purpura_trains": a.shape[1],
    }
