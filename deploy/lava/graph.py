"""IntegerNetwork + schedule -> plan: which Lava process holds what, how they are wired, and which Lava step is which.

The plan is plain data and imports no Lava; the full runtime and the bare model classes both run it. Stock processes
(`Dense`, `Sparse`, `Conv`, `LIFReset`) are used wherever they can say it. Lava delivers a connection's sum one step
late, so every population lags behind the input: lagging by k, it runs step t of sample b at Lava step b T + t + k + 1.
What is to arrive later still, since it is delayed or skips levels, goes through an `Axon`. Input that is a bias is
written into the neurons in the step before a sample's first, so that they lag as behind a synapse. This file alone
knows about that. Whatever Lava would accept and compute otherwise than the contract is refused here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from base.errors import UserError, nearest
from quantize.arithmetic import DELAY_MAX
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population

CONVOLUTIONS = ("Sparse", "Conv")
STOCK, OWN = "LIFReset", "IntegerLIF"
_CONV_GEOMETRY_MAX = 127  # Conv computes sizes in int8
STREAMED_SECONDS = 60  # that samples may take one after the other, before lanes are chosen for them
LANED_VALUES = 1 << 18  # in a message of that many, passing it costs little beside computing it
_INT16_EXACT = 1 << 15
_FLOAT32_EXACT = 1 << 24


@dataclass(frozen=True)
class Schedule:
    """T steps a sample, B samples one after the other, `lanes` of them side by side; u and v of the first `states`."""

    steps: int
    samples: int
    states: int = 0
    lanes: int = 1

    @property
    def windows(self) -> int:
        return -(-self.samples // self.lanes)


@dataclass(frozen=True, eq=False)
class Part:
    """One Lava process: the name of its class and its keyword arguments."""

    kind: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Wire:
    """One part's out port to another's in port; `layout` names the virtual ports between and their arguments."""

    source: str
    target: str
    layout: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(eq=False)
class Plan:
    """parts: in the order in which data flows from one synapse to the next. references: parts that read or write
    variables of neurons, with those neurons and the variables' names.
    """

    total_steps: int
    parts: dict[str, Part] = field(default_factory=dict)
    wires: list[Wire] = field(default_factory=list)
    references: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Files:
    """The `.npy` files of a job, named by the position of a population since a name may hold anything."""

    folder: Path
    network: IntegerNetwork

    @property
    def inputs(self) -> str:
        return str(self.folder / "inputs.npy")

    def of(self, kind: str, name: str) -> str:
        position = [population.name for population in self.network.populations].index(name)
        return str(self.folder / f"{kind}-{position}.npy")


def recorded_kinds(population: Population, schedule: Schedule) -> tuple[str, ...]:
    return ("spikes", "u", "v") if schedule.states and population.spiking else ("spikes",)


def plan(network: IntegerNetwork, schedule: Schedule, convolution: str, folder: Path) -> Plan:
    """The processes that run the network on `inputs.npy` and record into the folder's files.

    Raises UserError for what `check` refuses.
    """
    check(network, schedule, convolution)
    lag = lags(network)
    made = Plan(total_steps=schedule.windows * schedule.steps + max(lag.values()))
    files, lanes = Files(folder, network), {"lanes": schedule.lanes}
    biased = network.input_is_bias_of
    playing = {"shape": _ports(network.input_shape, schedule), "path": files.inputs, **lanes}
    made.parts[INPUT] = Part("BiasLoader" if biased else "Player", {"first_step": lag[biased or INPUT] + 1, **playing})
    if biased:
        made.references[INPUT] = (_sender(biased), ("bias_mant",))
    for name in network.order:
        population, kinds = network[name], recorded_kinds(network[name], schedule)
        if population.spiking:
            made.parts[_sender(name)] = _neurons(population, schedule, lag[name] + 1)
            made.wires.append(Wire(_sender(name), _recorder(name)))
        made.parts[_recorder(name)] = Part(
            "StateRecorder" if "u" in kinds else "RasterRecorder",
            {"shape": _ports(population.shape, schedule), "first_step": lag[name] + 1, **lanes}
            | {f"{kind}_path": files.of(kind, name) for kind in kinds},
        )
        if "u" in kinds:
            made.references[_recorder(name)] = (_sender(name), ("u", "v"))
    for name in network.order:
        for number, connection in enumerate(network.into(name)):
            source, synapse = _sender(connection.source), f"synapse {number} {connection.name}"
            if connection.delay or extra_delay(connection, lag):
                axon = f"axon {number} {connection.name}"
                made.parts[axon] = _axon(network, connection, schedule, lag)
                made.wires.append(Wire(source, axon))
                source = axon
            made.parts[synapse], arriving, leaving = _synapse(network, connection, schedule, convolution)
            made.wires += [Wire(source, synapse, arriving), Wire(synapse, _receiver(network[name]), leaving)]
    return made


def lags(network: IntegerNetwork) -> dict[str, int]:
    """By how many Lava steps each population lags behind the input: the smallest numbers that suit every connection.

    From its source's step t to its target's step t + delay a connection has delay + lag[target] - lag[source] Lava
    steps, of which its synapse takes one. So the lag is the longest way from anywhere, where a connection counts
    1 - delay (Bellman and Ford), and loading a bias as much as a synapse. Raises UserError for a cycle that grows with
    every turn: less delay than connections.
    """
    lag = {name: int(name == network.input_is_bias_of) for name in (INPUT, *network.order)}
    latest: dict[str, Connection] = {}
    for _ in lag:
        moved = ""
        for connection in network.connections:
            needed = lag[connection.source] - connection.delay + 1
            if needed > lag[connection.target]:
                moved = connection.target
                lag[moved], latest[moved] = needed, connection
        if not moved:
            return lag
    cycle = _cycle(latest, moved)
    names, delay = " -> ".join([cycle[0].source, *(c.target for c in cycle)]), sum(c.delay for c in cycle)
    raise UserError(
        f"network: the cycle {names} has a total delay of {delay}, but each of its connections takes Lava a step; "
        f"raise its delays to a total of {len(cycle)} or run the backend 'engine'."
    )


def check(network: IntegerNetwork, schedule: Schedule, convolution: str) -> None:
    """Raises UserError, naming the population or connection, for what Lava cannot run as the contract says."""
    if convolution not in CONVOLUTIONS:
        raise UserError(f"lava: there is no convolution '{convolution}'; {nearest(convolution, CONVOLUTIONS)}")
    lag = lags(network)
    for connection in network.connections:
        extra = extra_delay(connection, lag)
        if extra > DELAY_MAX:
            raise UserError(
                f"connection {connection.name}: a delay of {connection.delay} over {extra + 1 - connection.delay} "
                f"levels takes {extra} extra steps on Lava, at most {DELAY_MAX} are possible; lower the delay, skip "
                "fewer levels or run the backend 'engine'."
            )
        if convolution == "Conv" and schedule.lanes == 1 and _as_conv(connection):
            _check_conv(connection, network.shape_of(connection.source))


def unroll(connection: Connection, source: tuple[int, ...]) -> csr_matrix:
    """A convolution over a source [C, H, W] as int32 CSR [O H' W', C H W], both sides flattened like torch's NCHW."""
    channels, height, width = source
    out_channels, group_channels, rows, columns = connection.weight.shape
    _, out_height, out_width = connection.output_shape(source)
    y, x = connection.taps(source)
    y, x = y[:, None, None, :, None], x[None, :, None, None, :]
    channel = np.arange(group_channels, dtype=np.int32)[None, None, :, None, None]
    inside = np.broadcast_to(
        (y >= 0) & (y < height) & (x >= 0) & (x < width), (out_height, out_width, group_channels, rows, columns)
    )
    # Every output channel reads the same pixels of its group: only the weights and the group's offset change.
    pixels = ((channel * height + y) * width + x)[inside]
    taps = np.broadcast_to(np.arange(connection.weight[0].size).reshape(connection.weight[0].shape), inside.shape)[
        inside
    ]
    group_of = np.arange(out_channels) // (out_channels // connection.groups)
    indices = np.concatenate([pixels + group * group_channels * height * width for group in group_of])
    data = np.concatenate([kernel.ravel()[taps] for kernel in connection.weight.astype(np.int32)])
    per_row = np.tile(inside.sum(axis=(2, 3, 4)).ravel(), out_channels)
    matrix = csr_matrix(
        (data, indices, np.concatenate([[0], np.cumsum(per_row)])),
        shape=(out_channels * out_height * out_width, channels * height * width),
    )
    matrix.eliminate_zeros()
    return matrix


