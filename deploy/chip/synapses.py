"""What the synapses of one connection take of the core that holds a part of its target: axons and memory.

A part is a region of a population: for every dimension its first index and the one behind its last. An axon is what a
spike arrives by; a core has one for each source neuron that reaches it, or, where kernels are shared by patterns, for
each source pixel and group, whose channels differ only in the row of weights that they pick. The synapses of an axon
lie in blocks, each with a header, and a block fills whole words (nengo-loihi, `SynapseConfig.bits_per_axon`):

    bits = sum over blocks of ceil((synapses (weight + delay + index bits) + header) / word) word

A synapse names its target by an index of so many bits. Dense lists need none: they begin at the core's first neuron and
hold zeros where there is no synapse.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, Protocol

import numpy as np

from base.errors import UserError
from deploy.chip.findings import ERROR, DoesNotFit, Finding, finding
from deploy.chip.limits import NEVER, Chip
from deploy.lava.graph import extra_delay, lags
from quantize.arithmetic import WEIGHT_STEP
from quantize.integer_network import Connection, IntegerNetwork

Region = tuple[tuple[int, int], ...]
Slices = tuple[slice, ...]
Format = tuple[int, int, int, int]  # exponent, and bits of a weight, a delay and an index


class Memory(NamedTuple):
    bits: int
    format: Format


class Synapses(Protocol):
    """slots: output axons that one axon takes in the core that it comes from."""

    slots: int

    def axons(self, region: Region) -> np.ndarray:
        """Which axons reach that part of the target: bool, one for each source neuron in the source's shape, or
        [groups, height, width]."""

    def of_source(self, region: Region) -> Slices:
        """Where the axons of a part of the source lie in what `axons` returns."""

    def operations(self, region: Region) -> np.ndarray:
        """Synapses that a spike of each source neuron meets in that part of the target, in the source's shape."""

    def memory(self, region: Region, offset: int) -> Memory:
        """What that part of the target takes where `offset` neurons lie before it in its core."""


def synapses_of(network: IntegerNetwork, chip: Chip) -> list[Synapses]:
    """Of each connection, in the network's order. Raises DoesNotFit for weights wider than any of the chip, and as
    `delays` does."""
    return [
        (Convolution if connection.is_conv else Dense)(chip, connection, network.shape_of(connection.source), delay)
        for connection, delay in zip(network.connections, delays(network, chip), strict=True)
    ]


def delays(network: IntegerNetwork, chip: Chip) -> list[int]:
    """Steps that each connection's synapses wait beside the one that they take, as what skips populations waits for
    those between. Raises DoesNotFit for a cycle of less delay than connections."""
    try:
        lag = lags(network)
    except UserError as error:
        limit = chip["network.delay"]
        told = Finding(
            "network.delay", ERROR, "network", None, limit.value, limit.source, limit.known, str(error).rstrip(".")
        )
        raise DoesNotFit([told]) from error
    return [extra_delay(connection, lag) for connection in network.connections]


