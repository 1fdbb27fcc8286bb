"""What neurons of another framework, or file, do otherwise than those here, for a person to read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """What a population's neurons do otherwise there than a plain LIF of this project (or than stock Lava can), how it
    is said here, and what follows from that."""

    population: str
    what: str
    theirs: str
    ours: str
    consequence: str


def table(differences: Iterable[Difference]) -> str:
    """The differences as a table in Markdown."""
    columns = ("population", "what", "theirs", "ours", "consequence")
    rows = [columns, ("---",) * len(columns), *(tuple(vars(row)[column] for column in columns) for row in differences)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
