"""What the cores of a placement hold, counted literally: every synapse by itself, every list of an axon written out.

Slow, and written from what `deploy/chip/synapses.py` claims, not from its code.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from math import ceil
from typing import Any

import numpy as np

from deploy.chip.limits import Chip
from deploy.chip.placement import Part, Placement
from deploy.lava.graph import lags
from quantize.integer_network import Connection, IntegerNetwork

Neuron = tuple[int, ...]


def synapses(connection: Connection, source: Neuron, target: Neuron) -> list[tuple[Neuron, Neuron, Any]]:
    """Every synapse: source neuron, target neuron, and of a convolution the tap of the kernel."""
    if not connection.is_conv:
        rows, columns = np.nonzero(connection.weight)
        places = [tuple(int(i) for i in np.unravel_index(column, source)) for column in columns]
        return [(place, (int(row),), None) for row, place in zip(rows, places, strict=True)]
    found = []
    out, per_group, kernel = len(connection.weight), connection.weight.shape[1], connection.weight.shape[2:]
    for o, y, x, i, ky, kx in product(range(out), *map(range, target[1:]), range(per_group), *map(range, kernel)):
        channel = o // (out // connection.groups) * per_group + i
        row = y * connection.stride[0] + ky * connection.dilation[0] - connection.padding[0]
        column = x * connection.stride[1] + kx * connection.dilation[1] - connection.padding[1]
        if 0 <= row < source[1] and 0 <= column < source[2]:
            found.append(((channel, row, column), (o, y, x), (ky, kx)))
    return found


def list_bits(chip: Chip, count: int, each: int) -> int:
    if chip.value("synapse.block") is None:
        return count * each
    bits = 0
    while count:
        block = min(count, chip.value("synapse.block"))
        word = chip.value("synapse.word_bits")
        bits += ceil((block * each + chip.value("synapse.header_bits")) / word) * word
        count -= block
    return bits


def narrowest(weights: np.ndarray) -> int:
    return next(bits for bits in range(1, 9) if not (weights % (1 << (9 - bits))).any())


class Audit:
    def __init__(self, network: IntegerNetwork, placement: Placement) -> None:
        self.network, self.chip = network, placement.chip
        self.number: dict[tuple[str, Neuron], tuple[int, int]] = {}  # of each neuron its core, and its place there
        self.part_of: dict[tuple[str, Neuron], Part] = {}
        for number, core in enumerate(placement.cores):
            place = 0
            for part in core.parts:
                neurons = list(product(*(range(*ends) for ends in part.region)))
                for neuron in sorted(neurons, key=lambda n: (*n[1:], n[0])) if len(part.region) == 3 else neurons:
                    assert (part.population, neuron) not in self.number, "a neuron lies on two cores"
                    self.number[part.population, neuron] = number, place
                    self.part_of[part.population, neuron] = part
                    place += 1
        for population in network.populations:
            everywhere = product(*map(range, population.shape))
            assert all((population.name, neuron) in self.number for neuron in everywhere), "a neuron lies nowhere"
        self.counts = [defaultdict(int) for _ in placement.cores]
        self.distinct: list[dict[str, set[Any]]] = [defaultdict(set) for _ in placement.cores]
        for connection in network.connections:
            self._connection(connection)
        for name in network.order:
            self._neurons(name)
        for counts, distinct in zip(self.counts, self.distinct, strict=True):
            counts.update({key: len(values) for key, values in distinct.items()})

    def _neurons(self, name: str) -> None:
        population = self.network[name]
        fields = ("decay_u", "decay_v", "threshold_mant")
        values = [np.broadcast_to(getattr(population, field), population.shape) for field in fields]
        for neuron in product(*map(range, population.shape)):
            number = self.number[name, neuron][0]
            self.counts[number]["core.neurons"] += 1
            self.counts[number]["core.synapse_bits"] += self.chip.value("synapse.neuron_bits", 0)
            decay_u, decay_v, threshold = (int(value[neuron]) for value in values)
            self.distinct[number]["core.decay_configs"].add((decay_u, decay_v))
            self.distinct[number]["core.threshold_configs"].add(threshold if population.spiking else "none")
            self.distinct[number]["core.floors"].add(population.floor)

    def _connection(self, connection: Connection) -> None:
        chip, network = self.chip, self.network
        kernels = chip.value("synapse.kernels") if connection.is_conv else None
        source, target = network.shape_of(connection.source), network.shape_of(connection.target)
        slots = chip.value("synapse.kernel_axon_slots") if kernels == "patterns" else 1
        lists: dict[Part, dict[Any, list[tuple[int, Any, int]]]] = defaultdict(lambda: defaultdict(list))
        for sender, receiver, tap in synapses(connection, source, target):
            part = self.part_of[connection.target, receiver]
            channel = sender[0] % connection.weight.shape[1] if connection.is_conv else 0
            pixel = (sender[0] // connection.weight.shape[1], *sender[1:]) if kernels == "patterns" else sender
            lists[part][pixel].append((self.number[connection.target, receiver][1], tap, channel))
        leaving: dict[tuple[int, Part, Part, Any], None] = {}
        if connection.source in network.order:
            for sender, receiver, _ in synapses(connection, source, target):
                pixel = (sender[0] // connection.weight.shape[1], *sender[1:]) if kernels == "patterns" else sender
                own, part = self.part_of[connection.source, sender], self.part_of[connection.target, receiver]
                leaving[self.number[connection.source, sender][0], own, part, pixel] = None
        for number, *_ in leaving:
            self.counts[number]["core.output_axons"] += slots
        lag = lags(network)
        delay = (connection.delay + lag[connection.target] - lag[connection.source] - 1).bit_length()
        needed = narrowest(connection.weight)
        weight = min(bits for bits in chip.value("synapse.weight_bits") if bits >= needed)
        for part in {part for (name, _), part in self.part_of.items() if name == connection.target}:
            axons = lists[part]
            places = [self.number[part.population, n] for n in product(*(range(*ends) for ends in part.region))]
            number, last = places[0][0], max(place for _, place in places)
            bits, index = self._memory(connection, kernels, part, axons, last, weight + delay)
            self.counts[number]["core.input_axons"] += len(axons)
            self.counts[number]["core.synapse_bits"] += bits
            self.distinct[number]["core.synapse_formats"].add((connection.exponent, weight, delay, index))

    def _memory(
        self, connection: Connection, kernels: str | None, part: Part, axons: dict[Any, Any], last: int, each: int
    ) -> tuple[int, int]:
        chip = self.chip
        widths = chip.value("synapse.index_bits")

        def index(largest: int) -> int:
            return min(bits for bits in widths if 0 < bits >= largest.bit_length())

        if kernels is None:
            indexed = index(last), sum(list_bits(chip, len(ends), each + index(last)) for ends in axons.values())
            dense = 0, sum(list_bits(chip, last + 1, each) for _ in axons)
            found = min((bits, i) for i, bits in (indexed, dense))
            return found
        if kernels == "once":
            channels = part.region[0][1] - part.region[0][0]
            return list_bits(chip, channels * connection.weight[0].size, each), 0
        if kernels == "unrolled":
            width = index(max((place for ends in axons.values() for place, *_ in ends), default=0))
            return sum(list_bits(chip, len(ends), each + width) for ends in axons.values()), width
        limit = chip.value("synapse.base_limit")
        patterns = set()
        for (group, *_), ends in axons.items():
            base = min(place for place, *_ in ends) % limit
            patterns.add((group, tuple(sorted((place - base, tap, channel) for place, tap, channel in ends))))
        width = index(max((place for _, ends in patterns for place, *_ in ends), default=0))
        return sum(list_bits(chip, len(ends), each + width) for _, ends in patterns), width