def weight_bits(weight: np.ndarray) -> int:
    """The fewest bits of mixed sign that hold these weights exactly: n bits hold multiples of 2^(9 - n)."""
    lowest = int(np.bitwise_or.reduce(weight, axis=None))
    step = lowest & -lowest if lowest else 256
    return 8 - (step // WEIGHT_STEP).bit_length() + 1


def list_bits(chip: Chip, synapses: np.ndarray, each: int) -> np.ndarray:
    """Bits that lists of so many synapses of `each` bits take, int64."""
    synapses = np.asarray(synapses, np.int64)
    block = chip.value("synapse.block")
    if block is None:
        return synapses * each
    header, word = chip.value("synapse.header_bits", 0), chip.value("synapse.word_bits", 1)

    def filled(count: np.ndarray | int) -> np.ndarray | int:
        return -(-(count * each + header) // word) * word

    rest = synapses % block
    return synapses // block * filled(block) + np.where(rest > 0, filled(rest), 0)


class _Stored:
    """Widths of a connection's weights and delay on a chip."""

    def __init__(self, chip: Chip, connection: Connection, delay: int) -> None:
        needed = weight_bits(connection.weight)
        widths = chip.value("synapse.weight_bits", [needed])
        if needed > max(widths):
            hint = f"give it at most {max(widths)} bits (quantize.bits)"
            found = finding(chip, "synapse.weight_bits", f"connection {connection.name}", needed, False, hint)
            raise DoesNotFit([found])
        self.chip, self.exponent = chip, connection.exponent
        self.weight, self.delay = min(bits for bits in widths if bits >= needed), delay.bit_length()

    def index(self, largest: int) -> int:
        """Bits of an index up to that."""
        widths = self.chip.value("synapse.index_bits", [largest.bit_length()])
        return min((bits for bits in widths if bits and bits >= largest.bit_length()), default=NEVER)

    def memory(self, bits: int, index: int) -> Memory:
        return Memory(min(bits, NEVER), (self.exponent, self.weight, self.delay, index))

    def lists(self, synapses: np.ndarray, index: int) -> int:
        """Bits of lists of so many synapses."""
        each = self.weight + self.delay + index
        return NEVER if each >= NEVER else int(list_bits(self.chip, synapses, each).sum())


class Dense:
    """A weight of zero is no synapse where synapses name their targets."""

    slots = 1

    def __init__(self, chip: Chip, connection: Connection, source: tuple[int, ...], delay: int) -> None:
        self._stored, self._source = _Stored(chip, connection, delay), source
        self._before = np.zeros((len(connection.weight) + 1, connection.weight.shape[1]), np.int32)
        np.cumsum(connection.weight != 0, axis=0, out=self._before[1:])

    def operations(self, region: Region) -> np.ndarray:
        ((first, behind),) = region
        return (self._before[behind] - self._before[first]).reshape(self._source)

    def axons(self, region: Region) -> np.ndarray:
        return self.operations(region) > 0

    def of_source(self, region: Region) -> Slices:
        return tuple(slice(*ends) for ends in region)

    def memory(self, region: Region, offset: int) -> Memory:
        ((first, behind),) = region
        synapses, stored = self.operations(region), self._stored
        neurons, widths = offset + behind - first, stored.chip.value("synapse.index_bits")
        if widths is None:
            return stored.memory(stored.lists(np.where(synapses > 0, behind - first, 0), 0), 0)
        index = stored.index(neurons - 1)
        kinds = [stored.memory(stored.lists(synapses, index), index)]
        if 0 in widths:
            kinds.append(stored.memory(stored.lists(np.where(synapses > 0, neurons, 0), 0), 0))
        return min(kinds)


class _Reach(NamedTuple):
    """How a source reaches a band of the target along one dimension: arrays over the source's positions.

    pattern: equal where kernel and targets lie alike, -1 where nothing is reached; targets: how many; first, last.
    """

    pattern: np.ndarray
    targets: np.ndarray
    first: np.ndarray
    last: np.ndarray


class Convolution:
    """A kernel that a core stores once, once for each pattern of reach, or unrolled; its zeros are synapses.

    Neurons of a part are numbered pixel by pixel, the channels of one beside each other.
    """

    def __init__(self, chip: Chip, connection: Connection, source: tuple[int, ...], delay: int) -> None:
        self._stored, self._connection, self._source = _Stored(chip, connection, delay), connection, source
        self._kernels = chip.value("synapse.kernels", "unrolled")
        self._by_pixel = self._kernels == "patterns"
        self.slots = chip.value("synapse.kernel_axon_slots", 1) if self._by_pixel else 1
        self._per_group = len(connection.weight) // connection.groups
        self._reach = cache(self._reach_of)

    def _reach_of(self, dimension: int, band: tuple[int, int]) -> _Reach:
        connection, size = self._connection, self._source[1 + dimension]
        stride, padding, dilation = (
            each[dimension] for each in (connection.stride, connection.padding, connection.dilation)
        )
        numbers: dict[tuple[tuple[int, int], ...], int] = {}
        rows = []
        for position in range(size):
            taps = range(connection.weight.shape[2 + dimension])
            at = [(position + padding - tap * dilation, tap) for tap in taps]
            hit = sorted((y // stride, tap) for y, tap in at if y % stride == 0 and band[0] <= y // stride < band[1])
            if not hit:
                rows.append((-1, 0, 0, 0))
                continue
            first = hit[0][0]
            pattern = numbers.setdefault(tuple((y - first, tap) for y, tap in hit), len(numbers))
            rows.append((pattern, len(hit), first - band[0], hit[-1][0] - band[0]))
        return _Reach(*np.array(rows, np.int64).T)

    def _across(self, channels: tuple[int, int]) -> dict[int, int]:
        """How many of these channels lie in each group that they touch."""
        size = self._per_group
        touched = range(channels[0] // size, (channels[1] - 1) // size + 1)
        return {group: min(channels[1], (group + 1) * size) - max(channels[0], group * size) for group in touched}

    def operations(self, region: Region) -> np.ndarray:
        channels, *bands = region
        down, right = (self._reach(dimension, band).targets for dimension, band in enumerate(bands))
        across = self._across(channels)
        per_group = np.array([across.get(group, 0) for group in range(self._connection.groups)])
        return np.repeat(per_group, self._connection.weight.shape[1])[:, None, None] * down[:, None] * right

    def axons(self, region: Region) -> np.ndarray:
        channels, *bands = region
        down, right = (self._reach(dimension, band).targets > 0 for dimension, band in enumerate(bands))
        touched = np.isin(np.arange(self._connection.groups), list(self._across(channels)))
        if not self._by_pixel:
            touched = np.repeat(touched, self._connection.weight.shape[1])
        return touched[:, None, None] & down[:, None] & right

    def of_source(self, region: Region) -> Slices:
        channels, *bands = region
        width = self._connection.weight.shape[1] if self._by_pixel else 1
        first = slice(channels[0] // width, (channels[1] - 1) // width + 1)
        return (first, *(slice(*ends) for ends in bands))

    def memory(self, region: Region, offset: int) -> Memory:
        channels, *bands = region
        stored, fan_in = self._stored, self._connection.weight.shape[1]
        down, right = (self._reach(dimension, band) for dimension, band in enumerate(bands))
        across = list(self._across(channels).values())
        if self._kernels == "once":
            kernels = sum(across) * self._connection.weight[0].size
            return stored.memory(stored.lists(np.array([kernels]), 0), 0)
        row_of = (bands[1][1] - bands[1][0]) * (channels[1] - channels[0])
        pixel_of = channels[1] - channels[0]
        rows, columns = np.flatnonzero(down.targets), np.flatnonzero(right.targets)
        reached = down.targets[rows, None] * right.targets[columns]
        last = down.last[rows, None] * row_of + right.last[columns] * pixel_of + offset
        if self._kernels == "unrolled":
            index = stored.index(int(last.max(initial=0)) + pixel_of - 1)
            bits = sum(fan_in * stored.lists(reached * count, index) for count in across)
            return stored.memory(bits, index)
        base = down.first[rows, None] * row_of + right.first[columns] * pixel_of + offset
        limit, before, largest, lists = self._stored.chip.value("synapse.base_limit", NEVER), 0, 0, []
        for count in across:
            above = (base + before) // limit  # what the base cannot say is left to the indices
            largest = max(largest, int((last + before + count - 1 - (base + before) % limit).max(initial=0)))
            alike = (down.pattern[rows, None] * (right.pattern.max() + 1) + right.pattern[columns]) * (
                above.max(initial=0) + 1
            ) + above
            chosen = np.unique(alike, return_index=True)[1]
            lists.append(fan_in * count * reached.ravel()[chosen])
            before += count
        index = stored.index(largest)
        return stored.memory(sum(stored.lists(each, index) for each in lists), index)
