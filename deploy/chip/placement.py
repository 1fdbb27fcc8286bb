"""Populations cut into parts and put onto cores, so that no core holds more than the chip says.

A part is a region of a population: neurons one after the other of a dense one, channels by rows by columns of a map.
Only outputs are cut: everything that a neuron sums meets on its core, since no sum crosses cores. First each population
is cut into parts that each fit a core and together fill as few as possible, of a map those that read the fewest axons.
A spike that reaches many parts takes an output axon for each, so populations may have to be cut finer for what they
feed, until nothing changes. Then parts share cores: the largest first, each onto the core with room to whose parts most
axons lead. Ties go to the first, so that the same network always gets the same cores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import ceil, prod

import numpy as np

from deploy.chip.findings import DoesNotFit, finding
from deploy.chip.limits import NEVER, Chip
from deploy.chip.synapses import Region, list_bits, synapses_of, weight_bits
from quantize.integer_network import Connection, IntegerNetwork

# What a core is limited in, and what makes a population need less of it.
HINTS = {
    "core.neurons": "use fewer neurons",
    "core.synapse_bits": "use fewer bits (quantize.bits) or fewer weights",
    "core.input_axons": "let fewer inputs lead to each neuron, by pooling or stride before it or a smaller layer, "
    "since all that a neuron sums must meet on its core",
    "core.output_axons": "let each neuron reach fewer cores: a smaller layer behind it, or fewer bits there",
    "core.decay_configs": "learn one decay a population (network.per_neuron = false)",
    "core.threshold_configs": "quantize.per_channel = false gives a population one threshold",
    "core.synapse_formats": "let fewer connections lead into it",
    "core.floors": "give all populations a floor, or none",
}
STRIPS_TRIED = 3  # numbers of cores that a map's neurons could fill; where memory asks for more, strips help little


@dataclass(frozen=True)
class Part:
    population: str
    region: Region

    @property
    def size(self) -> int:
        return prod(behind - first for first, behind in self.region)

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(*ends) for ends in self.region)


@dataclass(frozen=True)
class Load:
    """What parts take of a core together."""

    neurons: int = 0
    synapse_bits: int = 0
    input_axons: int = 0
    output_axons: int = 0
    decays: frozenset[object] = frozenset()
    thresholds: frozenset[object] = frozenset()
    formats: frozenset[object] = frozenset()
    floors: frozenset[object] = frozenset()

    def __add__(self, other: Load) -> Load:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Load(*(a | b if isinstance(a, frozenset) else a + b for a, b in pairs))

    @property
    def counts(self) -> dict[str, int]:
        """By the keys of HINTS."""
        return {
            key: len(value) if isinstance(value, frozenset) else value
            for key, value in zip(HINTS, vars(self).values(), strict=True)
        }

    def fits(self, chip: Chip) -> bool:
        return all(count <= chip.value(key, NEVER - 1) for key, count in self.counts.items())

    def shares(self, chip: Chip) -> dict[str, float]:
        """Of the limits on neurons, memory and axons, as far as they are known."""
        known = [(key, count) for key, count in list(self.counts.items())[:4] if chip.value(key)]
        return {key: count / chip.value(key) for key, count in known}

    def fill(self, chip: Chip) -> float:
        """The largest share."""
        return max(self.shares(chip).values(), default=0.0)


@dataclass(frozen=True)
class Core:
    """parts: in the order in which their neurons are numbered."""

    parts: tuple[Part, ...]
    load: Load


@dataclass(frozen=True)
class Placement:
    """Cores in the order of the chips that they fill."""

    chip: Chip
    cores: tuple[Core, ...]

    @property
    def chips(self) -> int:
        return self.chip_of(len(self.cores) - 1) + 1

    def chip_of(self, core: int) -> int:
        return core // self.chip.value("chip.cores", len(self.cores))

    @cached_property
    def parts(self) -> dict[str, list[tuple[int, Part]]]:
        """Each population's parts and the numbers of their cores, in the order of their neurons."""
        found: dict[str, list[tuple[int, Part]]] = {}
        for number, core in enumerate(self.cores):
            for part in core.parts:
                found.setdefault(part.population, []).append((number, part))
        return {name: sorted(parts, key=lambda placed: placed[1].region) for name, parts in found.items()}


