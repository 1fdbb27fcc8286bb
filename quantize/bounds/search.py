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
from numba import njit

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

(U_LEAST, U_MOST), (V_LEAST, V_MOST) = LIMITS["u"], LIMITS["v"]
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
    stays = contains(LIMITS["u"], u)
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


def invariant_u(activation: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """The interval [2, ...] in which u stays, if nothing wraps, for activations within one."""
    each = _each(activation << rules.STATE_SHIFT, lost)
    _settle(each.reshape(3, -1))
    return each[:2]


def invariant_v(
    drive: np.ndarray, lost: np.ndarray, threshold: np.ndarray, reset: str, floor: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The intervals [2, ...] in which v stays, after the reset and before it, if nothing saturates, for u + bias within
    `drive`."""
    each = _each(drive, lost, threshold)
    _hold(each.reshape(4, -1), reset.startswith("hard"), rules.is_late(reset), floor)
    return each[:2], each[2:]


def _each(drive: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """Drives [2, ...] and all else there is to know of each neuron, int64 [2 + others, ...]."""
    each = np.empty((2 + len(others), *np.broadcast(drive[0], *others).shape), np.int64)
    for place, values in enumerate((*drive, *others)):
        each[place] = values
    return each


@njit(cache=True)
def _climbed(drive, lost):  # type: ignore[no-untyped-def]
    """The highest that a state gets under drives of at most `drive`, losing `lost` 4096ths per step, from 0 on."""
    if drive <= 0:
        return 0
    return (drive - 1) * rules.DECAY_UNITY // lost + 1 if lost > 0 else UNBOUNDED


@njit(cache=True)
def _settle(each):  # type: ignore[no-untyped-def]
    """Where least and most are the drives, the interval in which a state stays takes their place."""
    least, most, lost = each
    for i in range(len(lost)):
        least[i], most[i] = -_climbed(-least[i], lost[i]), _climbed(most[i], lost[i])


@njit(cache=True)
def _hold(each, hard, late, floor):  # type: ignore[no-untyped-def]
    """In the place of drives, lost and threshold come the least of v and the most after the reset, and both before."""
    for i in range(each.shape[1]):
        least, most, lost, threshold = each[:, i]
        low, after, high = _voltages(least, most, lost, threshold, hard, late, floor)
        each[0, i], each[1, i], each[2, i], each[3, i] = low, after, low, high


@njit(cache=True)
def _voltages(least, most, lost, threshold, hard, late, floor):  # type: ignore[no-untyped-def]
    """Under drives of least to most: the least of v, the most after the reset and the most before it."""
    kept = rules.DECAY_UNITY - lost
    low, high = -_climbed(-least, lost), _climbed(most, lost)
    after = high
    if high > threshold:
        high = threshold * kept // rules.DECAY_UNITY + most  # what one step makes of a v that did not spike
        after = high if late else threshold
        if not hard:
            beyond = _climbed(most - threshold, lost)  # left behind by a reset at every step
            after, high = max(after, beyond), max(high, beyond if late else beyond + threshold)
            if late:
                low = min(low, (threshold + 1) * kept // rules.DECAY_UNITY + least - threshold)
    return 0 if floor else low, after, high


@njit(cache=True)
def stays_inside(  # type: ignore[no-untyped-def]
    currents, least_bias, most_bias, lost_u, lost_v, threshold, hard, late, floor
):  # fmt: skip
    """Whether registers hold u, and whether they hold u and v, as `invariant_u` and `invariant_v` find them, where what
    arrives in u, [2, 1] or [2, O] in state units, and the bias are within intervals. All else is [1], [O] or [M]."""
    arriving, inside = currents.shape[1], True
    count = max(arriving, len(least_bias), len(lost_u), len(lost_v), len(threshold))
    for i in range(count):
        row, own, bias = i * arriving // count, lost_u[i * len(lost_u) // count], i * len(least_bias) // count
        least, most = -_climbed(-currents[0, row], own), _climbed(currents[1, row], own)
        if least < U_LEAST or most > U_MOST:
            return False, False
        least, most = least + least_bias[bias], most + most_bias[bias]
        own, level = lost_v[i * len(lost_v) // count], threshold[i * len(threshold) // count]
        low, _, high = _voltages(least, most, own, level, hard, late, floor)
        inside = inside and low >= V_LEAST and high <= V_MOST
    return True, inside
