"""Hypothesis strategies that draw whole random integer networks and inputs that reach their edges.

Structure and scalars are drawn one by one, so that failures shrink; arrays are filled from a drawn seed, so that
hundreds of networks cost seconds.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st

from quantize.arithmetic import RESETS
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population, readout

DECAYS = st.one_of(st.sampled_from([0, 1, 2048, 4094, 4095]), st.integers(0, 4095))
THRESHOLDS = st.one_of(st.integers(0, 2000), st.sampled_from([0, 1, 131070, 131071]), st.integers(0, 131071))


def _weights(rng: np.random.Generator, shape: tuple[int, ...], signs: str) -> np.ndarray:
    weight = 2 * rng.integers(-128, 128, shape)
    match signs:
        case "positive":
            return np.abs(weight).clip(max=254)
        case "negative":
            return -np.abs(weight)
        case "zero":
            return np.zeros_like(weight)
        case "extreme":
            return np.where(weight < 0, -256, 254)
        case "small":
            return weight // 64 * 2
    return weight


@st.composite
def _per_neuron(draw: st.DrawFn, values: st.SearchStrategy[int], shape: tuple[int, ...], scalar: bool) -> np.ndarray:
    if scalar or draw(st.booleans()):
        return np.asarray(draw(values))
    choices = np.array(draw(st.lists(values, min_size=2, max_size=4)))
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).choice(choices, shape)


@st.composite
def populations(
    draw: st.DrawFn, name: str, shape: tuple[int, ...], stock: bool = False, least_decay_u: int = 0
) -> Population:
    """A population of that name and shape; `stock`: one that Lava's LIFReset can hold."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bias_span = draw(st.sampled_from([16, 4095, 0]))
    bias_shape = shape if len(shape) == 1 or draw(st.booleans()) else (shape[0], 1, 1)
    return Population(
        name,
        shape,
        decay_u=np.maximum(draw(_per_neuron(DECAYS, shape, stock)), least_decay_u),
        decay_v=draw(_per_neuron(DECAYS, shape, stock)),
        threshold_mant=draw(_per_neuron(THRESHOLDS, shape, stock)),
        bias_mant=rng.integers(-bias_span - (bias_span > 0), bias_span + 1, bias_shape),
        bias_exp=draw(st.integers(0, 7)),
        reset="hard" if stock else draw(st.sampled_from(RESETS)),
        floor=False if stock else draw(st.booleans()),
    )


