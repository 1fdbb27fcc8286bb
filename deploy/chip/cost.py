"""What an inference costs on a chip: events counted in a Recording, energy and time where those of an event are public.

    energy = synaptic operations E_synop + neuron updates E_update + messages E_spike + hops E_hop + static power time
    time   = sum over steps of (max over cores of (synaptic operations t_synop + neurons t_update) + t_barrier)

(Davies et al. 2018, Table 2; that time follows the busiest core was measured by Yik et al., 2511.21549.) Each constant
is a least and a most, so each sum is too. A synaptic operation is a spike meeting a synapse (of a dense connection, a
weight that is not zero), a message a spike on its way to one part of a population. Where tiles lie on the chip is not
said, so a message to another tile takes from one hop to the longest way through a square of the tiles in use. Steps are
layer time: populations work on one step together, while on the chip each is a step behind the one before.

Beside it, the accounting usual in papers, of 45 nm: a multiplication and an addition for each weight of the equivalent
network of ReLUs, an addition for each synaptic operation (Horowitz, ISSCC 2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isqrt
from typing import Any

import numpy as np

from deploy.chip.placement import Placement
from deploy.chip.synapses import synapses_of
from quantize.integer_network import INPUT, Connection, IntegerNetwork
from quantize.recording import Recording

MULTIPLY_PJ, ADD_PJ = 3.7, 0.9  # of 32-bit floats, 45 nm, 0.9 V: Horowitz, ISSCC 2014
CAVEAT = (
    "Arithmetic of 45 nm alone: no memory, no neuron updates, no idling, nothing that the host computes, and floats "
    "where the chip has integers; not to be compared with the chip's energy."
)
PUBLISHED = (
    "energy.label",
    "energy.synaptic_operation_pj",
    "energy.neuron_update_pj",
    "energy.spike_in_tile_pj",
    "energy.tile_hop_pj",
    "energy.static_mw",
    "time.synaptic_operation_ns",
    "time.neuron_update_ns",
    "time.barrier_ns",
)  # all that energy and time are made of
CHUNK = 1 << 24  # spikes of one connection's source that are looked at together

Range = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Counts:
    """Of one inference, on average over the samples.

    of_graded: synaptic operations of spikes with a payload. traffic: messages from each core, or in the last row from
    the host, to each core. operations_of_cores: [T, B, cores], not averaged, for time follows the busiest one.
    """

    steps: int
    samples: int
    spikes: dict[str, float]
    synaptic_operations: float
    of_graded: float
    neuron_updates: int
    traffic: np.ndarray
    operations_of_cores: np.ndarray


def count(network: IntegerNetwork, placement: Placement, recording: Recording, inputs: np.ndarray) -> Counts:
    """Events in a recording of the network on inputs [T, B, *input_shape]."""
    emitted = {INPUT: inputs} | recording.spikes
    if network.input_is_bias_of:
        emitted[INPUT] = np.zeros_like(inputs)  # loaded, not sent
    steps, samples = inputs.shape[:2]
    operations = np.zeros((steps, samples, len(placement.cores)))
    traffic = np.zeros((len(placement.cores) + 1, len(placement.cores)))
    graded = 0.0
    for connection, synapses in zip(network.connections, synapses_of(network, placement.chip), strict=True):
        fires = (emitted[connection.source] != 0).reshape(steps * samples, -1)
        totals = fires.sum(axis=0, dtype=np.int64).reshape(network.shape_of(connection.source))
        cores, parts = zip(*placement.parts[connection.target], strict=True)
        met = [synapses.operations(part.region) for part in parts]
        fan = np.stack([of_part.ravel() for of_part in met], axis=1).astype(np.float64)
        summed = np.concatenate([block.astype(np.float64) @ fan for block in np.array_split(fires, _blocks(fires))])
        for place, core in enumerate(cores):
            operations[:, :, core] += summed[:, place].reshape(steps, samples)
            sent = totals * (met[place] > 0)
            if connection.source == INPUT:
                traffic[-1, core] += sent.sum()
                continue
            for source, part in placement.parts[connection.source]:
                traffic[source, core] += sent[part.slices].sum()
        if network.payload_max(connection.source) > 1:
            graded += summed.sum()
    return Counts(
        steps,
        samples,
        {
            name: float(np.count_nonzero(emitted[name]) / samples)
            for name in (INPUT, *network.order)
            if name == INPUT or network[name].spiking
        },
        float(operations.sum() / samples),
        graded / samples,
        steps * sum(population.size for population in network.populations),
        traffic / samples,
        operations,
    )


def cost(network: IntegerNetwork, placement: Placement, counts: Counts) -> dict[str, Any]:
    """JSON-ready: the events of one inference, their energy and time where these are public, and a dense network's."""
    chip, messages = placement.chip, _messages(placement, counts.traffic)
    return {
        "samples": counts.samples,
        "steps": counts.steps,
        "events": {
            "spikes": counts.spikes,
            "synaptic operations": counts.synaptic_operations,
            "neuron updates": counts.neuron_updates,
            "messages": messages,
        },
        "published": _published(placement, counts, messages),
        "times faster than Loihi 1": {
            key.removeprefix("speed.").replace("_", " "): limit.value
            for key, limit in chip.limits.items()
            if key.startswith("speed.")
        },
        "dense": _dense(network, counts),
    }


