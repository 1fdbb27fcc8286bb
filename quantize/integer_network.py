"""The artefact: populations of integer neurons and the connections between them, exactly as the chip holds them.

Plain frozen data, checked when made, saved as one `.npz` that NumPy alone can read (see `save`). What it computes is
`quantize/arithmetic.py`; `quantize/reference.py` runs it literally.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import UserError
from quantize import archive
from quantize import arithmetic as rules

FORMAT = "spikeproof-network"
FORMAT_VERSION = 1
INPUT = "input"  # the name that connections use for the network's input

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Population:
    """Neurons of one shape. `decay_u`, `decay_v`, `threshold_mant` and `bias_mant` broadcast to that shape.

    Kept shares per step: (4096 - (decay_u + 1)) / 4096 of the current, (4096 - decay_v) / 4096 of the voltage.
    The bias, `bias_mant << bias_exp`, is in state units, 64 to one unit of activation or threshold. With neuron "none"
    the population is a readout: nothing fires, each step it yields the current `64 a + bias`, which the host sums.

    Raises UserError for whatever the chip's registers cannot hold.
    """

    name: str
    shape: tuple[int, ...]
    decay_u: np.ndarray
    decay_v: np.ndarray
    threshold_mant: np.ndarray
    bias_mant: np.ndarray
    bias_exp: int = 0
    reset: str = "hard"
    floor: bool = False
    neuron: str = "lif"

    def __post_init__(self) -> None:
        what = f"population '{self.name}'"
        if self.name == INPUT or not self.name or "/" in self.name:
            raise UserError(f"{what}: a population's name is not empty, not '{INPUT}' and has no '/'; rename it.")
        if not self.shape or min(self.shape) < 1:
            raise UserError(f"{what}: shape {self.shape} holds no neuron; every dimension must be at least 1.")
        unsigned_decay = (0, rules.DECAY_UNITY - 1)
        bias_half = 1 << (rules.BIAS_BITS - 1)
        for field, low, high in (
            ("decay_u", *unsigned_decay),
            ("decay_v", *unsigned_decay),
            ("threshold_mant", 0, (1 << rules.THRESHOLD_BITS) - 1),
            ("bias_mant", -bias_half, bias_half - 1),
        ):
            values = _integers(f"{what}: {field}", getattr(self, field), low, high)
            if not _broadcasts(values.shape, self.shape):
                raise UserError(f"{what}: {field} of shape {values.shape} does not broadcast to {self.shape}.")
            _set(self, field, values.astype(np.int32))
        _integers(f"{what}: bias_exp", self.bias_exp, 0, rules.BIAS_EXPONENT_MAX)
        if self.reset not in rules.RESETS:
            raise UserError(f"{what}: reset is '{self.reset}'; it is one of {', '.join(rules.RESETS)}.")
        if self.neuron not in ("lif", "none"):
            raise UserError(f"{what}: neuron is '{self.neuron}'; it is 'lif' or 'none'.")

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def spiking(self) -> bool:
        return self.neuron != "none"

    @property
    def alpha(self) -> np.ndarray:
        """Share of the current that is kept per step, float64, broadcasting to the shape; exact."""
        return 1 - (self.decay_u + rules.CURRENT_DECAY_OFFSET) / rules.DECAY_UNITY

    @property
    def beta(self) -> np.ndarray:
        """Share of the voltage that is kept per step, likewise."""
        return 1 - self.decay_v / rules.DECAY_UNITY

    @property
    def bias(self) -> np.ndarray:
        """Bias in state units, int64, broadcasting to the shape."""
        return self.bias_mant.astype(np.int64) << self.bias_exp


def readout(name: str, shape: tuple[int, ...], bias_mant: np.ndarray | int = 0, bias_exp: int = 0) -> Population:
    """A population without neurons, read as current."""
    no_memory = np.asarray(rules.DECAY_UNITY - 1)
    nothing = np.asarray(0)
    return Population(name, shape, no_memory, nothing, nothing, np.asarray(bias_mant), bias_exp, neuron="none")


@dataclass(frozen=True, eq=False)
class Connection:
    """Weights from one population (or the input) to another.

    weight: even integers in -256..254. [O, I] reads the source flattened; [O, C / groups, kh, kw] is a cross-
    correlation over a source [C, H, W], as in torch. The sum is shifted by `exponent`. `delay` counts steps of layer
    time: 0 is within the step; every cycle needs at least 1 somewhere.
    """

    source: str
    target: str
    weight: np.ndarray
    exponent: int = 0
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    delay: int = 0

    def __post_init__(self) -> None:
        what = f"connection {self.name}"
        weight = _integers(f"{what}: weight", self.weight, rules.WEIGHT_MIN, rules.WEIGHT_MAX)
        if weight.ndim not in (2, 4) or weight.size == 0:
            raise UserError(
                f"{what}: weight has shape {weight.shape}; it is [out, in] or [out, in / groups, height, width]."
            )
        if (weight % rules.WEIGHT_STEP).any():
            odd = weight[weight % rules.WEIGHT_STEP != 0][0]
            raise UserError(f"{what}: weight {odd} is odd; the chip drops the lowest bit, so weights must be even.")
        _set(self, "weight", weight.astype(np.int16))
        _integers(f"{what}: exponent", self.exponent, rules.EXPONENT_MIN, rules.EXPONENT_MAX)
        _integers(f"{what}: delay", self.delay, 0, rules.DELAY_MAX)
        for field, low in (("stride", 1), ("padding", 0), ("dilation", 1)):
            _integers(f"{what}: {field}", getattr(self, field), low, 127)
        _integers(f"{what}: groups", self.groups, 1, weight.shape[0])
        if weight.shape[0] % self.groups:
            raise UserError(f"{what}: {weight.shape[0]} output channels do not divide into {self.groups} groups.")

    @property
    def name(self) -> str:
        return f"{self.source}->{self.target}"

    @property
    def is_conv(self) -> bool:
        return self.weight.ndim == 4

    @cached_property
    def row_sums(self) -> np.ndarray:
        """Sum of |weight| into each output (dense) or output channel (conv), int64 [O]."""
        return np.abs(self.weight.astype(np.int64)).reshape(len(self.weight), -1).sum(axis=1)

    def taps(self, source: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Of a convolution over a source [C, H, W]: the rows [H', kh] and the columns [W', kw] that each tap reads at
        each place of the output, int32; padding lies outside 0..H - 1 and 0..W - 1."""
        _, height, width = self.output_shape(source)
        down, right = (
            (np.arange(places)[:, None] * stride - padding + np.arange(kernel) * dilation).astype(np.int32)
            for places, kernel, stride, padding, dilation in zip(
                (height, width), self.weight.shape[2:], self.stride, self.padding, self.dilation, strict=True
            )
        )
        return down, right

    def output_shape(self, source: tuple[int, ...]) -> tuple[int, ...]:
        """Shape that this connection gives to a source of that shape. Raises UserError where the two do not fit."""
        if not self.is_conv:
            if int(np.prod(source)) != self.weight.shape[1]:
                raise UserError(
                    f"connection {self.name}: the weights read {self.weight.shape[1]} inputs, "
                    f"but the source of shape {source} has {int(np.prod(source))}."
                )
            return (self.weight.shape[0],)
        if len(source) != 3 or source[0] != self.weight.shape[1] * self.groups:
            raise UserError(
                f"connection {self.name}: a convolution over {self.weight.shape[1] * self.groups} channels "
                f"cannot read a source of shape {source}."
            )
        channels, height, width = source
        shape = rules.conv_shape((channels, height, width), self.weight.shape, self.stride, self.padding, self.dilation)
        if min(shape) < 1:
            raise UserError(f"connection {self.name}: the convolution's output would be empty: {shape}.")
        return shape


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """Populations and connections, fed by one input of unsigned payloads (1 bit: spikes; more: graded).

    time_weights: None, or int32 [T], by which the host multiplies the output's steps before it sums them; 65536 is 1.
    input_is_bias_of: empty, or the population whose bias mantissas the input is, loaded once a sample; no connection
    reads the input then, and payload_bits mean nothing.

    Raises UserError where parts do not fit each other, where a cycle has no delay, or where a current could grow beyond
    the 32 bits, or the host's sum beyond the 64, that hold it.
    """

    input_shape: tuple[int, ...]
    populations: tuple[Population, ...]
    connections: tuple[Connection, ...]
    output: str
    payload_bits: int = 1
    time_weights: np.ndarray | None = None
    input_is_bias_of: str = ""

    def __post_init__(self) -> None:
        _integers("network: payload_bits", self.payload_bits, 1, 8)
        if self.time_weights is not None:
            _set(self, "time_weights", _time_weights(self.time_weights))
        if not self.input_shape or min(self.input_shape) < 1:
            raise UserError(f"network: input shape {self.input_shape} is empty; every dimension must be at least 1.")
        names = [population.name for population in self.populations]
        if len(set(names)) != len(names):
            raise UserError(f"network: two populations share a name among {names}; rename one.")
        if self.output not in names:
            raise UserError(f"network: the output '{self.output}' is no population; there are {names}.")
        known = {INPUT, *names}
        for connection in self.connections:
            for end in (connection.source, connection.target):
                if end not in known or (end == INPUT and end == connection.target):
                    raise UserError(
                        f"connection {connection.name}: '{end}' is no population it can join; there are {names}."
                    )
            if connection.source != INPUT and not self[connection.source].spiking:
                raise UserError(
                    f"connection {connection.name}: '{connection.source}' is a readout without neurons, nothing can be "
                    "connected behind it; give it neurons or leave the connection out."
                )
            got, wanted = connection.output_shape(self.shape_of(connection.source)), self[connection.target].shape
            if got != wanted:
                raise UserError(
                    f"connection {connection.name}: it yields shape {got}, but '{connection.target}' has {wanted}."
                )
        if self.input_is_bias_of:
            self._check_biased(names)
        for population in self.populations:
            if not self.into(population.name) and population.name != self.input_is_bias_of:
                raise UserError(
                    f"population '{population.name}': no connection leads to it; connect it or leave it out."
                )
            self._check_accumulator(population)
        _ = self.order

    def _check_biased(self, names: list[str]) -> None:
        what = f"network: the input is the bias of '{self.input_is_bias_of}'"
        if self.input_is_bias_of not in names:
            raise UserError(f"{what}, which is no population; there are {names}.")
        population = self[self.input_is_bias_of]
        if not population.spiking:
            raise UserError(f"{what}, a readout without neurons; name a population that spikes.")
        if population.shape != self.input_shape:
            raise UserError(
                f"{what} of shape {population.shape}, but has shape {self.input_shape}; give both one shape."
            )
        if population.bias_mant.any():
            raise UserError(f"{what}, which has one of its own; add that to the input and leave it 0.")
        reading = [connection.name for connection in self.connections if connection.source == INPUT]
        if reading:
            raise UserError(f"{what}, and connection {reading[0]} reads it as spikes; leave one of the two out.")

    def _check_accumulator(self, population: Population) -> None:
        """Where one wrap a step cannot bring the current back, it grows; the 32 bits that hold it must suffice."""
        worst = sum(self.largest_sum(c) * 2.0**c.exponent for c in self.into(population.name))
        added = worst * (1 << rules.STATE_SHIFT)
        if not population.spiking and added + int(np.abs(population.bias).max()) >= 1 << 31:
            raise UserError(
                f"population '{population.name}': its current could reach {added:.0f}, beyond 32 bits; lower the "
                "connections' exponents or the payload bits."
            )
        lost = (int(population.decay_u.min()) + rules.CURRENT_DECAY_OFFSET) / rules.DECAY_UNITY
        if added > 2 * rules.STATE_LIMIT and added / lost + 2 * rules.STATE_LIMIT >= 1 << 31:
            raise UserError(
                f"population '{population.name}': its activation could reach {worst:.0f} and its current then leave 32 "
                "bits; lower the connections' exponents or the payload bits, or raise decay_u."
            )

    def __getitem__(self, name: str) -> Population:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Population]:
        return {population.name: population for population in self.populations}

    def shape_of(self, name: str) -> tuple[int, ...]:
        return self.input_shape if name == INPUT else self[name].shape

    def payload_max(self, source: str) -> int:
        return (1 << self.payload_bits) - 1 if source == INPUT else 1

    def largest_sum(self, connection: Connection) -> int:
        """A bound of the sums over weights that any spikes make, either way, before they are shifted."""
        return int(connection.row_sums.max()) * self.payload_max(connection.source)

    def with_bias(self, name: str, shown: np.ndarray) -> Population:
        """The population while one sample's input [*input_shape] is shown, which is its bias if it is that of any."""
        return replace(self[name], bias_mant=shown) if name == self.input_is_bias_of else self[name]

    def into(self, name: str) -> tuple[Connection, ...]:
        return tuple(connection for connection in self.connections if connection.target == name)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Population names, each after all whose spikes of the same step it reads.

        Raises UserError for a cycle without delay.
        """
        waiting = {p.name: {c.source for c in self.into(p.name) if c.delay == 0} - {INPUT} for p in self.populations}
        ordered: list[str] = []
        while waiting:
            ready = [name for name, sources in waiting.items() if sources <= set(ordered)]
            if not ready:
                raise UserError(
                    f"network: the cycle through {sorted(waiting)} has no delay; give one of its connections delay 1."
                )
            ordered += ready
            waiting = {name: sources for name, sources in waiting.items() if name not in ready}
        return tuple(ordered)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over everything that the network computes with."""
        return archive.content_hash(*pack(self))

    def check_inputs(self, inputs: np.ndarray) -> np.ndarray:
        """The inputs [T, B, *input_shape] as uint8, or as int16 where they are biases.

        Raises UserError where shape, kind or range do not fit, and for biases that change over time.
        """
        inputs = np.asarray(inputs)
        if inputs.ndim != 2 + len(self.input_shape) or inputs.shape[2:] != self.input_shape:
            raise UserError(f"input: shape {inputs.shape} is not [steps, samples, *{self.input_shape}].")
        if 0 in inputs.shape:
            raise UserError(f"input: shape {inputs.shape} holds nothing; at least one step and one sample are needed.")
        if self.time_weights is not None and len(self.time_weights) != len(inputs):
            raise UserError(
                f"input: it has {len(inputs)} steps, but the network weighs {len(self.time_weights)} steps of its "
                f"output; encode it in {len(self.time_weights)} steps."
            )
        if self.input_is_bias_of:
            half = 1 << (rules.BIAS_BITS - 1)
            mantissas = _integers("input: bias mantissa", inputs, -half, half - 1).astype(np.int16)
            if (mantissas != mantissas[:1]).any():
                raise UserError(
                    "input: it changes over time, but a bias is loaded once a sample; give the same at every step."
                )
            return mantissas
        limit = self.payload_max(INPUT)
        return _integers("input", inputs, 0, limit).astype(np.uint8)


