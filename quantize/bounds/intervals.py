"""What one step makes of intervals, for every neuron by itself, in whole numbers rounded outwards.

Intervals are int64 [2, *shape]: the least and the largest. Every rule of docs/arithmetic.md is monotone in the
activation, u and v, so the ends of an interval, stepped by the rule itself, are the ends of what comes of it. A claim
about all steps is proven by induction over them: if it holds before a step it holds after it.

Neurons that cannot spike twice in `spacing` steps send in any n steps at most 1 + n / spacing spikes, a burst and a
rate. What a leaky state makes of these, whose response h to a spike rises once and falls once, is at most
max h + sum h / spacing: 1 + f / spacing in u, and f min(1, g / f) + f g / spacing in v, for
f = 4096 / (decay_u + 1) and g = 4096 / decay_v. Where states leak slowly that is far less than spikes at every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from quantize import arithmetic as rules
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population
from quantize.reference import activation as activated

LIMITS = {
    "activation": (-(1 << (rules.ACTIVATION_BITS - 1)), (1 << (rules.ACTIVATION_BITS - 1)) - 1),
    "u": (1 - rules.STATE_LIMIT, rules.STATE_LIMIT),
    "v": (1 - rules.STATE_LIMIT, rules.STATE_LIMIT - 1),
}
STATE_UNIT = 1 << rules.STATE_SHIFT
UNBOUNDED = 1 << 42  # no state's bound that is known comes near it; a decay's product with it stays below 2^63
NEVER = 1 << 20  # the spacing of neurons that never spike
SPACING_MAX = 64  # no larger one is looked for
WRAPPED_ONCE = 3 * rules.STATE_LIMIT  # what one wrap brings back into 24 bits
BEYOND_WRAP = 1 << 31  # the 32 bits that hold every current, as the network itself makes sure
NO_LIMITS = (np.array([-UNBOUNDED, UNBOUNDED]), np.array(-UNBOUNDED))
RATE_BITS, EXPONENT_BITS = 12, -rules.EXPONENT_MIN


@dataclass(frozen=True, eq=False)
class Claim:
    """Of one population after every step: u and v after the reset, [2, *shape] each, and the least steps from one spike
    to the next [*shape], NEVER where there are none. Of a readout u and v are 0, and spacing means nothing."""

    u: np.ndarray
    v: np.ndarray
    spacing: np.ndarray


@dataclass(frozen=True, eq=False)
class Reached:
    """What a population can reach, [2, *shape] each: the activation, u before it wraps and v before it saturates, the
    latter two as long as no step before has; and u and v after the step, wrapped, saturated and reset."""

    activation: np.ndarray
    u: np.ndarray
    v: np.ndarray
    after: tuple[np.ndarray, np.ndarray]

    def inside(self, quantity: str) -> np.ndarray:
        """Whether a quantity stays in its register, bool [*shape]; a voltage only where its current does."""
        least, most = LIMITS[quantity]
        low, high = getattr(self, quantity)
        stays = np.asarray((low >= least) & (high <= most))
        return stays & self.inside("u") if quantity == "v" else stays


Claims = Mapping[str, Claim]
Limits = tuple[np.ndarray, np.ndarray]  # of u, least and largest [2, ...], and of v on the low side


def quantities(population: Population) -> tuple[str, ...]:
    """What of a population has a register."""
    return ("activation", "u", "v") if population.spiking else ("activation",)


def anything(population: Population) -> Claim:
    """The claim that holds of any neurons: u stays in 32 bits, v in 24."""
    ones = np.ones(population.shape, np.int64)
    if not population.spiking:
        return Claim(np.stack([ones * 0] * 2), np.stack([ones * 0] * 2), ones)
    u, v = (np.stack([-limit * ones, limit * ones]) for limit in (BEYOND_WRAP, rules.STATE_LIMIT - 1))
    return Claim(u, v, ones)


def bias_of(network: IntegerNetwork, name: str) -> np.ndarray:
    """The interval of a population's bias, in state units; of an input that is the bias, all that it may be."""
    population = network[name]
    bias = np.stack([np.broadcast_to(population.bias, population.shape)] * 2)
    if name == network.input_is_bias_of:
        half = 1 << (rules.BIAS_BITS - 1)
        bias[0], bias[1] = -half << population.bias_exp, (half - 1) << population.bias_exp
    return bias


def activations(network: IntegerNetwork, name: str, claims: Claims) -> np.ndarray:
    """All activations that sources can make which spike as they please, but for those that never do."""
    found = np.zeros((2, *network[name].shape), np.int64)
    for connection in network.into(name):
        sent = network.payload_max(connection.source) * (_spacing(network, connection.source, claims) < NEVER)
        found += [rules.shift(_sum(connection, sign, sent), connection.exponent) for sign in (-1, 1)]
    return found


