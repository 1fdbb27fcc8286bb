"""All that is told of a network on a chip, JSON-ready: rules, placement, traffic, cost, whether parts fire alike."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from deploy.chip.cost import cost, count
from deploy.chip.findings import ERROR, DoesNotFit
from deploy.chip.limits import Chip
from deploy.chip.placement import Demand, Placement, least_cores, place
from deploy.chip.rules import check, check_placement
from deploy.chip.split import can_be_split, split
from deploy.verify import compare
from quantize import engine
from quantize.integer_network import IntegerNetwork
from quantize.recording import Recording

SPLIT_SAMPLES = 4  # on which the network of the parts runs beside the whole one


def summary(
    network: IntegerNetwork, chip: Chip, recording: Recording | None = None, inputs: np.ndarray | None = None
) -> dict[str, Any]:
    """The numbers of `chip.json`. With a recording and its inputs [T, B, *input_shape] also what an inference costs and
    whether the parts fire what the recording holds; both are None otherwise, as is the placement where there is none,
    and the latter where relays would be too large.
    """
    findings, placement = check(network, chip), None
    try:
        placement = place(network, chip)
        findings += check_placement(placement)
    except DoesNotFit as refused:
        findings += [found for found in refused.findings if found not in findings]
    told: dict[str, Any] = {
        "chip": chip.name,
        "fits": not any(found.severity == ERROR for found in findings),
        "rules": [asdict(found) for found in findings],
        "placement": None,
        "cost": None,
        "split": None,
    }
    if placement is None:
        return told
    told["placement"] = _placement(network, placement)
    if recording is not None and inputs is not None:
        counts = count(network, placement, recording, inputs)
        told["cost"] = cost(network, placement, counts)
        told["placement"]["messages"] = _pairs(counts.traffic)
        if can_be_split(network, placement):
            told["split"] = _split(network, placement, recording, inputs[:, :SPLIT_SAMPLES])
    return told


def _placement(network: IntegerNetwork, placement: Placement) -> dict[str, Any]:
    chip = placement.chip
    return {
        "cores": len(placement.cores),
        "least_cores": least_cores(network, chip),
        "chips": placement.chips,
        "populations": [
            {"population": name, "neurons": network[name].size, "parts": len(placement.parts[name])}
            for name in network.order
        ],
        "utilisation": [
            {
                "core": number,
                "chip": placement.chip_of(number),
                "parts": [
                    {"population": part.population, "region": part.region, "neurons": part.size} for part in core.parts
                ],
                "counts": core.load.counts,
                "shares": core.load.shares(chip),
            }
            for number, core in enumerate(placement.cores)
        ],
        "axons": _pairs(_axons(network, placement)),
    }


def _axons(network: IntegerNetwork, placement: Placement) -> np.ndarray:
    """Axons from each core to each core."""
    demand = Demand(network, placement.chip)
    axons = np.zeros((len(placement.cores),) * 2, int)
    for connection in network.connections:
        if connection.source in placement.parts:
            for source, sending in placement.parts[connection.source]:
                for target, receiving in placement.parts[connection.target]:
                    axons[source, target] += demand.axons_of(connection, sending, receiving)
    return axons


def _pairs(traffic: np.ndarray) -> list[list[float]]:
    """From, to and how much, of whatever is not zero; what is behind the last core is the host."""
    return [[int(source), int(target), traffic[source, target].item()] for source, target in np.argwhere(traffic)]


def _split(network: IntegerNetwork, placement: Placement, recording: Recording, inputs: np.ndarray) -> dict[str, Any]:
    """The comparison of the network of the parts, run by the engine, with the first samples of the recording."""
    ran = engine.run(split(network, placement), inputs)
    samples = inputs.shape[1]
    whole = replace(
        recording,
        inputs=ran.inputs,
        spikes={name: spikes[:, :samples] for name, spikes in recording.spikes.items()},
        u={},
        v={},
    )
    parts = replace(ran, backend="parts", network=recording.network, spikes={n: ran.spikes[n] for n in network.order})
    return compare(whole, parts, network.order).to_json()