def _messages(placement: Placement, traffic: np.ndarray) -> dict[str, float]:
    """All, and of those between cores how many leave their tile and their chip."""
    cores = np.arange(len(placement.cores))
    tiles = cores // placement.chip.value("chip.cores_per_tile", 1)
    chips = np.array([placement.chip_of(core) for core in range(len(cores))])
    between = traffic[:-1]
    return {
        "all": float(traffic.sum()),
        "from the host": float(traffic[-1].sum()),
        "to another tile": float(between[tiles[:, None] != tiles].sum()),
        "to another chip": float(between[chips[:, None] != chips].sum()),
    }


def _published(placement: Placement, counts: Counts, messages: dict[str, float]) -> dict[str, Any] | None:
    """Microjoules and microseconds, least and most; None for a chip of which one of them is not known."""
    chip = placement.chip
    if any(chip.value(key) is None for key in PUBLISHED):
        return None
    cores = min(len(placement.cores), chip.value("chip.cores", len(placement.cores)))
    tiles = ceil(cores / chip.value("chip.cores_per_tile", 1))
    farthest = max(1, 2 * isqrt(tiles - 1))  # corner to corner of a square that holds them
    hop = chip.value("energy.tile_hop_pj")
    events: dict[str, tuple[float, Range]] = {
        "synaptic operations": (counts.synaptic_operations, chip.value("energy.synaptic_operation_pj")),
        "neuron updates": (counts.neuron_updates, chip.value("energy.neuron_update_pj")),
        "spikes inside tiles": (messages["all"], chip.value("energy.spike_in_tile_pj")),
        "hops between tiles": (messages["to another tile"], (hop[0], hop[1] * farthest)),
    }
    energy = {
        name: [number * each * 1e-6 for each in (least, most)] for name, (number, (least, most)) in events.items()
    }
    time = [_microseconds(placement, counts, end) for end in (0, 1)]
    static = chip.value("energy.static_mw") * placement.chips * 1e-3
    return {
        "label": chip.value("energy.label"),
        "source": chip["energy.label"].source,
        "dynamic energy, uJ": energy | {"all dynamic": [sum(of[end] for of in energy.values()) for end in (0, 1)]},
        "static energy, uJ": [static * each for each in time],
        "time, us": time,
    }


def _microseconds(placement: Placement, counts: Counts, end: int) -> float:
    chip = placement.chip
    synop, update, barrier = (
        chip.value(f"time.{event}_ns")[end] for event in ("synaptic_operation", "neuron_update", "barrier")
    )
    neurons = np.array([core.load.neurons for core in placement.cores])
    busiest = (counts.operations_of_cores * synop + neurons * update).max(axis=2)
    return float((busiest + barrier).sum() / counts.samples * 1e-3)


def _dense(network: IntegerNetwork, counts: Counts) -> dict[str, Any]:
    """The usual comparison: one pass of the same layers of ReLUs, or as many as steps where there is a cycle."""
    place = {name: number for number, name in enumerate((INPUT, *network.order))}
    cyclic = any(place[c.source] >= place[c.target] for c in network.connections)
    passes = counts.steps if cyclic else 1
    weights = passes * sum(_applied(network, connection) for connection in network.connections)
    additions = counts.synaptic_operations - counts.of_graded
    return {
        "multiply-adds": weights,
        "energy, uJ": weights * (MULTIPLY_PJ + ADD_PJ) * 1e-6,
        "spiking energy, uJ": (additions * ADD_PJ + counts.of_graded * (MULTIPLY_PJ + ADD_PJ)) * 1e-6,
        "caveat": CAVEAT,
    }


def _applied(network: IntegerNetwork, connection: Connection) -> int:
    """Weights times the places where each is used; padding counts, as it usually does."""
    if not connection.is_conv:
        return int(connection.weight.size)
    return int(connection.weight.size * np.prod(network.shape_of(connection.target)[1:]))


def _blocks(fires: np.ndarray) -> int:
    return max(1, min(len(fires), -(-fires.size // CHUNK)))
