"""What an input pushes activations, currents and voltages to: derived from recorded states, whoever recorded them."""

from __future__ import annotations

import numpy as np

from quantize import arithmetic as rules
from quantize import engine
from quantize.bounds.certificate import Pair
from quantize.bounds.intervals import bias_of, lost, threshold_of
from quantize.integer_network import INPUT, IntegerNetwork
from quantize.recording import Recording
from quantize.reference import activation as activated

SAMPLES_AT_ONCE = 16  # of which all states are held


def reached(network: IntegerNetwork, inputs: np.ndarray, ran: Recording, name: str) -> dict[str, np.ndarray]:
    """The activation, u before it wraps and v before it saturates (but raised to a floor), int64 [T, B, *shape], of a
    population in a recording that holds all states."""
    population = network[name]
    bias = bias_of(network, name)[0] if name != network.input_is_bias_of else _loaded(network, inputs)
    if not population.spiking:
        return {"activation": (ran.spikes[name].astype(np.int64) - bias) >> rules.STATE_SHIFT}
    u, v = ran.u[name].astype(np.int64), ran.v[name].astype(np.int64)
    last_u, last_v = (np.concatenate([np.zeros_like(state[:1]), state[:-1]]) for state in (u, v))
    lost_u, lost_v = lost(population)
    kept = rules.truncate_toward_zero(last_u * (rules.DECAY_UNITY - lost_u))
    if _wraps_at_most_once(network, name):
        limit = rules.STATE_LIMIT
        activation = ((u - kept + limit) % (2 * limit) - limit) >> rules.STATE_SHIFT
    else:
        activation = _activation(network, inputs, ran, name)
    voltage = rules.truncate_toward_zero(last_v * (rules.DECAY_UNITY - lost_v)) + u + bias
    if rules.is_late(population.reset):
        after = 0 if population.reset.startswith("hard") else voltage - threshold_of(population)
        voltage = np.where(last_v > threshold_of(population), after, voltage)
    return {
        "activation": activation,
        "u": kept + (activation << rules.STATE_SHIFT),
        "v": np.maximum(voltage, 0) if population.floor else voltage,
    }


def observed(network: IntegerNetwork, inputs: np.ndarray) -> dict[str, dict[str, Pair]]:
    """The least and the largest value of each quantity of each population on inputs [T, B, *input_shape]."""
    found: dict[str, dict[str, Pair]] = {name: {} for name in network.order}
    for first in range(0, inputs.shape[1], SAMPLES_AT_ONCE):
        part = np.ascontiguousarray(inputs[:, first : first + SAMPLES_AT_ONCE])
        ran = engine.run(network, part, part.shape[1])
        for name, ranges in found.items():
            for quantity, values in reached(network, part, ran, name).items():
                here = int(values.min()), int(values.max())
                low, high = ranges.get(quantity, here)
                ranges[quantity] = min(low, here[0]), max(high, here[1])
    return found


def _loaded(network: IntegerNetwork, inputs: np.ndarray) -> np.ndarray:
    return inputs.astype(np.int64) << network[network.input_is_bias_of].bias_exp


def _wraps_at_most_once(network: IntegerNetwork, name: str) -> bool:
    """Whether activations are so small that two successive currents tell them, even if the second has wrapped."""
    worst = sum(network.largest_sum(connection) * 2.0**connection.exponent + 1 for connection in network.into(name))
    return bool(worst < rules.STATE_LIMIT >> rules.STATE_SHIFT)


def _activation(network: IntegerNetwork, inputs: np.ndarray, ran: Recording, name: str) -> np.ndarray:
    emitted = {INPUT: inputs, **ran.spikes}
    total = np.zeros((*inputs.shape[:2], *network[name].shape), np.int64)
    for connection in network.into(name):
        source = emitted[connection.source][: max(len(inputs) - connection.delay, 0)]
        if len(source):
            summed = activated(connection, source.reshape(-1, *source.shape[2:]))
            total[connection.delay :] += summed.reshape(*source.shape[:2], *network[name].shape)
    return total
