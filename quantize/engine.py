"""The fast exact simulator: each population's activation over many steps at once, then one compiled scan over time.

What its connections add is `quantize/synapses.py`. The scan's integer step is `arithmetic.lif_step` in 32 bits; the
tests hold the two equal.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from quantize.arithmetic import (
    CURRENT_DECAY_OFFSET,
    DECAY_BITS,
    DECAY_UNITY,
    STATE_LIMIT,
    STATE_SHIFT,
    is_late,
    readout_current,
)
from quantize.integer_network import INPUT, IntegerNetwork, Population
from quantize.recording import Recording, Traces, hash_of
from quantize.synapses import adder

WORKSPACE = 1 << 21  # bytes that one population's activation may take; larger batches are cut
SATURATING = 1 << 30  # a current that saturates v whatever else is added, and that 32 bits can still be added to


def run(network: IntegerNetwork, inputs: np.ndarray, states: int = 0) -> Recording:
    """Run inputs [T, B, *input_shape]; u and v of the first `states` samples are recorded too.

    Raises UserError where the inputs do not fit the network.
    """
    inputs = network.check_inputs(inputs)
    return Recording("engine", network.hash, hash_of(inputs), *simulate(network, inputs, states))


def simulate(network: IntegerNetwork, inputs: np.ndarray, states: int = 0) -> tuple[Traces, Traces, Traces]:
    """What all populations emit, u and v, as a Recording holds them, of checked inputs."""
    steps, samples = inputs.shape[:2]
    states = min(states, samples)
    flat = np.ascontiguousarray(inputs).reshape(steps, samples, -1)
    still = all(np.array_equal(flat[0], shown) for shown in flat[1:])
    chunk = min(samples, max(1, WORKSPACE // (4 * steps * max(p.size for p in network.populations))))
    layers = {p.name: _Layer(network, p, (steps, samples, states), chunk, still) for p in network.populations}
    sources = {INPUT: flat} | {name: layer.emitted for name, layer in layers.items()}
    components = _components(network)
    for first in range(0, samples, chunk):
        for layer in layers.values():
            layer.begin(first, min(chunk, samples - first), flat)
        for names in components:
            for name in names:
                layers[name].hear(sources, {INPUT, *layers} - {*names}, 0, steps)
            in_cycle = any(c.source in names for name in names for c in network.into(name))
            for start, stop in [(t, t + 1) for t in range(steps)] if in_cycle else [(0, steps)]:
                for name in names:
                    layers[name].hear(sources, {*names}, start, stop)
                    layers[name].fire(start, stop)

    def shaped(traces: Traces) -> Traces:
        return {name: trace.reshape(*trace.shape[:2], *network[name].shape) for name, trace in traces.items()}

    emitted = shaped({name: layer.emitted for name, layer in layers.items()})
    spiking = [p.name for p in network.populations if p.spiking] if states else []
    u, v = (shaped({name: layers[name].traces[place] for name in spiking}) for place in (0, 1))
    return emitted, u, v


class _Layer:
    """A population's running state over one batch of samples, and the places [T, B, N] where what it emits and its
    traces go, for all of them.

    `still`: the input is the same at every step.
    """

    def __init__(
        self, network: IntegerNetwork, population: Population, sizes: tuple[int, int, int], chunk: int, still: bool
    ) -> None:
        steps, samples, states = sizes
        self._population, self._still, self._size = population, still, population.size
        self._takes_bias = population.name == network.input_is_bias_of
        self._adders = [(connection, adder(network, connection)) for connection in network.into(population.name)]
        *self._parameters, bias = (
            np.ascontiguousarray(np.broadcast_to(values, population.shape), np.int32).reshape(-1)
            for values in (
                DECAY_UNITY - (population.decay_u + CURRENT_DECAY_OFFSET),
                DECAY_UNITY - population.decay_v,
                population.threshold_mant << STATE_SHIFT,
                population.bias,
            )
        )
        self._bias = bias[None]
        self._modes = (population.reset.startswith("hard"), is_late(population.reset), population.floor)
        self._space = np.empty(steps * chunk * self._size, np.int32)  # new pages for every batch would take a while
        self.emitted = np.empty((steps, samples, self._size), np.uint8 if population.spiking else np.int32)
        self.traces = tuple(np.empty((steps, states, self._size), np.int32) for _ in ("u", "v"))

    def begin(self, first: int, samples: int, flat: np.ndarray) -> None:
        """Start with so many samples from `first` on; flat [T, B, I] is the network's input."""
        steps = len(self.emitted)
        self._first = first
        self._activation = self._space[: steps * samples * self._size].reshape(steps, samples, self._size)
        self._activation[:] = 0
        self._state = np.zeros((2, samples, self._size), np.int32)
        if self._takes_bias:
            self._bias = flat[0, first : first + samples].astype(np.int32) << self._population.bias_exp

    def hear(self, sources: dict[str, np.ndarray], names: set[str], start: int, stop: int) -> None:
        """Add to the activation of those steps what the named sources send."""
        for connection, add in self._adders:
            if connection.source not in names:
                continue
            heard = self._activation[max(start, connection.delay) : stop]
            if connection.source == INPUT and self._still:
                once = np.zeros((1, *heard.shape[1:]), np.int32)
                add(sources[INPUT], 0, self._first, once)
                heard += once
            elif len(heard):
                add(sources[connection.source], max(start - connection.delay, 0), self._first, heard)

    def fire(self, start: int, stop: int) -> None:
        """Run those steps, which follow the ones run before."""
        if self._population.spiking:
            window, places = (start, stop, self._first), (self.emitted, *self.traces)
            _scan(self._activation, *window, *self._state, *self._parameters, self._bias, *self._modes, *places)
        else:
            currents = readout_current(self._activation[start:stop], self._bias)
            self.emitted[start:stop, self._first : self._first + currents.shape[1]] = currents


