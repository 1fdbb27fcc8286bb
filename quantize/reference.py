"""The reference: an integer network run literally, step by step, with the functions of `arithmetic.py` alone.

Slow, and short enough to be audited in one reading. All other backends are compared with it.
"""

from __future__ import annotations

import numpy as np

from quantize.arithmetic import LOIHI_LIF_V1, Rules, conv_sum, dense_sum, lif_step, readout_current, shift
from quantize.integer_network import INPUT, Connection, IntegerNetwork
from quantize.recording import Recording, Traces, hash_of


def activation(connection: Connection, spikes: np.ndarray) -> np.ndarray:
    """What one connection adds to its target for source spikes [B, *source]: int64 [B, *target]."""
    if connection.is_conv:
        geometry = {name: getattr(connection, name) for name in ("stride", "padding", "dilation", "groups")}
        accumulated = conv_sum(spikes, connection.weight, **geometry)
    else:
        accumulated = dense_sum(spikes, connection.weight)
    return shift(accumulated, connection.exponent)


def run(network: IntegerNetwork, inputs: np.ndarray, states: int = 0, rules: Rules = LOIHI_LIF_V1) -> Recording:
    """Run inputs [T, B, *input_shape]; u and v of the first `states` samples are recorded too.

    Raises UserError where the inputs do not fit the network.
    """
    inputs = network.check_inputs(inputs)
    steps, samples = inputs.shape[:2]
    states = min(states, samples)
    emitted = {INPUT: inputs}
    u, v = {}, {}
    u_trace: Traces = {}
    v_trace: Traces = {}
    for population in network.populations:
        name, kind = population.name, np.uint8 if population.spiking else np.int32
        emitted[name] = np.zeros((steps, samples, *population.shape), kind)
        if population.spiking:
            u[name] = v[name] = np.zeros((samples, *population.shape), np.int64)
            u_trace[name] = np.zeros((steps, states, *population.shape), np.int32)
            v_trace[name] = np.zeros((steps, states, *population.shape), np.int32)
    for t in range(steps):
        for name in network.order:
            population = network[name]
            total = np.zeros((samples, *population.shape), np.int64)
            for connection in network.into(name):
                if t >= connection.delay:
                    total += activation(connection, emitted[connection.source][t - connection.delay])
            if not population.spiking:
                emitted[name][t] = readout_current(total, population.bias)
                continue
            bias = population.bias
            if name == network.input_is_bias_of:
                bias = inputs[t].astype(np.int64) << population.bias_exp
            u[name], v[name], emitted[name][t] = lif_step(
                u[name],
                v[name],
                total,
                decay_u=population.decay_u,
                decay_v=population.decay_v,
                threshold_mant=population.threshold_mant,
                bias=bias,
                reset=population.reset,
                floor=population.floor,
                rules=rules,
            )
            u_trace[name][t], v_trace[name][t] = u[name][:states], v[name][:states]
    emitted.pop(INPUT)
    traces = {"u": u_trace, "v": v_trace} if states else {}
    return Recording("reference", network.hash, hash_of(inputs), emitted, **traces)
