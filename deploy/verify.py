"""The exact comparison of two recordings: equal, or how much differs, where first, and why.

Nothing is tolerated: every population, step, sample and neuron is compared, spikes always, u and v where both sides
recorded them. `explain` finds the cause of the first divergence by changing one rule of the reference at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from base.errors import UserError
from deploy import causes
from quantize import reference
from quantize.arithmetic import STATE_SHIFT
from quantize.integer_network import IntegerNetwork
from quantize.recording import Recording

QUANTITIES = ("u", "v", "spikes")  # the order in which a step computes them, and in which the first is sought

Rerun = Callable[[str, np.ndarray], Recording | None]
Side = dict[str, int | None]


@dataclass(frozen=True)
class Divergence:
    """The first place where two recordings differ; steps are layer time, `neuron` an index into the population's shape.

    quantity: "spikes", "u", "v", or "current" of a readout. `a` and `b` hold each side's spike (or current), u and v
    (after the reset) there, u_before and v_before of the step before; None where unknown. Once explained, `threshold`
    and `voltage` (v before the reset, by the contract) are known, in state units, and `cause`, unless it is empty.
    """

    sample: int
    population: str
    step: int
    neuron: tuple[int, ...]
    quantity: str
    a: Side
    b: Side
    threshold: int | None = None
    voltage: int | None = None
    cause: str = ""


@dataclass(frozen=True)
class Comparison:
    """What was compared, by backend name, and what differs; counts are cells: neuron x step x sample (x u and v).

    The currents of readouts count among the states.
    """

    a: str
    b: str
    samples: int
    steps: int
    populations: tuple[str, ...]
    spikes_compared: int
    spikes_different: int
    states_compared: int
    states_different: int
    first_divergence: Divergence | None

    @property
    def equal(self) -> bool:
        return not (self.spikes_different or self.states_different)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"equal": self.equal}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Comparison:
        """The comparison that `to_json` told of, from JSON."""
        fields = {key: value for key, value in stored.items() if key != "equal"}
        fields["populations"] = tuple(fields["populations"])
        if first := fields["first_divergence"]:
            fields["first_divergence"] = Divergence(**first | {"neuron": tuple(first["neuron"])})
        return cls(**fields)


def compare(a: Recording, b: Recording, order: Sequence[str] = ()) -> Comparison:
    """Compare all spikes, and u and v of the samples for which both sides hold them.

    The first divergence is the one of the lowest sample, then the earliest step, then the first population in `order`
    (as recorded, where none is given), then u before v before spikes, then the lowest neuron.
    Raises UserError for recordings of different networks, inputs, populations or shapes.
    """
    _check_alike(a, b)
    names = tuple(order or a.spikes)
    if set(names) != set(a.spikes):
        raise UserError(
            f"compare: the order names {sorted(names)}, the recordings hold {sorted(a.spikes)}; name those."
        )
    compared, different = Counter[str](), Counter[str]()
    firsts = []
    for place, name in enumerate(names):
        for rank, quantity in enumerate(QUANTITIES):
            ours, theirs = getattr(a, quantity).get(name), getattr(b, quantity).get(name)
            if ours is None or theirs is None:
                continue
            shared = min(ours.shape[1], theirs.shape[1])
            differs = ours[:, :shared] != theirs[:, :shared]
            count = int(np.count_nonzero(differs))
            kind = _emission(a, name) if quantity == "spikes" else quantity
            compared[kind] += differs.size
            different[kind] += count
            if count:
                by_sample = differs.swapaxes(0, 1)
                sample, step, *neuron = map(int, np.unravel_index(by_sample.argmax(), by_sample.shape))
                firsts.append((sample, step, place, rank, tuple(neuron), kind))
    divergence = None
    if firsts:
        first_sample, first_step, place, _, index, kind = min(firsts)
        at = (first_sample, names[place], first_step, index)
        divergence = Divergence(*at, kind, _side(a, *at), _side(b, *at))
    return Comparison(
        a.backend,
        b.backend,
        a.samples,
        a.steps,
        names,
        compared["spikes"],
        different["spikes"],
        compared.total() - compared["spikes"],
        different.total() - different["spikes"],
        divergence,
    )


def explain(
    network: IntegerNetwork, inputs: np.ndarray, comparison: Comparison, a: Recording, b: Recording, rerun: Rerun
) -> Comparison:
    """Complete the first divergence: u and v of both sides, what the contract says there, and the cause.

    `inputs` [T, B, *input_shape] is what both ran. `rerun(backend, inputs of one sample [T, 1, ...])` records that
    sample with states, or is None where that backend cannot be asked; it is asked only for states nobody recorded.
    The cause names every departure (`causes.DEPARTURES`) that reproduces the side which leaves the reference, in all
    populations or, failing that, in the diverging one alone.
    """
    divergence = comparison.first_divergence
    if divergence is None:
        return comparison
    sample, name, step, neuron = divergence.sample, divergence.population, divergence.step, divergence.neuron
    alone = inputs[:, sample : sample + 1]
    sides = [_with_states(_one_sample(recording, sample), alone, rerun) for recording in (a, b)]
    truth = reference.run(network, alone, states=1)
    found = [
        _cause(network, inputs, sample, name, side, against_reference=other.backend == truth.backend)
        for side, other in (sides, sides[::-1])
        if not _reproduces(truth, side)
    ]
    completed = replace(
        divergence,
        a=_side(sides[0], 0, name, step, neuron),
        b=_side(sides[1], 0, name, step, neuron),
        cause="; ".join(text for text in found if text),
    )
    population = network.with_bias(name, alone[step, 0])
    if population.spiking:
        before = truth.v[name][step - 1] if step else np.zeros_like(truth.v[name][0])
        voltage = causes.voltage_before_reset(population, truth.u[name][step], before)
        threshold = np.broadcast_to(population.threshold_mant, population.shape)[neuron]
        completed = replace(completed, threshold=int(threshold) << STATE_SHIFT, voltage=int(voltage[(0, *neuron)]))
    return replace(comparison, first_divergence=completed)


def describe(comparison: Comparison) -> str:
    """The comparison in words: one sentence where all is equal, else the counts, the first divergence and its cause."""
    c, where = comparison, comparison.first_divergence
    counts = f"{c.spikes_different:,} of {c.spikes_compared:,} spikes"
    if c.states_compared:
        counts += f" and {c.states_different:,} of {c.states_compared:,} values of u and v"
    if where is None:
        return f"{c.a} and {c.b} are equal: {counts} differ ({c.samples:,} samples, {c.steps:,} steps)."
    text = (
        f"{c.a} and {c.b} differ: {counts}; first at sample {where.sample}, population {where.population}, "
        f"step {where.step}, neuron {where.neuron}, in {where.quantity}: "
        f"{c.a} {_state_words(where.a, where.quantity)}, {c.b} {_state_words(where.b, where.quantity)}"
    )
    if where.voltage is not None:
        text += f"; by the contract v reaches {where.voltage:,}, the threshold is {where.threshold:,}"
    return f"{text}; cause: {where.cause or 'unknown'}."


def _emission(recording: Recording, name: str) -> str:
    return "spikes" if name in recording.spiking else "current"


def _check_alike(a: Recording, b: Recording) -> None:
    for what, ours, theirs in (("network", a.network, b.network), ("input", a.inputs, b.inputs)):
        if ours != theirs:
            raise UserError(
                f"compare: {a.backend} ran the {what} {ours[:12]}, {b.backend} the {what} {theirs[:12]}; "
                f"record both from the same {what}."
            )
    if set(a.spikes) != set(b.spikes):
        raise UserError(
            f"compare: {a.backend} recorded the populations {sorted(a.spikes)}, {b.backend} {sorted(b.spikes)}; "
            "record the same ones."
        )
    for quantity in QUANTITIES:
        mine, others = getattr(a, quantity), getattr(b, quantity)
        for name in mine.keys() & others.keys():
            ours, theirs = mine[name].shape, others[name].shape
            both = [(shape[0], *shape[2:]) if quantity != "spikes" else shape for shape in (ours, theirs)]
            if both[0] != both[1]:
                raise UserError(
                    f"compare: {quantity} of population '{name}' has shape {ours} in {a.backend} and {theirs} in "
                    f"{b.backend}; record both from the same network and inputs."
                )


def _one_sample(recording: Recording, sample: int) -> Recording:
    """The recording of one sample alone, [T, 1, ...], with the states that it holds of it."""

    def cut(traces: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: trace[:, sample : sample + 1] for name, trace in traces.items() if trace.shape[1] > sample}

    return replace(recording, spikes=cut(recording.spikes), u=cut(recording.u), v=cut(recording.v))


def _with_states(side: Recording, inputs: np.ndarray, rerun: Rerun) -> Recording:
    """The side with u and v from a second run, unless it has them, or that run, alone, does not repeat its spikes."""
    if side.u.keys() >= set(side.spiking) and side.v.keys() >= set(side.spiking):
        return side
    again = rerun(side.backend, inputs)
    if again is None or any(not np.array_equal(again.spikes[name], side.spikes[name]) for name in side.spikes):
        return side
    return replace(side, u=again.u, v=again.v)


def _cause(
    network: IntegerNetwork, inputs: np.ndarray, sample: int, population: str, side: Recording, against_reference: bool
) -> str:
    """Names of all departures that reproduce the side; says whose they are unless the other side is the reference."""

    def reproducing(only: str | None) -> list[str]:
        tried = ((d.text, causes.run(d, network, inputs, sample, only)) for d in causes.DEPARTURES)
        return [text for text, run in tried if _reproduces(run, side)]

    names = reproducing(None) or [f"{text}, in population '{population}' alone" for text in reproducing(population)]
    text = " or ".join(names)
    if len(names) > 1:
        text += f" ({len(names)} departures that this sample cannot tell apart)"
    if against_reference:
        return text
    return f"{side.backend} departs from the reference: {text or 'no single known change of a rule reproduces it'}"


def _reproduces(run: Recording, side: Recording) -> bool:
    return all(
        np.array_equal(getattr(run, quantity)[name], trace)
        for quantity in QUANTITIES
        for name, trace in getattr(side, quantity).items()
    )


def _side(recording: Recording, sample: int, population: str, step: int, neuron: tuple[int, ...]) -> Side:
    def value(quantity: str, at: int) -> int | None:
        trace = getattr(recording, quantity).get(population)
        known = trace is not None and trace.shape[1] > sample and at >= 0
        return int(trace[(at, sample, *neuron)]) if known else None

    return {
        "spike": value("spikes", step),
        "u": value("u", step),
        "v": value("v", step),
        "u_before": value("u", step - 1),
        "v_before": value("v", step - 1),
    }


def _state_words(side: Side, quantity: str) -> str:
    """'fires (u 812, v 0, before u 90, v 64,001)'; unknown values are left out. A readout 'reads 812'."""
    if quantity == "current":
        return f"reads {side['spike']:,}"
    words = "fires" if side["spike"] else "does not fire"
    now = [f"{name} {side[name]:,}" for name in ("u", "v") if side[name] is not None]
    before = [f"{name} {side[f'{name}_before']:,}" for name in ("u", "v") if side[f"{name}_before"] is not None]
    known = now + (["before " + ", ".join(before)] if before else [])
    return f"{words} ({', '.join(known)})" if known else words
