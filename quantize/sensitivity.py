"""How few bits each layer can do with: allocations of widths to layers, measured by the spikes that they change.

An allocation gives the weights of every layer one of `grids.BITS`. Nothing about one is estimated: it is put together
as integers, run, and compared with the float network. Populations are quantized independently of each other, so that
each is quantized once at every width, and allocations are made of those.

Memory is what the weights take: as many bits each as they are wide, two if ternary, a convolution's kernels once. All
else that a layer stores (biases, thresholds, decays) keeps its width, and is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from quantize import engine
from quantize.arithmetic import STATE_SHIFT
from quantize.calibration import calibrate
from quantize.fidelity import differences
from quantize.fold import fold
from quantize.integer_network import IntegerNetwork
from quantize.precision import BITS, Bits, Precision
from quantize.recording import Recording, predictions
from quantize.scales import input_biases, quantize
from train.network import SpikingNetwork

Allocation = Mapping[str, Bits]  # of every layer with weights, by name


@dataclass(frozen=True)
class Measured:
    """An allocation, the bytes of its weights, and what it does on the samples chosen by.

    divergence: the mean over populations of the share of neuron-steps that differ from the float network's. Each
    population counts the same, or an output of ten neurons would count nothing. A readout's share is the mean square
    error of its current over the current's variance, 1 at most. populations: of each its `differing_share`, and with
    neurons its `rate_drift`. agreement: the share of samples predicted as by the float network.
    """

    allocation: Allocation
    bytes: float
    divergence: float
    accuracy: float
    agreement: float
    populations: Mapping[str, Mapping[str, float]]


Measure = Callable[[Allocation], Measured]
Size = Callable[[Allocation], float]  # in bytes


class Allocations:
    """A network's layers at every width, each made when it is first asked for.

    samples: what `calibrate` takes. precision: what allocations leave open, such as the calibration. Making integers
    raises UserError as `quantize` does.
    """

    def __init__(self, network: SpikingNetwork, samples: Tensor, precision: Precision) -> None:
        self._network, self._samples, self._precision = network, samples, precision
        self._folded = {layer.name: layer for layer in fold(network)}
        self._integers: dict[Bits, IntegerNetwork] = {}
        self._scales: dict[tuple[str, Bits], float] = {}
        self.layers = [name for name, layer in self._folded.items() if not layer.input_is_bias]

    def uniform(self, bits: Bits) -> Allocation:
        return dict.fromkeys(self.layers, bits)

    def network(self, allocation: Allocation) -> IntegerNetwork:
        """What `quantize` makes of the calibrated layers with the allocation as `per_layer`."""
        chosen = {name: self._at(allocation.get(name, 8)) for name in self._folded}
        return replace(
            self._at(8),
            populations=tuple(integers[name] for name, integers in chosen.items()),
            connections=tuple(joined for name, integers in chosen.items() for joined in integers.into(name)),
        )

    def inputs(self, shown: np.ndarray) -> np.ndarray:
        """Encoded input [T, B, *shape] as the integers take it, which may be as biases."""
        if not self._network.input_is_bias:
            return shown
        return input_biases(list(self._folded.values()), self._at(8), shown)

    def weights(self, layer: str) -> int:
        return sum(connection.weight.size for connection in self._folded[layer].connections)

    def bytes(self, allocation: Allocation) -> float:
        return sum(self.weights(layer) * stored_bits(bits) for layer, bits in allocation.items()) / 8

    def measure(self, allocation: Allocation, inputs: np.ndarray, floats: Recording, labels: np.ndarray) -> Measured:
        """Run inputs [T, B, *input_shape] that `inputs` made, of classes labels [B]; floats: what the float network
        emitted for them."""
        network = self.network(allocation)
        ran = engine.run(network, inputs)
        populations = {}
        for population in network.populations:
            name = population.name
            ours, theirs = floats.spikes[name], ran.spikes[name]
            if population.spiking:
                found = differences(ours, theirs)
                populations[name] = {key: found[key] for key in ("differing_share", "rate_drift")}
            else:
                scale = self._scales[name, allocation[name]]
                populations[name] = {"differing_share": _error_share(ours, theirs / (scale * (1 << STATE_SHIFT)))}
        expected, predicted = predictions(floats, network), predictions(ran, network)
        return Measured(
            allocation,
            self.bytes(allocation),
            float(np.mean([found["differing_share"] for found in populations.values()])),
            float((predicted == labels).mean()),
            float((predicted == expected).mean()),
            populations,
        )

    def _at(self, bits: Bits) -> IntegerNetwork:
        """All layers at that width."""
        if bits not in self._integers:
            precision = replace(self._precision, bits=bits, per_layer={})
            layers = calibrate(self._network, self._samples, precision)
            shape, payload_bits = self._network.input_shape, self._network.payload_bits
            self._integers[bits], rows = quantize(layers, shape, payload_bits, precision)
            self._scales |= {(row["population"], bits): row["scale"] for row in rows}
        return self._integers[bits]


def stored_bits(bits: Bits) -> int:
    """Bits that one weight takes in memory."""
    return 2 if isinstance(bits, str) else bits


def one_layer_at_a_time(layers: Sequence[str]) -> list[Allocation]:
    """All layers at 8 bits, and every layer at every other width with the others at 8; then all at every width."""
    eight: dict[str, Bits] = dict.fromkeys(layers, 8)
    single = [eight | {layer: bits} for layer in layers for bits in BITS if bits != 8]
    return [eight, *single, *(dict.fromkeys(layers, bits) for bits in BITS if bits != 8)]


def descent(measure: Measure, start: Allocation) -> Iterator[Measured]:
    """From an allocation down to one bit everywhere, one layer by one size of weights at a time: always what adds the
    least divergence for each byte that it saves."""
    here = measure(start)
    yield here
    while options := [measure(allocation) for allocation in _resized(here.allocation, -1)]:
        above = here
        here = min(options, key=lambda found: (found.divergence - above.divergence) / (above.bytes - found.bytes))
        yield here


def best_within(budget: float, measure: Measure, size: Size, measured: Iterable[Measured]) -> Measured:
    """Of all measured that fit a budget in bytes that of the least divergence, and from there layers made wider, the
    best first, as long as they fit and that helps."""
    here = min((found for found in measured if found.bytes <= budget), key=lambda found: found.divergence)
    while better := [
        found
        for allocation in _resized(here.allocation, 1)
        if size(allocation) <= budget and (found := measure(allocation)).divergence < here.divergence
    ]:
        here = min(better, key=lambda found: found.divergence)
    return here


def smallest_reaching(accuracy: float, measure: Measure, measured: Iterable[Measured]) -> Measured:
    """Of all measured that reach an accuracy the smallest, and from there layers made narrower, the one that saves most
    first, as long as they reach it."""

    def smallest(reaching: Iterable[Measured]) -> Measured:
        return min(reaching, key=lambda found: (found.bytes, found.divergence))

    here = smallest(found for found in measured if found.accuracy >= accuracy)
    while narrower := [
        found for allocation in _resized(here.allocation, -1) if (found := measure(allocation)).accuracy >= accuracy
    ]:
        here = smallest(narrower)
    return here


def front(measured: Iterable[Measured], loss: Callable[[Measured], float]) -> list[Measured]:
    """The Pareto front, from the smallest on: those that nothing as small or smaller equals or beats in loss."""
    kept: list[Measured] = []
    for found in sorted(measured, key=lambda found: (found.bytes, loss(found))):
        if not kept or loss(found) < loss(kept[-1]):
            kept.append(found)
    return kept


def _resized(allocation: Allocation, by: int) -> Iterator[Allocation]:
    """The allocations in which one layer's weights take so many bits more in memory."""
    for layer, bits in allocation.items():
        for other in BITS:
            if stored_bits(other) == stored_bits(bits) + by:
                yield {**allocation, layer: other}


def _error_share(floats: np.ndarray, integers: np.ndarray) -> float:
    error, variance = np.square(integers - floats).mean(), floats.var()
    return float(min(error / variance, 1.0)) if variance else float(error > 0)