def save(network: IntegerNetwork, path: Path) -> None:
    """Write the network as one `.npz` (see `quantize/archive.py`): a header naming every part, an array per field."""
    archive.write(path, *pack(network))


def load(path: Path) -> IntegerNetwork:
    """Read a network that `save` wrote.

    Raises UserError for a file that is missing, cut, foreign, of another version or arithmetic, or was changed.
    """
    header, arrays = archive.read(path, FORMAT, FORMAT_VERSION, "quantize")
    if header.get("arithmetic") != rules.ARITHMETIC_ID:
        raise UserError(
            f"{path}: is written for the arithmetic '{header.get('arithmetic')}'; "
            f"this program computes '{rules.ARITHMETIC_ID}'."
        )
    try:
        return unpack(header, arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise archive.malformed(path, FORMAT, error) from error


_POPULATION_ARRAYS = ("decay_u", "decay_v", "threshold_mant", "bias_mant")
_POPULATION_FIELDS = ("name", "shape", "bias_exp", "reset", "floor", "neuron")
_CONNECTION_FIELDS = ("source", "target", "exponent", "stride", "padding", "dilation", "groups", "delay")


def pack(network: IntegerNetwork) -> tuple[archive.Header, archive.Arrays]:
    arrays = {
        f"population/{p.name}/{field}": getattr(p, field) for p in network.populations for field in _POPULATION_ARRAYS
    }
    arrays |= {f"connection/{index}/weight": c.weight for index, c in enumerate(network.connections)}
    if network.time_weights is not None:
        arrays["time_weights"] = network.time_weights
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "arithmetic": rules.ARITHMETIC_ID,
        "input_shape": list(network.input_shape),
        "payload_bits": network.payload_bits,
        "output": network.output,
        "populations": [
            {field: _plain(getattr(p, field)) for field in _POPULATION_FIELDS} for p in network.populations
        ],
        "connections": [
            {field: _plain(getattr(c, field)) for field in _CONNECTION_FIELDS} for c in network.connections
        ],
    }
    if network.input_is_bias_of:  # otherwise absent, so that networks keep the hashes they had without it
        header["input_is_bias_of"] = network.input_is_bias_of
    return header, arrays