def place(network: IntegerNetwork, chip: Chip) -> Placement:
    """Raises DoesNotFit, naming population, limit and excess, where a single neuron takes more than a core."""
    demand = Demand(network, chip)
    parts = _cut(demand)
    cores = _shared(demand, [part for name in network.order for part in parts[name]])
    return Placement(chip, tuple(Core(tuple(held), demand.of_core(held)) for held in cores))


def least_cores(network: IntegerNetwork, chip: Chip) -> int:
    """Cores that no placement can do without, by counting: all neurons; of dense connections without zeros the memory,
    were every list as long as wastes the least, the parts of their target, each as large as a core holds, and an output
    axon of every source neuron to each of these."""
    memory, most = chip.value("core.synapse_bits", NEVER), chip.value("core.neurons", NEVER)
    bits, axons = 0.0, 0
    needed = [sum(population.size for population in network.populations) / most]
    for connection in network.connections:
        if connection.is_conv or not connection.weight.all():
            continue
        outputs, inputs = connection.weight.shape
        width = min(w for w in chip.value("synapse.weight_bits", [8]) if w >= weight_bits(connection.weight))
        lengths = np.arange(1, outputs + 1)
        taken = inputs * list_bits(chip, lengths, width)
        bits += outputs * float((taken / lengths).min())
        parts = outputs / min(most, int(np.count_nonzero(taken <= memory)))
        needed.append(parts)
        axons += inputs * ceil(parts) if connection.source in network.order else 0
    needed += [bits / memory, axons / chip.value("core.output_axons", NEVER)]
    return max(1, ceil(max(needed)))