def rate_limits(network: IntegerNetwork, name: str, claims: Claims, steps: int | None) -> Limits:
    """Bounds of u, as it would be if it never wrapped, and of v on the low side, from the rates of the sources."""
    population = network[name]
    burst, rate = np.zeros((2, 2, *population.shape), np.int64)
    for connection in network.into(name):
        spacing, payload = _spacing(network, connection.source, claims), network.payload_max(connection.source)
        spikes = spacing < NEVER
        bursts, rates = payload * ((spacing > 1) & spikes), spikes * -(-(payload << RATE_BITS) // spacing)
        up = connection.exponent + EXPONENT_BITS
        for end, sign in enumerate((-1, 1)):
            burst[end] += sign * _sum(connection, sign, bursts) << up
            rate[end] += sign * _sum(connection, sign, rates) << up
        if connection.exponent < 0:  # a negative sum is rounded away from zero, by less than 1 at every step
            rate[0] += 1 << (RATE_BITS + EXPONENT_BITS)
    lost_u, lost_v = lost(population)
    scale = 1 << (RATE_BITS + EXPONENT_BITS - rules.STATE_SHIFT)
    of_burst = -(-burst * STATE_UNIT >> EXPONENT_BITS)
    of_rate = -(-rate * rules.DECAY_UNITY // (lost_u * scale))
    u = np.stack([-of_burst[0] - of_rate[0], of_burst[1] + of_rate[1]])
    lower = -(-of_burst[0] * rules.DECAY_UNITY // np.maximum(lost_u, lost_v))
    lower += _summed_up(of_rate[0] + np.maximum(-bias_of(network, name)[0], 0), lost_v, steps)
    return u, -lower if population.reset != "soft-late" else np.full(population.shape, -UNBOUNDED)


def reached(network: IntegerNetwork, name: str, claims: Claims, steps: int | None) -> Reached:
    """What a population reaches if all claims hold before a step; of so many steps from zero on, if any are given,
    whatever its own claim says of u and v. Rates are looked at where nothing is proven without."""
    population, claim, activation = network[name], claims[name], activations(network, name, claims)
    if not population.spiking:
        return Reached(activation, claim.u, claim.u, (claim.u, claim.u))
    bias = bias_of(network, name)

    def bounded(limits: Limits) -> Reached:
        if steps is None:
            return _stepped(population, activation, bias, limits, claim.u, claim.v)
        return _stepped_often(population, activation, bias, limits, steps)

    found = bounded(NO_LIMITS)
    holds = steps is not None or (contains(claim.u, found.after[0]) & contains(claim.v, found.after[1])).all()
    return found if holds and found.inside("v").all() else bounded(rate_limits(network, name, claims, steps))


def spacing_of(network: IntegerNetwork, name: str, found: Reached, claim: Claim) -> np.ndarray:
    """The least steps between two spikes of each neuron [*shape], if u stays in the claim and v where it was found."""
    population = network[name]
    hard, late = population.reset.startswith("hard"), rules.is_late(population.reset)
    threshold = threshold_of(population)
    driven = claim.u[1] + bias_of(network, name)[1]
    highest = rules.saturate_voltage(found.v[1])
    v = np.zeros(population.shape, np.int64) if hard else highest if late else highest - threshold
    spacing = np.full(population.shape, SPACING_MAX)
    for step in range(1, SPACING_MAX):
        v = rules.truncate_toward_zero(v * _kept(population)[1]) + driven
        if late and step == 1:
            v = np.zeros_like(v) if hard else v - threshold
        if population.floor:
            v = np.maximum(v, 0)
        spacing = np.minimum(spacing, np.where(v > threshold, step, SPACING_MAX))
        if (spacing <= step).all():
            break
    return np.where(highest > threshold, spacing, NEVER)


def lost(population: Population) -> tuple[np.ndarray, np.ndarray]:
    """Shares of current and voltage that are lost per step, in 4096ths, int64 [*shape]."""
    lost = (population.decay_u + rules.CURRENT_DECAY_OFFSET, population.decay_v)
    u, v = (np.broadcast_to(share.astype(np.int64), population.shape) for share in lost)
    return u, v


def threshold_of(population: Population) -> np.ndarray:
    """The threshold in state units, int64 [*shape]."""
    return np.broadcast_to(population.threshold_mant.astype(np.int64) << rules.STATE_SHIFT, population.shape)


def hull(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The interval over both."""
    return np.stack([np.minimum(a[0], b[0]), np.maximum(a[1], b[1])])


def contains(outer: np.ndarray | tuple[int, int], inner: np.ndarray) -> np.ndarray:
    """Whether one interval lies in the other, bool [*shape]."""
    return np.asarray((outer[0] <= inner[0]) & (inner[1] <= outer[1]))


def _stepped(
    population: Population,
    activation: np.ndarray,
    bias: np.ndarray,
    limits: Limits,
    u: np.ndarray,
    v: np.ndarray,
) -> Reached:
    keep_u, keep_v = _kept(population)
    threshold = threshold_of(population)
    hard, late = population.reset.startswith("hard"), rules.is_late(population.reset)
    current = rules.truncate_toward_zero(u * keep_u) + (activation << rules.STATE_SHIFT)
    of_rates, lowest = limits
    tighter = np.stack([np.maximum(current[0], of_rates[0]), np.minimum(current[1], of_rates[1])])
    stays = contains(LIMITS["u"], tighter)
    current = np.where(stays, tighter, current)  # what rates tell holds of currents that never wrapped
    widest = np.where(np.abs(current).max(axis=0) <= WRAPPED_ONCE, rules.STATE_LIMIT, BEYOND_WRAP)
    wrapped = np.where(stays, current, np.stack([-widest, widest]))

    driven = wrapped + bias
    resting, firing = v[0] <= threshold, v[1] > threshold
    voltage = rules.truncate_toward_zero(v * keep_v) + driven
    if late:
        rested = rules.truncate_toward_zero(np.stack([v[0], np.minimum(v[1], threshold)]) * keep_v) + driven
        if hard:
            fired = np.zeros_like(voltage)
        else:
            above = np.stack([np.maximum(v[0], threshold + 1), v[1]])
            fired = rules.truncate_toward_zero(above * keep_v) + driven - threshold
        voltage = _of_both(resting, rested, firing, fired)
    if population.floor:
        voltage = np.maximum(voltage, 0)
    voltage[0] = np.where(stays, np.maximum(voltage[0], lowest), voltage[0])
    after = rules.saturate_voltage(voltage)
    if not late:
        rested = np.stack([after[0], np.minimum(after[1], threshold)])
        fired = np.maximum(after, threshold + 1) - threshold
        resting, firing = after[0] <= threshold, after[1] > threshold
        after = _of_both(resting, rested, firing, np.zeros_like(fired) if hard else fired)
    return Reached(activation, current, voltage, (wrapped, after))


def _stepped_often(
    population: Population, activation: np.ndarray, bias: np.ndarray, limits: Limits, steps: int
) -> Reached:
    u = v = np.zeros_like(activation)
    every = _stepped(population, activation, bias, limits, u, v)
    every = replace(every, after=(hull(u, every.after[0]), hull(v, every.after[1])))
    u, v = every.after
    for _ in range(steps - 1):
        found = _stepped(population, activation, bias, limits, u, v)
        every = Reached(
            activation,
            hull(every.u, found.u),
            hull(every.v, found.v),
            (hull(every.after[0], found.after[0]), hull(every.after[1], found.after[1])),
        )
        if all(map(np.array_equal, every.after, (u, v))):
            break
        u, v = every.after
    return every


def _of_both(resting: np.ndarray, rested: np.ndarray, firing: np.ndarray, fired: np.ndarray) -> np.ndarray:
    """The interval of what may rest, may fire, or either."""
    return np.where(resting & firing, hull(rested, fired), np.where(resting, rested, fired))


def _sum(connection: Connection, sign: int, values: np.ndarray) -> np.ndarray:
    """The unshifted sum of the weights of one sign over values [*source], int64 [*target]."""
    weight = connection.weight.clip(min=0) if sign > 0 else connection.weight.clip(max=0)
    return activated(replace(connection, weight=weight, exponent=0), values[None])[0]


def _spacing(network: IntegerNetwork, source: str, claims: Claims) -> np.ndarray:
    return np.ones(network.input_shape, np.int64) if source == INPUT else claims[source].spacing


def _kept(population: Population) -> tuple[np.ndarray, np.ndarray]:
    u, v = lost(population)
    return rules.DECAY_UNITY - u, rules.DECAY_UNITY - v


def _summed_up(drive: np.ndarray, lost: np.ndarray, steps: int | None) -> np.ndarray:
    """What a drive at every step adds up to at most, in a state that loses so many 4096ths per step."""
    leaking = np.where(lost > 0, -(-drive * rules.DECAY_UNITY // np.maximum(lost, 1)), (drive > 0) * UNBOUNDED)
    return np.asarray(leaking if steps is None else np.minimum(leaking, drive * steps))
