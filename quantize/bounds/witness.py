"""Looks for an input on which a register is left.

It starts from the input that drives a neuron hardest, the one that its bound rests on, at every step; and goes on by
chance: stretches of time get that input, what opposes it, parts of either or nothing, and what pushes further stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np

from quantize import arithmetic as rules
from quantize import engine, reference
from quantize.bounds.certificate import Witness
from quantize.bounds.intervals import LIMITS
from quantize.bounds.replay import reached
from quantize.integer_network import INPUT, Connection, IntegerNetwork

TRIED_AT_ONCE = 32
STRONGEST = 16  # neurons of a population through which an input's influence is followed, and a quarter before each
LENGTHS = (64, 1024, 1 << 14)  # steps that are tried where a sample may have any number
STATES_MAX = 1 << 25  # that one try may take


def search(
    network: IntegerNetwork, name: str, quantity: str, bound: np.ndarray, steps: int | None, until: float
) -> Witness | None:
    """An input of at most so many steps on which a neuron of the population leaves its register, if one is found until
    then, a time of `time.monotonic`. bound [2, *shape]: of that quantity."""
    least, most = LIMITS[quantity]
    rng = np.random.default_rng(0)
    sides = [(sign, side) for sign, side in ((-1, least - bound[0]), (1, bound[1] - most)) if side.max() > 0]
    for left, (sign, beyond) in zip(range(len(sides), 0, -1), sides, strict=True):
        stop = time.monotonic() + (until - time.monotonic()) / left
        neuron = tuple(int(i) for i in np.unravel_index(int(beyond.argmax()), beyond.shape))
        pull = sign * influence(network, name, neuron)
        for inputs in _tries(network, pull, steps, rng, partial(_score, network, name, quantity, sign)):
            found = confirmed(network, name, quantity, inputs)
            if found is not None:
                return found
            if time.monotonic() > stop:
                break
    return None


def influence(network: IntegerNetwork, name: str, neuron: tuple[int, ...]) -> np.ndarray:
    """About how much each input drives a neuron, float [*input_shape], along the strongest paths that go forwards."""
    places = {place: index for index, place in enumerate(network.order)}

    @cache
    def pull(name: str, neuron: tuple[int, ...], followed: int) -> np.ndarray:
        total = np.zeros(network.input_shape)
        if name == network.input_is_bias_of:
            total[neuron] = 1.0
        for connection in network.into(name):
            weights = receptive(connection, network.shape_of(connection.source), neuron) * 2.0**connection.exponent
            if connection.source == INPUT:
                total += weights
            elif places[connection.source] < places[name]:
                threshold = np.broadcast_to(network[connection.source].threshold_mant, weights.shape)
                for flat in np.argsort(-np.abs(weights), axis=None)[:followed]:
                    place = tuple(int(i) for i in np.unravel_index(flat, weights.shape))
                    if weights[place]:
                        before = pull(connection.source, place, max(followed // 4, 1))
                        total += weights[place] / (1 + threshold[place]) * before
        return total

    return pull(name, neuron, STRONGEST)


def receptive(connection: Connection, source: tuple[int, ...], neuron: tuple[int, ...]) -> np.ndarray:
    """The weights with which one neuron reads a source of that shape, int64 [*source]."""
    if not connection.is_conv:
        return connection.weight[neuron[0]].astype(np.int64).reshape(source)
    read = np.zeros(source, np.int64)
    output, y, x = neuron
    channels = connection.weight.shape[1]
    group = output // (len(connection.weight) // connection.groups)
    rows, columns = (taps[place] for taps, place in zip(connection.taps(source), (y, x), strict=True))
    down, right = (rows >= 0) & (rows < source[1]), (columns >= 0) & (columns < source[2])
    kernel = connection.weight[output][:, down][:, :, right]
    read[group * channels : (group + 1) * channels, rows[down, None], columns[right]] = kernel
    return read


def _tries(
    network: IntegerNetwork,
    pull: np.ndarray,
    steps: int | None,
    rng: np.random.Generator,
    score: Callable[[np.ndarray], np.ndarray],
) -> Iterator[np.ndarray]:
    """Inputs [T, *input_shape], each at least as strong as the one before."""
    if network.input_is_bias_of:
        half = 1 << (rules.BIAS_BITS - 1)
        kinds = [np.where(pull > 0, half - 1, -half).astype(np.int16)]
    else:
        kinds = [(network.payload_max(INPUT) * (side * pull > 0)).astype(np.uint8) for side in (1, -1)]
    fits = [n for n in ([steps] if steps else LENGTHS) if n * sum(p.size for p in network.populations) <= STATES_MAX]
    for length in fits:
        yield np.broadcast_to(kinds[0], (length, *network.input_shape)).copy()
    if network.input_is_bias_of or not fits:
        return
    best = np.broadcast_to(kinds[0], (fits[0], *network.input_shape)).copy()
    reached = -np.inf
    while True:
        tried = np.repeat(best[:, None], TRIED_AT_ONCE, axis=1)
        for sample in range(1, TRIED_AT_ONCE):
            first, last = np.sort(rng.integers(0, len(best) + 1, 2))
            kind = rng.integers(0, 4)
            kept = rng.random(network.input_shape) < rng.choice([0.0, 0.5, 0.9, 1.0])
            tried[first:last, sample] = kinds[kind % 2] * (kept if kind > 1 else 1)
        found = score(tried)
        strongest = int(found.argmax())
        if found[strongest] >= reached:
            best, reached = tried[:, strongest], found[strongest]
        yield best


def _score(network: IntegerNetwork, name: str, quantity: str, sign: int, tried: np.ndarray) -> np.ndarray:
    """How far each sample [T, B, *input_shape] pushes the quantity, upwards or downwards, in any neuron."""
    values = reached(network, tried, engine.run(network, tried, tried.shape[1]), name)[quantity]
    return np.asarray((sign * values).max(axis=(0, *range(2, values.ndim))))


def confirmed(network: IntegerNetwork, name: str, quantity: str, inputs: np.ndarray) -> Witness | None:
    """The witness that an input [T, *input_shape] is, cut behind the overflow, if engine and reference agree."""
    least, most = LIMITS[quantity]
    batch = inputs[:, None]
    values = reached(network, batch, engine.run(network, batch, 1), name)[quantity][:, 0]
    outside = np.argwhere((values < least) | (values > most))
    if not len(outside):
        return None
    step, *neuron = (int(i) for i in outside[0])
    if network.time_weights is None:
        batch = batch[: step + 1]
    again = reached(network, batch, reference.run(network, batch, 1), name)[quantity][(step, 0, *neuron)]
    assert again == values[(step, *neuron)]
    return Witness(tuple(neuron), step, int(again), batch[:, 0])
