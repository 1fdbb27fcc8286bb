"""The fast exact simulator: matrix products over all steps at once, then one compiled scan over time per population.

Exact because every sum is a whole number that the chosen float type holds: float32 while the largest possible partial
sum stays below 2^24, else float64. The scan's integer step is `arithmetic.lif_step` in another form; the tests hold
the two equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.lib.stride_tricks import sliding_window_view

from quantize.arithmetic import (
    CURRENT_DECAY_OFFSET,
    DECAY_BITS,
    DECAY_UNITY,
    STATE_LIMIT,
    STATE_SHIFT,
    is_late,
    readout_current,
    shift,
)
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population
from quantize.recording import Recording, Traces, hash_of

FLOAT32_EXACT = 1 << 24
WORKSPACE = 1 << 26  # bytes that one layer's float input may take; larger batches are cut

Product = Callable[[np.ndarray], np.ndarray]


def run(network: IntegerNetwork, inputs: np.ndarray, states: int = 0) -> Recording:
    """Run inputs [T, B, *input_shape]; u and v of the first `states` samples are recorded too.

    Raises UserError where the inputs do not fit the network.
    """
    inputs = network.check_inputs(inputs)
    steps, samples = inputs.shape[:2]
    states = min(states, samples)
    products = {id(connection): _product(network, connection) for connection in network.connections}
    flat = inputs.reshape(steps, samples, -1)
    emitted = {
        p.name: np.empty((steps, samples, p.size), np.uint8 if p.spiking else np.int32) for p in network.populations
    }
    u = {p.name: np.empty((steps, states, p.size), np.int32) for p in network.populations}
    v = {p.name: np.empty((steps, states, p.size), np.int32) for p in network.populations}
    widest = max((_columns(network, connection) for connection in network.connections), default=1)
    chunk = max(1, WORKSPACE // (4 * steps * widest))
    for first in range(0, samples, chunk):
        part = slice(first, first + chunk)
        layers = {
            p.name: _Layer(network, p, flat[0, part], emitted[p.name][:, part], u[p.name][:, part], v[p.name][:, part])
            for p in network.populations
        }
        sources = {INPUT: flat[:, part]} | {name: layer.emitted for name, layer in layers.items()}
        for names in _components(network):
            in_cycle = len(names) > 1 or any(c.source == c.target for c in network.into(names[0]))
            windows = [slice(t, t + 1) for t in range(steps)] if in_cycle else [slice(0, steps)]
            for window in windows:
                for name in names:
                    layers[name].advance(window, sources, products)

    def shaped(traces: Traces, names: list[str]) -> Traces:
        return {name: traces[name].reshape(*traces[name].shape[:2], *network[name].shape) for name in names}

    spiking = [p.name for p in network.populations if p.spiking]
    traces = {"u": shaped(u, spiking), "v": shaped(v, spiking)} if states else {}
    return Recording("engine", network.hash, hash_of(inputs), shaped(emitted, list(emitted)), **traces)


class _Layer:
    """A population's running state over one batch, and the places [T, B, N] where what it emits and its traces go.

    `shown` [B, input size] is the input of the first step, which is the bias where the input is one.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        population: Population,
        shown: np.ndarray,
        emitted: np.ndarray,
        u: np.ndarray,
        v: np.ndarray,
    ) -> None:
        self.emitted = emitted
        self._population = population
        self._traces = (u, v)
        self._into = network.into(population.name)
        self._state = np.zeros((2, *emitted.shape[1:]), np.int32)
        self._parameters = tuple(
            np.ascontiguousarray(np.broadcast_to(values, population.shape), np.int64).reshape(-1)
            for values in (
                DECAY_UNITY - (population.decay_u.astype(np.int64) + CURRENT_DECAY_OFFSET),
                DECAY_UNITY - population.decay_v.astype(np.int64),
                population.threshold_mant.astype(np.int64) << STATE_SHIFT,
            )
        )
        if population.name == network.input_is_bias_of:
            self._bias = shown.astype(np.int64) << population.bias_exp
        else:
            self._bias = np.broadcast_to(population.bias, population.shape).reshape(1, -1).copy()
        self._modes = (population.reset.startswith("hard"), is_late(population.reset), population.floor)

    def advance(self, window: slice, sources: dict[str, np.ndarray], products: dict[int, Product]) -> None:
        """Run the steps of `window`, which follow the ones run before."""
        emitted, u, v = self.emitted[window], *(trace[window] for trace in self._traces)
        activation = np.zeros(emitted.shape, np.int32)
        steps = len(emitted)
        for connection in self._into:
            late = min(max(connection.delay - window.start, 0), steps)  # steps whose source lies before the start
            source = sources[connection.source][window.start + late - connection.delay : window.stop - connection.delay]
            if late < steps:
                summed = products[id(connection)](source.reshape(-1, source.shape[-1]))
                activation[late:] += shift(summed, connection.exponent).reshape(activation[late:].shape)
        if self._population.spiking:
            _scan(activation, *self._state, *self._parameters, self._bias, *self._modes, emitted, u, v)
        else:
            emitted[:] = readout_current(activation, self._bias)


