"""What a comparison consists of: its cells, one for each method, value of the swept key, and seed.

A comparison's file is a configuration with one section more. A method is the keys in which it differs from that
configuration, and the first method is the baseline:

    [compare]
    seeds = 5                                # seed, seed + 1, ...
    sweep = { network.width = [0.5, 1.0] }   # any one key; may be left out

    [compare.methods]
    arctan = {}
    triangular = { network.surrogate = "triangular" }
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from base.errors import UserError, nearest
from run import building, stages
from run import config as configuration
from run.config import Config

SEEDS = 5
CELL_FORMAT = 1  # of cell.json: another one, and all cells are made anew
KEYS = ("seeds", "sweep", "methods")
EXAMPLE = 'triangular = { network.surrogate = "triangular" }'

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One training: a method at one value of the swept key (None without a sweep), from one seed."""

    method: str
    value: Any
    config: Config

    @cached_property
    def key(self) -> str:
        """Names the cell by all that decides its result, so that a changed configuration makes new cells, no others."""
        decides = [CELL_FORMAT, building.decides_training(self.config), asdict(self.config.quantize)]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        value = "" if self.value is None else f", {self.value}"
        return f"{self.method}{value}, seed {self.config.seed}"


@dataclass(frozen=True)
class Plan:
    """methods: the keys that each sets, "network.surrogate" and its value, by the method's name, the baseline first.
    swept: the key whose `values` are swept, "" and (None,) without a sweep. Cells stand in order of seeds, values and
    methods, so that what is finished first compares all methods on few seeds."""

    methods: Mapping[str, Mapping[str, Any]]
    swept: str
    values: tuple[Any, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]


def read(path: Path, settings: Iterable[str] = ()) -> Plan:
    """The plan in a comparison's file, changed by settings like "compare.seeds=3".

    Raises UserError for what `run.config.read` refuses, and for a comparison without methods, a sweep over none or
    several keys, a value of another kind, or a key that two things set.
    """
    table = configuration.read_table(path, settings)
    section = _table(table.pop("compare", {}), f"{path}: 'compare'", "seeds = 5")
    for key in section:
        if key not in KEYS:
            raise UserError(f"{path}: unknown key 'compare.{key}'; {nearest(key, KEYS)}")
    base = configuration.build(table, str(path))
    number = section.get("seeds", SEEDS)
    if type(number) is not int or number < 1:
        raise UserError(f"{path}: 'compare.seeds' is {number!r}; it must be a whole number from 1, as in {SEEDS}.")
    methods = {
        name: _table(method, f"{path}: method '{name}'", EXAMPLE)
        for name, method in _table(section.get("methods", {}), f"{path}: 'compare.methods'", EXAMPLE).items()
    }
    if not methods:
        raise UserError(f"{path}: there is nothing to compare; name methods under [compare.methods], as in {EXAMPLE}.")
    swept, values = _sweep(path, section)
    for name, method in methods.items():
        for key in _leaves(method):
            if key in (swept, "seed"):
                by = "compare.sweep" if key == swept else "compare.seeds"
                raise UserError(f"{path}: method '{name}' sets '{key}', which {by} varies; set it in one place.")
    seeds = tuple(range(base.seed, base.seed + number))
    varied = [
        (name, value, _merged(_merged(table, method), _nested(swept, value)))
        for value in values
        for name, method in methods.items()
    ]
    configs = [(name, value, configuration.build(both, f"{path}: method '{name}'")) for name, value, both in varied]
    cells = tuple(Cell(name, value, replace(config, seed=seed)) for seed in seeds for name, value, config in configs)
    return Plan({name: _leaves(method) for name, method in methods.items()}, swept, values, seeds, cells)


def check(plan: Plan) -> None:
    """Refuse before any training what training would refuse. Raises UserError, naming the method."""
    for cell in plan.cells[: len(plan.methods) * len(plan.values)]:  # one seed tells for all
        try:
            stages.check(cell.config, None, on_lava=False)
        except UserError as error:
            raise UserError(f"method '{cell.method}': {error}") from error


def _sweep(path: Path, section: Table) -> tuple[str, tuple[Any, ...]]:
    example = "sweep = { network.width = [0.5, 1.0, 2.0] }"
    if "sweep" not in section:
        return "", (None,)
    leaves = _leaves(_table(section["sweep"], f"{path}: 'compare.sweep'", example))
    if len(leaves) != 1:
        raise UserError(f"{path}: 'compare.sweep' names {sorted(leaves)}; it must name one key, as in {example}.")
    ((key, values),) = leaves.items()
    if not isinstance(values, list) or not values or any(values.count(value) > 1 for value in values):
        raise UserError(
            f"{path}: 'compare.sweep' gives {key} {values!r}; it must be different values, as in {example}."
        )
    if key == "seed":
        raise UserError(f"{path}: 'compare.sweep' sweeps the seed; say how many seeds in compare.seeds.")
    return key, tuple(values)


def _table(value: Any, what: str, example: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{what} is {value!r}; it must be a table, as in {example}.")
    return value


def _leaves(table: Table, prefix: str = "") -> dict[str, Any]:
    """The table's values by dotted key: {"network": {"beta": 1.0}} as {"network.beta": 1.0}."""
    leaves: dict[str, Any] = {}
    for key, value in table.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def _nested(key: str, value: Any) -> dict[str, Any]:
    """The table in which the dotted key has that value; empty for no key."""
    first, _, rest = key.partition(".")
    if not key:
        return {}
    return {first: _nested(rest, value) if rest else value}


def _merged(table: Table, changes: Table) -> dict[str, Any]:
    """The table with the changes, section by section."""
    both = {key for key in changes if isinstance(changes[key], dict) and isinstance(table.get(key), dict)}
    return {**table, **changes, **{key: _merged(table[key], changes[key]) for key in both}}