@st.composite
def _connection(
    draw: st.DrawFn, source: str, target: str, shape: tuple[int, ...], payload_max: int, room: int
) -> Connection:
    """A dense or, from a map, perhaps convolutional connection out of a source of that shape and largest payload."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    signs = draw(st.sampled_from(["mixed", "mixed", "positive", "negative", "zero", "extreme", "small"]))
    exponent = draw(st.one_of(st.sampled_from([0, 5, 7]), st.integers(-8, 7)))
    if len(shape) == 3 and draw(st.booleans()):
        kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
        padding = tuple(
            draw(st.integers(max(0, (d * (k - 1) + 2 - size) // 2), 2))
            for k, d, size in zip(kernel, dilation, shape[1:], strict=True)
        )
        groups = draw(st.sampled_from([g for g in (1, 2, 3) if shape[0] % g == 0]))
        channels = groups * draw(st.integers(1, 2))
        weight = _weights(rng, (channels, shape[0] // groups, *kernel), signs)
        geometry: dict[str, Any] = {
            "stride": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
        }
    else:
        weight, geometry = _weights(rng, (draw(st.integers(1, 6)), int(np.prod(shape))), signs), {}
    # Even with two parallel connections the activation stays below `room`.
    worst = max(1, int(np.abs(weight).reshape(len(weight), -1).sum(axis=1).max()) * payload_max)
    exponent = max(-8, min(exponent, (room // (4 * worst)).bit_length() - 1))
    return Connection(source, target, weight, exponent, **geometry)


@st.composite
def networks(
    draw: st.DrawFn,
    stock: bool = False,
    cycles: bool = False,
    readouts: bool = False,
    max_layers: int = 3,
    input_bits: int = 300,
) -> tuple[IntegerNetwork, np.ndarray]:
    """A network and inputs [T, B, *input_shape] for it: uint8, or, as every fourth network has them, biases int16.

    A chain of one to `max_layers` populations, some joined by two parallel connections; with `cycles` also skipping,
    delayed and recurrent connections; with `readouts` the last population may have no neurons. `stock`: only what
    Lava's own processes can hold. input_bits: at most, of all that is sent in a step; of a bias each value counts once.
    """
    payload_bits, biased = draw(st.sampled_from([1, 1, 1, 4])), draw(st.sampled_from([False, False, False, True]))
    most = input_bits // (1 if biased else payload_bits)
    maps = [shape for shape in product(range(1, 4), range(1, 6), range(1, 6)) if prod(shape) <= most]
    shape = input_shape = draw(st.one_of(st.tuples(st.integers(1, min(8, most))), st.sampled_from(maps)))
    layers: list[Population] = []
    joined: list[Connection] = []
    source = INPUT
    for index in range(draw(st.integers(1, max_layers))):
        name = f"layer{index + 1}"
        # Beyond 2^18 one wrap is not enough, and only a forgetful current stays inside 32 bits.
        forgetful = draw(st.booleans())
        room = 1 << 22 if forgetful else 1 << 18
        fed = not (biased and source == INPUT)  # by a connection
        target_shape = shape
        if fed:
            connection = draw(_connection(source, name, shape, (1 << payload_bits) - 1 if source == INPUT else 1, room))
            connection = replace(connection, delay=draw(st.sampled_from([0, 0, 0, 1, 3])) if cycles else 0)
            target_shape = connection.output_shape(shape)
            joined.append(connection)
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

        def dense(start: str, width: int, delay: int, size: int = target_shape[0], end: str = name) -> Connection:
            weight = 2 * rng.integers(-128, 128, (size, width))  # noqa: B023 - used within this turn of the loop
            return Connection(start, end, weight, exponent=draw(st.integers(-4, -1)), delay=delay)

        if len(target_shape) == 1:
            if fed and draw(st.booleans()):
                joined.append(dense(source, int(np.prod(shape)), 0))
            if cycles and draw(st.booleans()):
                joined.append(dense(name, target_shape[0], draw(st.integers(1, 3))))
            if cycles and layers and not biased and draw(st.booleans()):
                joined.append(dense(INPUT, int(np.prod(input_shape)), draw(st.integers(0, 2))))
            if cycles and len(layers) > 1 and draw(st.booleans()):
                joined.append(dense(layers[0].name, layers[0].size, draw(st.integers(0, 2))))
            heard = [layer for layer in layers if len(layer.shape) == 1]
            if cycles and heard and draw(st.booleans()):
                end = draw(st.sampled_from(heard))
                joined.append(dense(name, target_shape[0], draw(st.integers(1, 4)), end.size, end.name))
        population = draw(populations(name, target_shape, stock, 2048 if forgetful else 0))
        layers.append(population if fed else replace(population, bias_mant=np.asarray(0)))
        source, shape = name, target_shape
    if readouts and (len(layers) > 1 or not biased) and draw(st.booleans()):
        last = layers.pop()
        layers.append(readout(last.name, last.shape, last.bias_mant, last.bias_exp))
        joined = [connection for connection in joined if connection.source != last.name]
    parts = (input_shape, tuple(layers), tuple(joined), source)
    network = IntegerNetwork(*parts, payload_bits, input_is_bias_of=layers[0].name if biased else "")
    steps, samples = draw(st.sampled_from([12, 5, 2, 1])), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.5, 1.0, 0.1, 0.0]))
    if biased:
        mantissas = rng.integers(-4096, 4096, (samples, *input_shape)) * (rng.random(input_shape) < density)
        return network, np.repeat(mantissas[None].astype(np.int16), steps, axis=0)
    fires = rng.random((steps, samples, *input_shape)) < density
    return network, (fires * rng.integers(1, 1 << payload_bits, fires.shape)).astype(np.uint8)


def small_cycle() -> IntegerNetwork:
    """Two populations, a cycle through a delay, per-neuron decays and time weights."""
    first = Population("a", (3,), np.array([4095, 0, 7]), 9, 40, np.array([1, 2, 3]), 2, reset="soft")
    second = Population("b", (2,), 5, 0, 90, 0, floor=True)
    connections = (
        Connection(INPUT, "a", 2 * np.arange(-6, 6).reshape(3, 4), exponent=3),
        Connection("a", "b", np.full((2, 3), -256), exponent=-8),
        Connection("b", "a", np.full((3, 2), 254), delay=2),
    )
    return IntegerNetwork((4,), (first, second), connections, "b", time_weights=np.array([1, 5]))