@njit(cache=True, nogil=True)
def _scan(activation, u, v, keep_u, keep_v, threshold, bias, hard, late, floor, spikes, u_trace, v_trace):  # type: ignore[no-untyped-def]
    """activation [T, B, N] int32; u, v [B, N] int32, updated; parameters [N] and bias [B or 1, N] int64; spikes
    [T, B, N]; traces [T, b, N].

    (p + ((p >> 63) & 4095)) >> 12 is p / 4096 truncated toward zero.
    """
    fraction = DECAY_UNITY - 1
    for b in range(activation.shape[1]):
        traced = b < u_trace.shape[1]
        own_bias = bias[b] if len(bias) > 1 else bias[0]
        for t in range(activation.shape[0]):
            for n in range(activation.shape[2]):
                product = np.int64(u[b, n]) * keep_u[n]
                current = (product + ((product >> 63) & fraction)) >> DECAY_BITS
                current += np.int64(activation[t, b, n]) << STATE_SHIFT
                if current > STATE_LIMIT:
                    current -= 2 * STATE_LIMIT
                elif current <= -STATE_LIMIT:
                    current += 2 * STATE_LIMIT
                product = np.int64(v[b, n]) * keep_v[n]
                voltage = ((product + ((product >> 63) & fraction)) >> DECAY_BITS) + current + own_bias[n]
                if late and v[b, n] > threshold[n]:
                    voltage = 0 if hard else voltage - threshold[n]
                voltage = min(max(voltage, -(STATE_LIMIT - 1)), STATE_LIMIT - 1)
                if floor:
                    voltage = max(voltage, 0)
                fires = voltage > threshold[n]
                if fires and not late:
                    voltage = 0 if hard else voltage - threshold[n]
                u[b, n] = current
                v[b, n] = voltage
                spikes[t, b, n] = fires
                if traced:
                    u_trace[t, b, n] = current
                    v_trace[t, b, n] = voltage


def _product(network: IntegerNetwork, connection: Connection) -> Product:
    """The connection's sum before the shift, as a function: spikes uint8 [M, N] -> int32 or int64 [M, outputs]."""
    worst = int(connection.row_sums.max()) * network.payload_max(connection.source)
    real: Any = np.float32 if worst < FLOAT32_EXACT else np.float64
    whole = np.int32 if worst < 1 << 31 else np.int64
    if not connection.is_conv:
        transposed = np.ascontiguousarray(connection.weight.T, real)
        return lambda spikes: (spikes.astype(real) @ transposed).astype(whole)
    shape, (rows, columns) = network.shape_of(connection.source), connection.padding
    (down, right), (vertical, horizontal) = connection.dilation, connection.stride
    outputs, group_channels, height, width = connection.weight.shape
    per_group = outputs // connection.groups
    kernels = [
        np.ascontiguousarray(kernel.reshape(per_group, -1).T, real)
        for kernel in np.split(connection.weight, connection.groups)
    ]
    block = max(1, WORKSPACE // (4 * _columns(network, connection)))

    def convolve(spikes: np.ndarray) -> np.ndarray:
        maps = spikes.reshape(-1, *shape)
        padded = np.pad(maps, ((0, 0), (0, 0), (rows, rows), (columns, columns)))
        span = (down * (height - 1) + 1, right * (width - 1) + 1)
        windows = sliding_window_view(padded, span, (2, 3))  # type: ignore[call-overload]
        windows = windows[:, :, ::vertical, ::horizontal, ::down, ::right]
        summed = np.empty((len(spikes), outputs, *windows.shape[2:4]), whole)
        for group, kernel in enumerate(kernels):
            channels = slice(group * group_channels, (group + 1) * group_channels)
            targets = slice(group * per_group, (group + 1) * per_group)
            for first in range(0, len(spikes), block):
                patches = windows[first : first + block, channels].transpose(0, 2, 3, 1, 4, 5).astype(real)
                product = patches.reshape(*patches.shape[:3], -1) @ kernel
                summed[first : first + block, targets] = product.transpose(0, 3, 1, 2)
        return summed.reshape(len(spikes), -1)

    return convolve


def _columns(network: IntegerNetwork, connection: Connection) -> int:
    """Floats that one sample's step takes as the left side of the connection's matrix product."""
    source = network.shape_of(connection.source)
    if not connection.is_conv:
        return int(np.prod(source))
    positions = connection.output_shape(source)[1:]
    return int(np.prod(positions)) * connection.weight[0].size


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