def chosen_lanes(network: IntegerNetwork, steps: int, samples: int) -> int:
    """How many lanes suit inputs [T, B, ...] of which nobody said: one, on stock processes wherever they can be used,
    unless that took long, at about a millisecond for every population and a nanosecond for every weight in a step."""
    weights = sum(
        int(np.prod(connection.output_shape(network.shape_of(connection.source)))) * connection.weight[0].size
        for connection in network.connections
    )
    if samples * steps * (1e-3 * len(network.populations) + 1e-9 * weights) < STREAMED_SECONDS:
        return 1
    widest = max(int(np.prod(network.shape_of(name))) for name in (INPUT, *network.order))
    return min(samples, max(1, LANED_VALUES // widest))


def _ports(shape: tuple[int, ...], schedule: Schedule) -> tuple[int, ...]:
    size = int(np.prod(shape))
    return (size,) if schedule.lanes == 1 else (size, schedule.lanes)


def _sender(name: str) -> str:
    """The part that sends the spikes of a population or of the input."""
    return name if name == INPUT else f"neurons {name}"


def _recorder(name: str) -> str:
    return f"recorder {name}"


def _receiver(population: Population) -> str:
    """The part that the synapses of a population send to: a readout has no neurons, its activation is recorded."""
    return _sender(population.name) if population.spiking else _recorder(population.name)


def _cycle(latest: dict[str, Connection], name: str) -> list[Connection]:
    """The cycle that a population is on or behind; `latest` holds the connection by which each was put off last."""
    for _ in latest:
        name = latest[name].source
    cycle = [latest[name]]
    while cycle[0].source != name:
        cycle.insert(0, latest[cycle[0].source])
    return cycle


def extra_delay(connection: Connection, lag: dict[str, int]) -> int:
    """Lava steps beside the one that the synapse itself takes."""
    return connection.delay + lag[connection.target] - lag[connection.source] - 1


def _axon(network: IntegerNetwork, connection: Connection, schedule: Schedule, lag: dict[str, int]) -> Part:
    shape = _ports(network.shape_of(connection.source), schedule)
    delays = {"delay": extra_delay(connection, lag), "layer_delay": connection.delay}
    return Part("Axon", {"shape": shape, **delays, "window": schedule.steps, "first_step": lag[connection.source] + 1})


def _neurons(population: Population, schedule: Schedule, first_step: int) -> Part:
    shape = _ports(population.shape, schedule)
    # Clears, before a sample's first step, also what the bias did while the first sample was on its way.
    clearing = {"reset_interval": schedule.steps, "reset_offset": first_step % schedule.steps}
    bias = {"bias_mant": _per_neuron(population.bias_mant, population, schedule), "bias_exp": population.bias_exp}
    if neurons_kind(population) == STOCK:
        shared = (population.decay_u, population.decay_v, population.threshold_mant)
        decay_u, decay_v, threshold = (int(values.flat[0]) for values in shared)
        return Part(STOCK, {"shape": shape, "du": decay_u, "dv": decay_v, "vth": threshold, **bias, **clearing})
    arrays = ("decay_u", "decay_v", "threshold_mant")
    rule: dict[str, Any] = {name: _per_neuron(getattr(population, name), population, schedule) for name in arrays}
    rule |= {"reset": population.reset, "floor": population.floor}
    return Part(OWN, {"shape": shape, "rule": rule, **bias, **clearing})


def neurons_kind(population: Population) -> str:
    """The process that runs a population's neurons: Lava's own where it can do what they do, or this project's."""
    shared = (population.decay_u, population.decay_v, population.threshold_mant)
    plain = population.reset == "hard" and not population.floor and all(np.ptp(values) == 0 for values in shared)
    return STOCK if plain else OWN


def _per_neuron(values: np.ndarray, population: Population, schedule: Schedule) -> np.ndarray:
    full = np.broadcast_to(values, population.shape).ravel()
    return full if schedule.lanes == 1 else np.repeat(full[:, None], schedule.lanes, axis=1)


def _synapse(
    network: IntegerNetwork, connection: Connection, schedule: Schedule, convolution: str
) -> tuple[Part, tuple, tuple]:
    """The part, and the layouts through which its messages arrive and leave: all others send flat NCHW."""
    source = network.shape_of(connection.source)
    payload_bits = network.payload_bits if connection.source == INPUT else 1
    if convolution == "Conv" and schedule.lanes == 1 and _as_conv(connection):
        return _conv(connection, source, payload_bits)
    weights = unroll(connection, source) if connection.is_conv else connection.weight.astype(np.int32)
    exponent = {"weight_exp": connection.exponent}
    if schedule.lanes > 1:
        weights = weights.astype(_multiplied_as(network.largest_sum(connection), sparse=connection.is_conv))
        return Part("LanedSynapse", {"weights": weights, "lanes": schedule.lanes, **exponent}), (), ()
    kind = "Sparse" if connection.is_conv else "Dense"
    # Binary spikes: Dense is faster adding the columns that spiked (0 bits), Sparse with a product (1 bit); same sums.
    message_bits = payload_bits if connection.is_conv or payload_bits > 1 else 0
    return Part(kind, {"weights": weights, "num_weight_bits": 8, "num_message_bits": message_bits, **exponent}), (), ()


def _multiplied_as(worst: int, sparse: bool) -> type[np.generic]:
    """The fastest type in which sums that reach `worst` are exact: SciPy multiplies shorter ones in less time, and
    NumPy has matrix products of floats only."""
    if sparse and worst < _INT16_EXACT:
        return np.int16
    return np.float32 if worst < _FLOAT32_EXACT else np.float64


def _as_conv(connection: Connection) -> bool:
    """Whether Lava's Conv can hold it: it ignores exponents, and only positive ones can go into the kernel."""
    return connection.is_conv and connection.exponent >= 0


def _conv(connection: Connection, source: tuple[int, ...], payload_bits: int) -> tuple[Part, tuple, tuple]:
    channels, height, width = source
    # Lava convolves (flipped kernel) over [W, H, C]; we correlate over [C, H, W].
    kernel = connection.weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1).astype(np.int32) << connection.exponent
    geometry = {name: getattr(connection, name)[::-1] for name in ("stride", "padding", "dilation")}
    arguments = {"weight": kernel, "input_shape": (width, height, channels), "groups": connection.groups, **geometry}
    out = connection.output_shape(source)
    whc = ("transpose", (2, 1, 0))
    return (
        Part("Conv", {**arguments, "num_message_bits": payload_bits}),
        (("reshape", (channels, height, width)), whc),
        (whc, ("reshape", (int(np.prod(out)),))),
    )


def _check_conv(connection: Connection, source: tuple[int, ...]) -> None:
    padded = [size + 2 * pad for size, pad in zip(source[1:], connection.padding, strict=True)]
    largest = max(*padded, source[0], len(connection.weight))
    if largest > _CONV_GEOMETRY_MAX:
        raise UserError(
            f"connection {connection.name}: a padded size or channel count of {largest} is beyond Lava's Conv, which "
            f"computes sizes in 8 bits (at most {_CONV_GEOMETRY_MAX}); use convolution 'Sparse'."
        )
