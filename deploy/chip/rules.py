"""What a chip cannot hold, each limit a rule of its own: those of neurons and connections, known before any placement,
and those of the cores of a placement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from deploy.chip.findings import ERROR, WARNING, DoesNotFit, Finding, finding
from deploy.chip.limits import Chip
from deploy.chip.placement import HINTS, Placement
from deploy.chip.synapses import delays
from quantize.arithmetic import STATE_SHIFT
from quantize.integer_network import INPUT, IntegerNetwork, Population

Rule = Callable[[IntegerNetwork, Chip], Iterator[Finding]]


def check(network: IntegerNetwork, chip: Chip) -> list[Finding]:
    """What holds of the network wherever it is put: of each rule, everything that breaks it, or what comes nearest."""
    return [found for rule in RULES for found in worst(rule(network, chip))]


def check_placement(placement: Placement) -> list[Finding]:
    """What holds of the cores, likewise."""
    found = [found for key in HINTS for found in worst(of_cores(placement, key))]
    return [*found, *chips(placement)]


def worst(findings: Iterator[Finding]) -> list[Finding]:
    """Those that break their rule; if none does, the first that comes nearest to it."""
    every = list(findings)
    broken = [found for found in every if found.severity in (ERROR, WARNING)]
    return broken or sorted(every, key=_distance)[:1]


def _distance(found: Finding) -> int:
    """From the largest value allowed, or from the least; words are all alike."""
    if type(found.value) is not int:
        return 0
    return found.value if found.rule.endswith("_least") else -found.value


def reset(network: IntegerNetwork, chip: Chip) -> Iterator[Finding]:
    known = chip.value("network.resets", ())
    hint = f"train with network.reset = '{known[0]}'" if known else ""
    for population in _spiking(network):
        fits = population.reset in known
        yield finding(chip, "network.resets", _of(population), population.reset, fits, hint)


def payload(network: IntegerNetwork, chip: Chip) -> Iterator[Finding]:
    bits = 0 if network.input_is_bias_of else network.payload_bits
    fits = bits <= chip.value("network.payload_bits", bits)
    hint = "encode the input as spikes (data.encoding = 'rate') or let it be a bias (data.direct = 'bias')"
    yield finding(chip, "network.payload_bits", INPUT, bits, fits, hint)


def threshold(network: IntegerNetwork, chip: Chip) -> Iterator[Finding]:
    for population in _spiking(network):
        value = int(population.threshold_mant.min())
        fits = value >= chip.value("network.threshold_least", value)
        yield finding(chip, "network.threshold_least", _of(population), value, fits, "raise the threshold")


def bias(network: IntegerNetwork, chip: Chip) -> Iterator[Finding]:
    for population in network.populations:
        value = int(np.abs(population.bias_mant).max())
        fits = value <= chip.value("network.bias_magnitude", value)
        yield finding(chip, "network.bias_magnitude", _of(population), value, fits, "lower the bias by one")


def exponent(network: IntegerNetwork, chip: Chip) -> Iterator[Finding]:
    for connection in network.connections:
        value = connection.exponent
        fits = value >= chip.value("network.exponent_least", value)
        hint = "the sources disagree: ask on the chip, or raise weights and exponent"
        yield finding(chip, "network.exponent_least", f"connection {connection.name}", value, fits, hint, WARNING)


def delay(network: IntegerNetwork, chip: Chip) -> Iterator[Finding]:
    """A connection takes a step on the chip; what skips populations waits for those between."""
    try:
        found = delays(network, chip)
    except DoesNotFit as refused:
        yield from refused.findings
        return
    for connection, steps in zip(network.connections, found, strict=True):
        fits = steps <= chip.value("network.delay", steps)
        hint = "lower the delay or skip fewer populations"
        yield finding(chip, "network.delay", f"connection {connection.name}", steps, fits, hint)


def delay_of_full_core(network: IntegerNetwork, chip: Chip) -> Iterator[Finding]:
    for found in delay(network, chip):
        if found.value is not None:
            fits = found.value <= chip.value("network.delay_of_full_core", found.value)
            hint = "more takes room that neurons have, how much is not public; lower the delay"
            yield finding(chip, "network.delay_of_full_core", found.where, found.value, fits, hint, WARNING)


def activation(network: IntegerNetwork, chip: Chip) -> Iterator[Finding]:
    """A bound: no input can make one step's sum larger."""
    hint = "where it gets there, the chip wraps and Lava does not; lower the connections' exponents"
    yield from _bounds(network, chip, "network.activation_bits", hint, 0, network.populations)


def readout_current(network: IntegerNetwork, chip: Chip) -> Iterator[Finding]:
    """Likewise of a readout's current, which is a register on the chip."""
    hint = "where it gets there, the chip wraps; let the output spike, or lower its exponents"
    readouts = [population for population in network.populations if not population.spiking]
    yield from _bounds(network, chip, "network.state_bits", hint, STATE_SHIFT, readouts)


RULES: tuple[Rule, ...] = (
    reset,
    payload,
    threshold,
    bias,
    exponent,
    delay,
    delay_of_full_core,
    activation,
    readout_current,
)


def of_cores(placement: Placement, key: str) -> Iterator[Finding]:
    """One of the limits of a core, of every core."""
    chip = placement.chip
    for number, core in enumerate(placement.cores):
        count = core.load.counts[key]
        yield finding(chip, key, f"core {number}", count, count <= chip.value(key, count), HINTS[key])


def chips(placement: Placement) -> Iterator[Finding]:
    fits = placement.chips <= placement.chip.value("chip.chips", placement.chips)
    hint = "use fewer bits (quantize.bits), or fewer neurons and weights"
    yield finding(placement.chip, "chip.chips", "network", placement.chips, fits, hint)


def _bounds(
    network: IntegerNetwork, chip: Chip, key: str, hint: str, shift: int, populations: Sequence[Population]
) -> Iterator[Finding]:
    for population in populations:
        sums = sum(
            _largest_sum(connection.weight) * network.payload_max(connection.source) * 2.0**connection.exponent
            for connection in network.into(population.name)
        )
        bits = int(sums * (1 << shift)).bit_length() + 1
        yield finding(chip, key, _of(population), bits, bits <= chip.value(key, bits), hint, WARNING)


def _largest_sum(weight: np.ndarray) -> int:
    """Of one row's positive weights, or of its negative ones."""
    rows = weight.reshape(len(weight), -1).astype(np.int64)
    return int(max(rows.clip(min=0).sum(axis=1).max(), -rows.clip(max=0).sum(axis=1).min()))


def _spiking(network: IntegerNetwork) -> list[Population]:
    return [population for population in network.populations if population.spiking]


def _of(population: Population) -> str:
    return f"population '{population.name}'"
