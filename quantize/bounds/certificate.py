"""What was proven of a network's ranges, what was refuted and what is open, as data and as the file `bounds.json`.

The file names the network by its hash. Beside the claims, from which `checker` derives every proven answer anew, it
holds an input for each refuted one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import UserError, claims_of
from base.files import write_text
from quantize.arithmetic import ARITHMETIC_ID
from quantize.bounds.intervals import LIMITS, Claim

FORMAT, FORMAT_VERSION = "spikeproof-bounds", 1
PROVEN, REFUTED, UNDECIDED = "proven", "refuted", "undecided"

Pair = tuple[int, int]


@dataclass(frozen=True)
class Witness:
    """An input [T, *input_shape] on which a neuron's quantity leaves its register at a step, before it wraps or
    saturates there."""

    neuron: tuple[int, ...]
    step: int
    value: int
    inputs: np.ndarray


@dataclass(frozen=True)
class Answer:
    """Of one quantity of a population's neurons. bound: the least and the largest value that any of them could reach;
    observed: that any of them did on the samples that were run, None without samples.

    solved: indices of neurons that only a solver could prove.
    """

    bound: Pair
    observed: Pair | None
    neurons: int
    proven: int
    witness: Witness | None = None
    solved: tuple[tuple[int, ...], ...] = ()

    @property
    def word(self) -> str:
        return REFUTED if self.witness else PROVEN if self.proven == self.neurons else UNDECIDED


@dataclass(frozen=True)
class Certificate:
    """network: its hash. steps: the most that a sample may have, None for any number. Claims and answers by population,
    answers of the activation, and where there are neurons of u and v."""

    network: str
    steps: int | None
    claims: dict[str, Claim]
    answers: dict[str, dict[str, Answer]]

    def word(self, population: str | None = None) -> str:
        """The answer of a population, or of the whole network: proven if all of it is, refuted if any of it is."""
        chosen = self.answers.values() if population is None else [self.answers[population]]
        words = {answer.word for answers in chosen for answer in answers.values()}
        return next(word for word in (REFUTED, UNDECIDED, PROVEN) if word in words)


def summary(certificate: Certificate) -> list[dict[str, Any]]:
    """A row for each quantity of each population, for people."""
    return [
        {
            "population": name,
            "quantity": quantity,
            "answer": answer.word,
            "neurons": answer.neurons,
            "proven": answer.proven,
            "bound": list(answer.bound),
            "observed": None if answer.observed is None else list(answer.observed),
            "limit": list(LIMITS[quantity]),
        }
        for name, answers in certificate.answers.items()
        for quantity, answer in answers.items()
    ]


def describe(certificate: Certificate) -> list[str]:
    """A sentence for each population: how much of its registers it can use, or what overflows."""
    told = []
    for name, answers in certificate.answers.items():
        word = certificate.word(name)
        if word == PROVEN:
            lasting = "" if certificate.steps is None else f" for {certificate.steps} steps"
            parts = [f"{quantity} {share(quantity, answer.bound):.0%}" for quantity, answer in answers.items()]
            told.append(f"{name}: range proven{lasting}, at most {', '.join(parts)} of the register")
            continue
        open_ones = {quantity: answer for quantity, answer in answers.items() if answer.word == word}
        quantity, answer = max(open_ones.items(), key=lambda item: share(item[0], item[1].bound))
        if answer.witness is not None:
            neuron = ", ".join(map(str, answer.witness.neuron))
            told.append(
                f"{name}: range refuted, an input pushes {quantity} of neuron ({neuron}) to {answer.witness.value:,} "
                f"at step {answer.witness.step}, {share(quantity, (answer.witness.value,)):.0%} of the register"
            )
        else:
            seen = "" if answer.observed is None else f", and did up to {share(quantity, answer.observed):.0%}"
            told.append(
                f"{name}: range undecided, {quantity} of {answer.neurons - answer.proven} neurons could use up to "
                f"{share(quantity, answer.bound):.0%} of the register{seen}"
            )
    return told


def share(quantity: str, values: Iterable[int]) -> float:
    """The largest part of its register that any of the values takes, 1 for all of it."""
    least, most = LIMITS[quantity]
    return max(value / (least if value < 0 else most) for value in values)


def save(certificate: Certificate, path: Path) -> None:
    """Write the certificate as JSON."""
    populations = {
        name: {
            "claim": {kind: getattr(claim, kind).tolist() for kind in ("u", "v", "spacing")},
            "answers": {quantity: _packed(answer) for quantity, answer in certificate.answers[name].items()},
        }
        for name, claim in certificate.claims.items()
    }
    header = {"format": FORMAT, "version": FORMAT_VERSION, "arithmetic": ARITHMETIC_ID}
    about = {"network": certificate.network, "steps": certificate.steps, "populations": populations}
    write_text(path, json.dumps(header | about, separators=(",", ":")) + "\n")


def load(path: Path) -> Certificate:
    """Read what `save` wrote. Raises UserError for a file that is missing, foreign or no whole certificate."""
    with claims_of(path, "run 'pipeline.py quantize' again"):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if (stored["format"], stored["version"], stored["arithmetic"]) != (FORMAT, FORMAT_VERSION, ARITHMETIC_ID):
            raise UserError(f"is no {FORMAT} of version {FORMAT_VERSION} for {ARITHMETIC_ID}")
        populations = stored["populations"].items()
        return Certificate(
            stored["network"],
            stored["steps"],
            {name: Claim(**{k: _array(values) for k, values in p["claim"].items()}) for name, p in populations},
            {name: {q: _unpacked(answer) for q, answer in p["answers"].items()} for name, p in populations},
        )


def _packed(answer: Answer) -> dict[str, Any]:
    packed = {"answer": answer.word} | vars(answer)
    if answer.witness is not None:
        # One input often lasts for many steps.
        runs = [[len(list(same)), step] for step, same in groupby(answer.witness.inputs.tolist())]
        packed["witness"] = vars(answer.witness) | {"inputs": runs}
    return packed


def _unpacked(stored: dict[str, Any]) -> Answer:
    witness = stored["witness"]
    if witness is not None:
        inputs = np.concatenate([np.repeat(_array(step)[None], times, axis=0) for times, step in witness["inputs"]])
        witness = Witness(tuple(witness["neuron"]), witness["step"], witness["value"], inputs)
    observed = None if stored["observed"] is None else tuple(stored["observed"])
    solved = tuple(tuple(neuron) for neuron in stored["solved"])
    return Answer(tuple(stored["bound"]), observed, stored["neurons"], stored["proven"], witness, solved)


def _array(values: Any) -> np.ndarray:
    array = np.array(values)
    if array.dtype != np.int64:
        raise TypeError(f"holds {array.dtype} where whole numbers belong")
    return array
