"""Finds the claims of a certificate: the tightest intervals that a step leaves as they are, in closed form.

From 0 on, x' = trunc(x (4096 - d) / 4096) + A with a drive A > 0 climbs to its least fixed point, the least x for which
ceil(x d / 4096) = A, and no drive of at most A at any step gets beyond it:

    x = floor((A - 1) 4096 / d) + 1

A current is held between that of its strongest drive and that of its weakest. So is a voltage, as long as it stays
below the threshold; past it the reset decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from quantize import arithmetic as rules
from quantize.bounds.intervals import (
    BEYOND_WRAP,
    LIMITS,
    NO_LIMITS,
    UNBOUNDED,
    WRAPPED_ONCE,
    Claim,
    Claims,
    Limits,
    Reached,
    activations,
    anything,
    bias_of,
    contains,
    lost,
    quantities,
    rate_limits,
    reached,
    spacing_of,
    threshold_of,
)
from quantize.integer_network import IntegerNetwork

ROUNDS = 4  # at most, in which what is known of all neurons tells more of each


def find(network: IntegerNetwork, steps: int | None) -> tuple[dict[str, Claim], dict[str, Reached]]:
    """Claims that hold together, for samples of so many steps or any number, and what each population reaches."""
    claims = {population.name: anything(population) for population in network.populations}
    found: dict[str, Reached] = {}
    for _ in range(ROUNDS):
        before = dict(claims)
        for name in network.order:
            claims[name], found[name] = _claim(network, name, claims, steps)
        if all(_same(before[name], claim) for name, claim in claims.items()) or all_inside(network, found):
            break
    return claims, found


def _claim(network: IntegerNetwork, name: str, claims: Claims, steps: int | None) -> tuple[Claim, Reached]:
    population = network[name]
    if not population.spiking:
        return claims[name], reached(network, name, claims, steps)
    if steps is None:
        activation = activations(network, name, claims)
        claim = _invariant(network, name, claims[name], activation, NO_LIMITS)
        found = reached(network, name, {**claims, name: claim}, None)
        if not found.inside("v").all():
            limits = rate_limits(network, name, claims, None)
            claim = _invariant(network, name, claims[name], activation, limits)
            found = reached(network, name, {**claims, name: claim}, None)
    else:
        found = reached(network, name, claims, steps)
        claim = replace(claims[name], u=found.after[0], v=found.after[1])
    return replace(claim, spacing=spacing_of(network, name, found, claim)), found


def _invariant(network: IntegerNetwork, name: str, before: Claim, activation: np.ndarray, limits: Limits) -> Claim:
    """The claim before, with the intervals of u and v that a step leaves as they are."""
    population, (of_rates, lowest) = network[name], limits
    lost_u, lost_v = lost(population)
    u = invariant_u(activation, lost_u)
    u = np.stack([np.maximum(u[0], of_rates[0]), np.minimum(u[1], of_rates[1])])
    stays = contains(np.array(LIMITS["u"]), u)
    once = np.abs(activation).max(axis=0) << rules.STATE_SHIFT <= WRAPPED_ONCE - rules.STATE_LIMIT
    widest = np.where(once, rules.STATE_LIMIT, BEYOND_WRAP)
    u = np.where(stays, u, np.stack([-widest, widest]))
    drive = u + bias_of(network, name)
    v, _ = invariant_v(drive, lost_v, threshold_of(population), population.reset, population.floor)
    v[0] = np.where(stays, np.maximum(v[0], lowest), v[0])
    return replace(before, u=u, v=rules.saturate_voltage(v))


def _same(a: Claim, b: Claim) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def all_inside(network: IntegerNetwork, found: Mapping[str, Reached]) -> bool:
    """Whether every register holds all that is reached."""
    return all(found[p.name].inside(quantity).all() for p in network.populations for quantity in quantities(p))


def climbed(drive: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """The highest that a state gets under drives of at most `drive`, losing `lost` 4096ths per step, from 0 on."""
    bounded = (drive - 1) * rules.DECAY_UNITY // np.maximum(lost, 1) + 1
    return np.asarray(np.where(drive > 0, np.where(lost > 0, bounded, UNBOUNDED), 0))


def invariant_u(activation: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """The interval [2, ...] in which u stays, if nothing wraps, for activations within one."""
    return _settled(activation << rules.STATE_SHIFT, lost)


def _settled(drive: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """The interval [2, ...] in which a state stays under drives within one."""
    outwards = np.array([-1, 1]).reshape(2, *[1] * (drive.ndim - 1))
    return outwards * climbed(outwards * drive, lost)


def invariant_v(
    drive: np.ndarray, lost: np.ndarray, threshold: np.ndarray, reset: str, floor: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The intervals [2, ...] in which v stays, after the reset and before it, if nothing saturates, for u + bias within
    `drive`."""
    low, high = _settled(drive, lost)

    def kept(v: np.ndarray) -> np.ndarray:
        return rules.truncate_toward_zero(np.minimum(v, UNBOUNDED) * (rules.DECAY_UNITY - lost))

    fires = high > threshold
    hard, late = reset.startswith("hard"), rules.is_late(reset)
    below = np.minimum(high, threshold)
    most = np.where(fires, kept(below) + drive[1], high)  # what one step makes of a voltage that did not spike
    if hard:
        after = most if late else below
    else:
        beyond = climbed(drive[1] - threshold, lost)  # left behind by a reset at every step
        after = np.maximum(most if late else below, np.where(fires, beyond, 0))
        most = np.maximum(most, np.where(fires, beyond if late else beyond + threshold, 0))
    if late and not hard:
        low = np.where(fires, np.minimum(low, kept(threshold + 1) + drive[0] - threshold), low)
    least = low
    if floor:
        low, least = np.zeros_like(low), np.zeros_like(low)
    return np.stack([low, after]), np.stack([least, most])