@njit(cache=True, nogil=True)
def decayed(state, share):  # type: ignore[no-untyped-def]
    """state share / 4096 truncated toward zero, without leaving 32 bits: 4096 times the high bits are multiplied apart
    from the low ones, and a negative quotient is rounded up."""
    negative = (state >> np.int32(31)) & np.int32(DECAY_UNITY - 1)
    low = np.int32(np.int32(np.int32(state & np.int32(DECAY_UNITY - 1)) * share) + negative)
    return np.int32(np.int32((state >> np.int32(DECAY_BITS)) * share) + (low >> np.int32(DECAY_BITS)))


@njit(cache=True, nogil=True)
def _scan(  # type: ignore[no-untyped-def]
    activation, start, stop, first, u, v, keep_u, keep_v, threshold, bias, hard, late, floor, spikes, u_trace, v_trace
):
    """activation [T, b, N]; u, v [b, N], updated; parameters [N]; bias [b or 1, N]; all int32. The batch is the samples
    from `first` on of spikes uint8 [T, B, N], and of the traces [T, states, N].
    """
    for b in range(activation.shape[1]):
        own_bias = bias[b] if len(bias) > 1 else bias[0]
        for t in range(start, stop):
            for n in range(activation.shape[2]):
                current = np.int32(decayed(u[b, n], keep_u[n]) + (activation[t, b, n] << np.int32(STATE_SHIFT)))
                if current > STATE_LIMIT:
                    current = np.int32(current - np.int32(2 * STATE_LIMIT))
                elif current <= -STATE_LIMIT:
                    current = np.int32(current + np.int32(2 * STATE_LIMIT))
                added = min(max(current, np.int32(-SATURATING)), np.int32(SATURATING))
                voltage = np.int32(decayed(v[b, n], keep_v[n]) + added + own_bias[n])
                if late and v[b, n] > threshold[n]:
                    voltage = np.int32(0) if hard else np.int32(voltage - threshold[n])
                voltage = min(max(voltage, np.int32(-(STATE_LIMIT - 1))), np.int32(STATE_LIMIT - 1))
                if floor:
                    voltage = max(voltage, np.int32(0))
                fires = voltage > threshold[n]
                if fires and not late:
                    voltage = np.int32(0) if hard else np.int32(voltage - threshold[n])
                u[b, n] = current
                v[b, n] = voltage
                spikes[t, first + b, n] = fires
            if first + b < u_trace.shape[1]:
                u_trace[t, first + b] = u[b]
                v_trace[t, first + b] = v[b]


def _components(network: IntegerNetwork) -> list[list[str]]:
    """Populations in order, those that lie on a common cycle grouped, since they must advance step by step together."""
    reach = {p.name: {p.name} for p in network.populations}
    for _ in network.populations:
        for connection in network.connections:
            if connection.source != INPUT:
                reach[connection.source] |= reach[connection.target]
    components: list[list[str]] = []
    placed: set[str] = set()
    while len(placed) < len(reach):
        for name in network.order:
            group = [other for other in network.order if other in reach[name] and name in reach[other]]
            sources = {c.source for member in group for c in network.into(member)} - {INPUT, *group}
            if name not in placed and sources <= placed:
                components.append(group)
                placed.update(group)
    return components
