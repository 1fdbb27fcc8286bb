"""A summary for people: in a sentence for each thing that is wrong, and as tables."""

from __future__ import annotations

from typing import Any

from deploy.chip.findings import ERROR, WARNING, Finding
from deploy.chip.synapses import Region

SHOWN_CORES = 32  # the first ones; more are no table to read

Table = tuple[list[str], list[list[str]]]  # headings, rows


def sentences(told: dict[str, Any], severity: str) -> list[str]:
    return [Finding(**found).sentence for found in told["rules"] if found["severity"] == severity]


def verdict(told: dict[str, Any]) -> str:
    """Whether it fits, and how many cores it takes."""
    placed = told["placement"]
    words = f"{told['chip']}: {'fits' if told['fits'] else 'DOES NOT FIT'}"
    if not placed:
        return f"{words}; it has no place on any number of cores."
    room = f"{_number(placed['cores'], 'core')} of {_number(placed['chips'], 'chip')}"
    room += f"; by counting it takes at least {placed['least_cores']:,}"
    return f"{words}, on {room}." if told["fits"] else f"{words}; were it not for that, it would take {room}."


def report(told: dict[str, Any]) -> str:
    """The verdict and what is wrong or doubtful."""
    wrong = [f"Error: {sentence}" for sentence in sentences(told, ERROR)]
    return "\n".join([verdict(told), *wrong, *(f"Warning: {sentence}" for sentence in sentences(told, WARNING))])


def costs(published: dict[str, Any]) -> dict[str, str]:
    """Energies and time of an inference, each from its least to its most."""
    ranges = {
        **{f"{name}, µJ": ends for name, ends in published["dynamic energy, uJ"].items()},
        "static, µJ": published["static energy, uJ"],
        "time, µs": published["time, us"],
    }
    return {name: " … ".join(f"{end:,.4g}" for end in ends) for name, ends in ranges.items()}


def rules(told: dict[str, Any]) -> Table:
    """What was held against which limit, without where that was said and what helps."""
    headings = ["rule", "at", "value", "limit", "", "known"]
    rows = [
        [
            _name(found["rule"]),
            found["where"],
            _text(found["value"]),
            _text(found["limit"]),
            found["severity"],
            found["known"],
        ]
        for found in told["rules"]
    ]
    return headings, rows


def cores(told: dict[str, Any]) -> Table:
    """What lies on each core of a placement, and how full it is."""
    shown = told["placement"]["utilisation"][:SHOWN_CORES]
    limited = list(shown[0]["shares"])
    rows = [
        [
            str(core["core"]),
            ", ".join(f"{part['population']} {_slices(part['region'])}" for part in core["parts"]),
            *(f"{core['counts'][key]:,} ({core['shares'][key]:.0%})" for key in limited),
        ]
        for core in shown
    ]
    return ["core", "holds", *map(_name, limited)], rows


def _name(key: str) -> str:
    return key.split(".")[1].replace("_", " ")


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _slices(region: Region) -> str:
    """As Python writes them."""
    return "[" + ", ".join(f"{first}:{behind}" for first, behind in region) + "]"


def _text(value: Any) -> str:
    if type(value) is list:
        return ", ".join(map(str, value))
    return "–" if value is None else f"{value:,}" if type(value) is int else str(value)