def unpack(header: archive.Header, arrays: archive.Arrays) -> IntegerNetwork:
    def fields(stored: dict[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}

    def population(stored: dict[str, Any]) -> Population:
        own: dict[str, Any] = {field: arrays[f"population/{stored['name']}/{field}"] for field in _POPULATION_ARRAYS}
        return Population(**fields(stored), **own)

    return IntegerNetwork(
        input_shape=tuple(header["input_shape"]),
        populations=tuple(population(stored) for stored in header["populations"]),
        connections=tuple(
            Connection(**fields(stored), weight=arrays[f"connection/{index}/weight"])
            for index, stored in enumerate(header["connections"])
        ),
        output=header["output"],
        payload_bits=header["payload_bits"],
        time_weights=arrays.get("time_weights"),
        input_is_bias_of=header.get("input_is_bias_of", ""),
    )


def _time_weights(values: Any) -> np.ndarray:
    """The weights as int32 [T]; any sum of so weighted outputs fits 64 bits.

    An output is a spike or a current, at most 2^31 either way. With weights that sum to less than 2^32, no part of
    their sum, in whatever order, reaches 2^63.
    """
    weights = _integers("network: time_weights", values, 0, (1 << 31) - 1)
    if weights.ndim != 1 or not len(weights):
        raise UserError(f"network: time_weights have shape {weights.shape}; they are [steps], one for each step.")
    total = int(weights.sum(dtype=np.int64))
    if total >= 1 << 32:
        raise UserError(
            f"network: time_weights sum to {total}, with which a sum of currents could leave 64 bits; scale them down "
            f"until they sum to less than {1 << 32}."
        )
    return weights.astype(np.int32)


def _integers(what: str, values: Any, low: int, high: int) -> np.ndarray:
    """The values as an integer array. Raises UserError for another type and for whatever lies outside low..high."""
    array = np.asarray(values)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iu":
        raise UserError(f"{what}: is of type {array.dtype}, not integer; only whole numbers reach the chip.")
    if array.size and (array.min() < low or array.max() > high):
        outside = (array < low) | (array > high)
        position = tuple(int(i) for i in np.argwhere(outside)[0])
        where = f" at {position}" if position else ""
        raise UserError(f"{what}: {array[position]}{where} lies outside {low}..{high}.")
    return array


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    aligned = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(size in (1, wanted) for size, wanted in aligned)


def _plain(value: Any) -> Any:
    return [int(item) for item in value] if isinstance(value, tuple) else value


def _set(instance: object, field: str, value: np.ndarray) -> None:
    value = np.array(value)
    value.flags.writeable = False
    object.__setattr__(instance, field, value)
