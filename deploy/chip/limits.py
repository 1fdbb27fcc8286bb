"""A chip as plain data: what it holds, where that was said, and how well it is known. Read from TOML."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base.errors import UserError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CHIPS = ("loihi1", "loihi2")
KNOWN = ("published", "quoted", "given", "unknown")
COUNT, POSITIVE, AMOUNT, TEXT = "a whole number", "a whole number above 0", "a number", "a text"
COUNTS, TEXTS, RANGE = "a list of whole numbers", "a list of texts", "a least and a most"
NEVER = 1 << 62  # more than any chip holds: what no format of it can say

# Every key that a chip's file may hold. One that is left out is unknown, and not checked.
KEYS = {
    "network.resets": TEXTS,  # of neurons after a spike, by the names of quantize/arithmetic.py
    "network.payload_bits": COUNT,  # of a spike
    "network.delay": COUNT,  # most steps that a synapse adds
    "network.delay_of_full_core": COUNT,  # steps that it adds whatever else the core holds
    "network.threshold_least": COUNT,  # mantissa
    "network.bias_magnitude": COUNT,  # mantissa
    "network.exponent_least": COUNT,  # of a connection
    "network.activation_bits": COUNT,  # signed, of the sum of one step's weights
    "network.state_bits": COUNT,  # signed, of u and v
    "core.neurons": POSITIVE,
    "core.synapse_bits": COUNT,
    "core.input_axons": COUNT,
    "core.output_axons": COUNT,
    "core.decay_configs": COUNT,  # distinct pairs of decay_u and decay_v
    "core.threshold_configs": COUNT,  # distinct thresholds
    "core.synapse_formats": COUNT,  # distinct widths, exponents and delays
    "core.floors": COUNT,  # distinct least voltages
    "chip.cores": POSITIVE,
    "chip.chips": POSITIVE,
    "chip.cores_per_tile": POSITIVE,
    "synapse.weight_bits": COUNTS,  # widths that a weight of mixed sign may have
    "synapse.index_bits": COUNTS,  # widths that the number of a target neuron may have; 0: dense
    "synapse.block": POSITIVE,  # synapses
    "synapse.header_bits": COUNT,  # of a block
    "synapse.word_bits": POSITIVE,  # to which a block is rounded up
    "synapse.neuron_bits": COUNT,  # of synapse memory that a neuron's own state takes
    "synapse.kernels": TEXT,  # of a convolution in a core, see KERNELS
    "synapse.base_limit": POSITIVE,  # below which the first neuron lies that an axon of a shared kernel reaches
    "synapse.kernel_axon_slots": POSITIVE,  # output axons that one of a shared kernel takes
    "energy.label": TEXT,
    "energy.synaptic_operation_pj": RANGE,
    "energy.neuron_update_pj": RANGE,
    "energy.spike_in_tile_pj": RANGE,
    "energy.tile_hop_pj": RANGE,
    "energy.static_mw": AMOUNT,  # of a chip
    "time.synaptic_operation_ns": RANGE,
    "time.neuron_update_ns": RANGE,
    "time.barrier_ns": RANGE,
    "speed.neuron_update": AMOUNT,  # times that of Loihi 1
    "speed.synaptic_operation": AMOUNT,
    "speed.spike_generation": AMOUNT,
}
# "once": stored once in every core. "patterns": once for every way in which a source pixel reaches the core's neurons.
# "unrolled": every source neuron has synapses of its own.
KERNELS = ("once", "patterns", "unrolled")


@dataclass(frozen=True)
class Limit:
    """value: None where it is unknown. known: one of KNOWN, of a user's own file "given"."""

    value: Any
    source: str
    known: str


UNKNOWN = Limit(None, "not said", "unknown")


@dataclass(frozen=True)
class Chip:
    name: str
    limits: Mapping[str, Limit]

    def __getitem__(self, key: str) -> Limit:
        """The limit of a key of KEYS."""
        return self.limits.get(key, UNKNOWN)

    def value(self, key: str, otherwise: Any = None) -> Any:
        value = self[key].value
        return otherwise if value is None else value


def load(name: str) -> Chip:
    """The chip of that name, or of the TOML file at that path.

    Raises UserError for a file that cannot be read, and for an unknown key or a value of another kind in it.
    """
    path = Path(__file__).with_name(f"{name}.toml") if name in CHIPS else Path(name)
    if name not in CHIPS and path.suffix != ".toml":
        raise UserError(f"chip.name: '{name}' is no chip; {nearest(name, CHIPS)} Or give the path of a TOML file.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; give an existing TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid TOML: {error}.") from error
    chip_name = table.pop("name", path.stem)
    limits = {}
    for section, entries in table.items():
        if not isinstance(entries, dict):
            raise UserError(f"{path}: unknown key '{section}'; a limit is a key of a section, as in [core].")
        for key, entry in entries.items():
            full = f"{section}.{key}"
            if full not in KEYS:
                raise UserError(f"{path}: unknown key '{full}'; {nearest(full, KEYS)}")
            limits[full] = _limit(entry, full, path)
    return Chip(str(chip_name), limits)


def _limit(entry: Any, key: str, path: Path) -> Limit:
    """The limit that a file says, as a bare value or with its source and how it is known."""
    said = entry if isinstance(entry, dict) else {"value": entry}
    stranger = next((name for name in said if name not in ("value", "source", "known")), None)
    if stranger:
        raise UserError(f"{path}: unknown key '{key}.{stranger}'; a limit has a value, a source and known.")
    value, known = said.get("value"), said.get("known", "given")
    if known not in KNOWN:
        raise UserError(f"{path}: '{key}.known' is '{known}'; {nearest(str(known), KNOWN)}")
    if value is None and known != "unknown":
        raise UserError(f"{path}: '{key}' has no value; give one, or say known = \"unknown\".")
    if value is not None and not _is(value, KEYS[key]):
        raise UserError(f"{path}: '{key}' is {value!r}; it must be {KEYS[key]}.")
    if key == "synapse.kernels" and value not in KERNELS:
        raise UserError(f"{path}: '{key}' is {value!r}; {nearest(str(value), KERNELS)}")
    return Limit(value, str(said.get("source", path.name)), known)


def _is(value: Any, kind: str) -> bool:
    if kind in (COUNT, POSITIVE):
        return type(value) is int and (kind == COUNT or value > 0)
    if kind == AMOUNT:
        return type(value) in (int, float)
    if kind == TEXT:
        return type(value) is str
    if kind == RANGE:
        return type(value) is list and len(value) == 2 and all(type(end) in (int, float) for end in value)
    return type(value) is list and len(value) > 0 and all(type(x) is (int if kind == COUNTS else str) for x in value)
