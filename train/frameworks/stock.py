"""A network with neurons that stock Lava has: hard reset at once, no floor, the same decays for a whole population.

What an exact import may have beside these runs in Lava on a process of this project. Conversion keeps all weights and
changes spikes; how many, and what that costs, is to be measured, and training further may win it back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from base.differences import Difference
from train.network import SpikingNetwork
from train.neurons import LIF

CONSEQUENCE = "not exact: spikes differ"


def as_stock(
    network: SpikingNetwork, differences: Iterable[Difference] = ()
) -> tuple[SpikingNetwork, list[Difference]]:
    """A copy of the network with such neurons, whose decays are constants; and the differences of its import with what
    was changed since, unchanged where all neurons are so already."""
    network = copy.deepcopy(network)
    rows = {(row.population, row.what): row for row in differences}
    made: dict[nn.Module | None, LIF] = {}
    for name, lif in network.neurons.items():
        for what, before, ours, changed in (
            ("reset", lif.reset, "hard", lif.reset != "hard"),
            ("floor", "at 0", "none", lif.floor),
            ("decays", "one for each neuron", "their mean", _varies(lif.beta) or _varies(lif.alpha)),
        ):
            if changed:
                theirs = rows[name, what].theirs if (name, what) in rows else before
                rows[name, what] = Difference(name, what, theirs, ours, CONSEQUENCE)
                made[lif] = _stock(lif)
    for name, part in list(network.named_modules()):
        if part in made:
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, made[part])
    network.stages = tuple(replace(stage, neuron=made.get(stage.neuron, stage.neuron)) for stage in network.stages)
    return network, list(rows.values())


def _stock(lif: LIF) -> LIF:
    """KLIF's k, which multiplies everything that enters a voltage, divides the threshold instead."""
    k = 1.0 if lif.k is None else lif.k.item()
    return LIF(
        _mean(lif.beta),
        _mean(lif.alpha),
        lif.threshold / k,
        surrogate=lif.surrogate,
        width=_mean(lif.width) / k,
        width_by=lif.width_by,
        mask=lif.mask,
        rescale=lif.rescale,
        detach_reset=lif.detach_reset,
    )


def _mean(share: float | torch.Tensor) -> float:
    return float(torch.as_tensor(share, dtype=torch.float64).detach().mean())


def _varies(share: float | torch.Tensor) -> bool:
    share = torch.as_tensor(share).detach()
    return bool((share != share.reshape(-1)[0]).any())