class Demand:
    """What parts of a network take of a chip's cores."""

    def __init__(self, network: IntegerNetwork, chip: Chip) -> None:
        self.network, self.chip = network, chip
        self.synapses = dict(zip(network.connections, synapses_of(network, chip), strict=True))
        self._into = {name: [self.synapses[c] for c in network.into(name)] for name in network.order}
        self._from = {
            name: [(c.target, self.synapses[c]) for c in network.connections if c.source == name]
            for name in network.order
        }
        # By population and connection out of it: on how many parts each of its axons arrives.
        self._arrivals: dict[str, list[np.ndarray]] = {name: [] for name in network.order}
        self._neurons = {name: self._configs(name) for name in network.order}
        self._known: dict[tuple[Part, int], Load] = {}

    def _configs(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Each neuron's decays as one number, and its threshold; a readout's is as high as any."""
        population = self.network[name]
        decays = population.decay_u.astype(np.int64) << 12 | population.decay_v
        thresholds = population.threshold_mant if population.spiking else np.int64(-1)
        return np.broadcast_to(decays, population.shape), np.broadcast_to(thresholds, population.shape)

    def of(self, part: Part, offset: int = 0) -> Load:
        """What a part takes where `offset` neurons lie before it in its core."""
        if (part, offset) not in self._known:
            self._known[part, offset] = self._of(part, offset)
        return self._known[part, offset]

    def _of(self, part: Part, offset: int) -> Load:
        decays, thresholds = (values[part.slices] for values in self._neurons[part.population])
        into = self._into[part.population]
        memories = [synapses.memory(part.region, offset) for synapses in into]
        return Load(
            part.size,
            sum(memory.bits for memory in memories) + part.size * self.chip.value("synapse.neuron_bits", 0),
            sum(int(synapses.axons(part.region).sum()) for synapses in into),
            self._output_axons(part),
            frozenset(np.unique(decays).tolist()),
            frozenset(np.unique(thresholds).tolist()),
            frozenset(memory.format for memory in memories),
            frozenset([self.network[part.population].floor]),
        )

    def fit(self, parts: Iterable[Part]) -> bool:
        """Whether each of the parts fits a core of its own."""
        return all(self.of(part).fits(self.chip) for part in parts)

    def of_core(self, parts: list[Part]) -> Load:
        load, offset = Load(), 0
        for part in parts:
            load, offset = load + self.of(part, offset), offset + part.size
        return load

    def _output_axons(self, part: Part) -> int:
        arrivals = self._arrivals[part.population]
        leaving = [synapses for _, synapses in self._from[part.population]]
        return sum(
            synapses.slots * int(arriving[synapses.of_source(part.region)].sum())
            for synapses, arriving in zip(leaving, arrivals, strict=False)
        )

    def feed(self, cut: dict[str, list[Part]]) -> None:
        """Take note of the parts that spikes reach now; an axon that once reached more keeps that."""
        for name, leaving in self._from.items():
            arrivals = [
                np.sum([synapses.axons(part.region) for part in cut[target]], axis=0, dtype=np.int64)
                for target, synapses in leaving
            ]
            before = self._arrivals[name] or arrivals
            self._arrivals[name] = [np.maximum(*pair) for pair in zip(before, arrivals, strict=True)]
        self._known.clear()

    def settle(self, cut: dict[str, list[Part]]) -> None:
        """Count the output axons of these parts alone."""
        self._arrivals = {name: [] for name in self.network.order}
        self.feed(cut)

    def axons_of(self, connection: Connection, source: Part, target: Part) -> int:
        """Axons that a connection takes from one part to another."""
        synapses = self.synapses[connection]
        return int(synapses.axons(target.region)[synapses.of_source(source.region)].sum())

    def axons_between(self, source: Part, target: Part) -> int:
        into = self.network.into(target.population)
        return sum(self.axons_of(c, source, target) for c in into if c.source == source.population)


def _cut(demand: Demand) -> dict[str, list[Part]]:
    """Each population's parts, every one of which fits a core."""
    network = demand.network
    cut = {name: _parts(demand, name) for name in network.order}
    while True:
        demand.feed(cut)
        # From the output on: a population cut finer takes more axons of those that feed it.
        crowded = [name for name in reversed(network.order) if not demand.fit(cut[name])]
        if not crowded:
            demand.settle(cut)
            return cut
        for name in crowded:
            cut[name] = _parts(demand, name)


def _parts(demand: Demand, name: str) -> list[Part]:
    shape = demand.network[name].shape
    return _runs(demand, name, shape[0]) if len(shape) == 1 else _blocks(demand, name, shape)


def _runs(demand: Demand, name: str, neurons: int) -> list[Part]:
    """Runs of neurons, each as long as fits."""
    runs: list[Part] = []
    first = 0
    while first < neurons:
        fits, most = first, neurons
        while fits < most:
            middle = (fits + most + 1) // 2
            if demand.fit([Part(name, ((first, middle),))]):
                fits = middle
            else:
                most = middle - 1
        if fits == first:
            raise _too_much(demand, Part(name, ((first, first + 1),)))
        runs.append(Part(name, ((first, fits),)))
        first = fits
    return runs


def _blocks(demand: Demand, name: str, shape: tuple[int, ...]) -> list[Part]:
    """Blocks on as few cores as their fills can share, and of these the ones that read the fewest axons: all of one
    shape but for the last, at most twice as many as there must be; or strips, where these take fewer cores."""
    best: tuple[int, int, list[Part]] | None = None

    def consider(regions: Iterable[Region]) -> bool:
        """Whether parts of these regions fit a core each."""
        nonlocal best
        parts = [Part(name, region) for region in regions]
        # One in the middle reads the most.
        if not demand.fit((parts[len(parts) // 2], *parts)):
            return False
        loads = [demand.of(part) for part in parts]
        cores, axons = _bins(load.fill(demand.chip) for load in loads), sum(load.input_axons for load in loads)
        if best is None or (cores, axons) < best[:2]:
            best = cores, axons, parts
        return True

    room = demand.chip.value("core.neurons", NEVER)
    sides = [sorted({ceil(size / count) for count in range(1, size + 1)}) for size in shape]
    shapes = sorted(
        (prod(ceil(size / side) for size, side in zip(shape, block, strict=True)), block)
        for block in product(*sides)
        if prod(block) <= room
    )
    most = NEVER
    for count, block in shapes:
        if count > most or (best and best[0] == 1):
            break
        if consider(_grid(shape, block)) and most == NEVER:
            most = 2 * count
    if best is None:
        raise _too_much(demand, Part(name, tuple((size // 2, size // 2 + 1) for size in shape)))
    if len(shape) == 3:
        fewest = ceil(prod(shape) / room)
        for cores, channels in product(range(fewest, min(best[0], fewest + STRIPS_TRIED)), sides[0]):
            strips = cores // ceil(shape[0] / channels)  # of each band of channels
            if cores < best[0] and strips and channels * ceil(shape[1] * shape[2] / strips) <= room:
                consider(_strips(shape, channels, ceil(shape[1] * shape[2] / strips)))
    return best[2]


def _grid(shape: tuple[int, ...], block: tuple[int, ...]) -> Iterator[Region]:
    return product(*(
        [(first, min(first + side, size)) for first in range(0, size, side)]
        for size, side in zip(shape, block, strict=True)
    ))  # fmt: skip


def _strips(shape: tuple[int, ...], channels: int, pixels: int) -> Iterator[Region]:
    """For each so many channels the map cut after every so many pixels, row by row: what is left of a row, whole rows,
    and the start of another."""
    _, height, width = shape
    for (band,) in _grid(shape[:1], (channels,)):
        for start in range(0, height * width, pixels):
            behind = min(start + pixels, height * width)
            first, last = ceil(start / width), behind // width
            if last < first:
                yield band, (last, first), (start % width, behind % width)
                continue
            if start % width:
                yield band, (first - 1, first), (start % width, width)
            if first < last:
                yield band, (first, last), (0, width)
            if behind % width:
                yield band, (last, last + 1), (0, behind % width)


def _bins(fills: Iterable[float]) -> int:
    """On how many cores parts that fill so much of one go, the largest first, each onto the first with room."""
    bins: list[float] = []
    for fill in sorted(fills, reverse=True):
        place = next((number for number, filled in enumerate(bins) if filled + fill <= 1), len(bins))
        bins[place:] = [(bins[place] if place < len(bins) else 0) + fill, *bins[place + 1 :]]
    return len(bins)


def _too_much(demand: Demand, neuron: Part) -> DoesNotFit:
    """What a single neuron takes more of than a core has."""
    chip, where = demand.chip, f"one neuron of population '{neuron.population}'"
    counts = demand.of(neuron).counts
    return DoesNotFit([
        finding(chip, key, where, count, False, HINTS[key])
        for key, count in counts.items() if count > chip.value(key, NEVER)
    ])  # fmt: skip


def _shared(demand: Demand, parts: list[Part]) -> list[list[Part]]:
    """Parts, in the network's order, on as few cores as they were found to share."""
    chip = demand.chip
    by_size = sorted(range(len(parts)), key=lambda number: -demand.of(parts[number]).fill(chip))
    cores: list[list[int]] = []
    loads: list[Load] = []
    for number in by_size:
        part = parts[number]
        rooms = [
            core
            for core, load in enumerate(loads)
            if (load + demand.of(part)).fits(chip) and (load + demand.of(part, load.neurons)).fits(chip)
        ]
        if not rooms:
            cores.append([number])
            loads.append(demand.of(part))
            continue

        def axons(core: int, part: Part = part) -> int:
            others = [parts[other] for other in cores[core]]
            return sum(demand.axons_between(part, other) + demand.axons_between(other, part) for other in others)

        core = max(rooms, key=axons)
        loads[core] += demand.of(part, loads[core].neurons)
        cores[core].append(number)
    return [[parts[number] for number in held] for held in sorted(cores, key=min)]
