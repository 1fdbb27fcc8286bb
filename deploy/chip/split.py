"""A placed network as an integer network of its parts, to be run and compared with the whole one.

Every population that has parts on several cores becomes one population for each, named `name#number`, and a *relay* of
the whole's name and shape, which fires in the same step what the parts fire, as a router tells all cores of a spike. So
whatever reads the population reads all of it: a connection's sum is shifted by its exponent, and shifted sums of pieces
would not add up to the shifted sum. And every population of the whole network is there to be compared.

Whole stay readouts, behind which nothing can be connected, and the population whose bias the input is, as there is one
only. A relay is no neuron of the chip: it takes no core and no step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from deploy.chip.placement import Part, Placement
from deploy.chip.synapses import Region
from quantize.arithmetic import DECAY_UNITY
from quantize.integer_network import Connection, IntegerNetwork, Population

Ends = tuple[int, int]
RELAY_MAX = 1 << 13  # neurons: 128 MiB of weights
RELAY_SIDE_MAX = 128  # a connection's padding is at most 127
ARRAYS = ("decay_u", "decay_v", "threshold_mant", "bias_mant")


def can_be_split(network: IntegerNetwork, placement: Placement) -> bool:
    """Whether relays can be said: a kernel reaches so far at most, and a dense one has the square of its neurons as
    weights."""
    cut = [network[name] for name, parts in placement.parts.items() if len(parts) > 1]
    return all(p.size <= RELAY_MAX if len(p.shape) == 1 else max(p.shape[1:]) <= RELAY_SIDE_MAX for p in cut)


def split(network: IntegerNetwork, placement: Placement) -> IntegerNetwork:
    """Its populations emit the network's spikes, among those of its parts."""
    populations: list[Population] = []
    connections: list[Connection] = []
    for population in network.populations:
        into, parts = network.into(population.name), [part for _, part in placement.parts[population.name]]
        if len(parts) == 1 or not population.spiking or population.name == network.input_is_bias_of:
            populations.append(population)
            connections += into
            continue
        populations.append(_relay(population))
        for number, part in enumerate(parts):
            name = f"{population.name}#{number}"
            populations.append(_part(population, part, name))
            connections += [replace(_cut(c, network.shape_of(c.source), part.region), target=name) for c in into]
            connections.append(_into_relay(population, part, name))
    return replace(network, populations=tuple(populations), connections=tuple(connections))


def _part(population: Population, part: Part, name: str) -> Population:
    shape = tuple(behind - first for first, behind in part.region)
    arrays: dict[str, Any] = {
        each: np.broadcast_to(getattr(population, each), population.shape)[part.slices] for each in ARRAYS
    }
    return replace(population, name=name, shape=shape, **arrays)


def _relay(population: Population) -> Population:
    """One weight of 2 is 128 of v, above a threshold of 64; without it v stays 0."""
    forgets = np.asarray(DECAY_UNITY - 1)
    return Population(population.name, population.shape, forgets, forgets, np.asarray(1), np.asarray(0))


def _into_relay(population: Population, part: Part, name: str) -> Connection:
    """Each neuron of the part to its place in the whole; of a map a kernel with one tap, as far off as the part is."""
    if len(population.shape) == 1:
        ((first, behind),) = part.region
        return Connection(name, population.name, 2 * np.eye(population.size, behind - first, -first, np.int16))
    (first, behind), *bands = part.region
    places = [_place(band, size) for band, size in zip(bands, population.shape[1:], strict=True)]
    (rows, top), (columns, left) = places
    channels = np.eye(population.shape[0], behind - first, -first, np.int16)
    weight = 2 * channels[:, :, None, None] * rows[:, None] * columns
    return Connection(name, population.name, weight, padding=(top, left))


def _place(band: Ends, size: int) -> tuple[np.ndarray, int]:
    """A kernel along one dimension, and its padding, that put a band into its place among so many."""
    first, behind = band
    padding = max(first, size - behind)
    taps = np.zeros(behind - first + 2 * padding - size + 1, np.int16)
    taps[padding - first] = 1
    return taps, padding


def _cut(connection: Connection, source: tuple[int, ...], region: Region) -> Connection:
    """The connection into one part of its target."""
    (first, behind), *bands = region
    if not connection.is_conv:
        return replace(connection, weight=connection.weight[first:behind])
    weight, groups = connection.weight, connection.groups
    if behind - first < len(weight) and groups > 1:
        weight, groups = _without_groups(connection), 1
    cut = replace(connection, weight=weight[first:behind], groups=groups)
    whole = connection.output_shape(source)[1:]
    if tuple(bands) == tuple((0, size) for size in whole):
        return cut
    places = [_band(cut, dimension, band, source[1 + dimension]) for dimension, band in enumerate(bands)]
    (rows, top), (columns, left) = places
    # Each tap to its place along both dimensions: [taps, places] matrices of 0 and 1.
    wide = np.einsum("ocij,ip,jq->ocpq", cut.weight, rows, columns)
    return replace(cut, weight=wide, padding=(top, left), dilation=(1, 1))


def _without_groups(connection: Connection) -> np.ndarray:
    """The same convolution as one group: weights of zero to the channels of others."""
    outputs, channels, *kernel = connection.weight.shape
    wide = np.zeros((outputs, channels * connection.groups, *kernel), np.int16)
    for output in range(outputs):
        group = output // (outputs // connection.groups)
        wide[output, group * channels : (group + 1) * channels] = connection.weight[output]
    return wide


def _band(connection: Connection, dimension: int, band: Ends, size: int) -> tuple[np.ndarray, int]:
    """Where each tap goes in a kernel, and the kernel's padding, that yield only a band of what the convolution yields
    along one dimension of so many positions: a kernel so large that it fits in so many places."""
    stride, padding, dilation = (
        each[dimension] for each in (connection.stride, connection.padding, connection.dilation)
    )
    taps = connection.weight.shape[2 + dimension]
    first, count = band[0] * stride - padding, band[1] - band[0]  # what the band's first output reads first
    ends = first + (taps - 1) * dilation + 1 + stride * (count - 1)
    wide = max(0, -first, ends - size)
    length = size + 2 * wide - stride * (count - 1)
    placed = np.zeros((taps, length), np.int16)
    placed[np.arange(taps), first + wide + np.arange(taps) * dilation] = 1
    return placed, wide
