"""What a rule found: one limit of the chip, held against one place in the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from base.errors import UserError
from deploy.chip.limits import NEVER, Chip

OK, WARNING, ERROR, UNKNOWN = "ok", "warning", "error", "unknown"


@dataclass(frozen=True)
class Finding:
    """rule: the limit's key, as in `limits.KEYS`; where: the population, connection or core; hint: the way out."""

    rule: str
    severity: str
    where: str
    value: Any
    limit: Any
    source: str
    known: str
    hint: str

    @property
    def sentence(self) -> str:
        if self.value is None:
            return f"{self.where}: {self.rule}: {self.hint}."
        by = ""
        if type(self.value) is int and type(self.limit) is int and self.value < NEVER:
            by = f", {abs(self.value - self.limit):,} too {'few' if self.rule.endswith('_least') else 'many'}"
        return f"{self.where}: {self.rule} is {_told(self.value)}, the limit {_told(self.limit)}{by}; {self.hint}."


def finding(chip: Chip, key: str, where: str, value: Any, fits: bool, hint: str, worst: str = ERROR) -> Finding:
    """Of one place; `worst` is the severity where it does not fit, and a limit that is not known is none to break."""
    limit = chip[key]
    severity = UNKNOWN if limit.value is None else OK if fits else worst
    return Finding(key, severity, where, value, limit.value, limit.source, limit.known, hint)


class DoesNotFit(UserError):
    """No placement exists: what a single neuron breaks wherever it is put."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__(" ".join(found.sentence for found in findings))
        self.findings = tuple(findings)


def _told(value: Any) -> str:
    if type(value) is list:
        return " or ".join(map(str, value))
    if type(value) is not int:
        return str(value)
    return f"{value:,}" if value < NEVER else "more than any format of the chip can say"
