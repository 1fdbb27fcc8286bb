"""What another implementation may have got wrong: departures from the contract, each named, as a table.

A departure replaces one rule of `quantize/arithmetic.py` or of the time it is kept in. `run` simulates one sample under
it; `verify.explain` names the departures whose run reproduces, to the last bit, what a backend recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from base.errors import UserError
from deploy.lava.graph import lags
from quantize import reference
from quantize.arithmetic import (
    DECAY_BITS,
    DECAY_UNITY,
    LOIHI_LIF_V1,
    STATE_LIMIT,
    STATE_SHIFT,
    Rules,
    conv_sum,
    dense_sum,
    is_late,
    lif_step,
    readout_current,
    shift,
    truncate_toward_zero,
)
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population
from quantize.recording import Recording, hash_of


@dataclass(frozen=True)
class Departure:
    """One rule changed, all others as in the contract; `text` says the change as a finding about the side that made it.

    `current` holds the rules of u, `voltage` those of v and the spike; `neuron` gives arguments of `lif_step` that
    differ; `late(lag)` is by how many steps a population's recording is late that lags so far in Lava; with `early`,
    one that lags k steps runs k steps before its window, as in Lava without a reset; with `uncleared`, samples run on
    into each other.
    """

    text: str
    current: Rules = LOIHI_LIF_V1
    voltage: Rules = LOIHI_LIF_V1
    neuron: Callable[[Population], dict[str, Any]] = lambda population: {}
    activation: Callable[[Connection, np.ndarray], np.ndarray] = reference.activation
    inputs: Callable[[np.ndarray], np.ndarray] = lambda inputs: inputs
    extra_delay: int = 0
    drives_with_last_current: bool = False
    biases_current: bool = False
    clears_current: bool = False
    early: bool = False
    late: Callable[[int], int] = lambda lag: 0
    uncleared: bool = False


CONTRACT = Departure("")


def run(
    departure: Departure, network: IntegerNetwork, inputs: np.ndarray, sample: int, only: str | None = None
) -> Recording:
    """Run one sample of inputs [T, B, *input_shape] under a departure, in the population `only` or in all.

    Returns spikes, u and v [T, 1, *shape] of every population.
    """
    lag_of = _lags(network)
    window, lead = len(inputs), max(lag_of.values())
    first = 0 if departure.uncleared else sample
    stream = departure.inputs(inputs[:, first : sample + 1]).swapaxes(0, 1).reshape(-1, 1, *network.input_shape)
    steps = lead + len(stream)
    rule_of = {name: departure if only in (None, name) else CONTRACT for name in network.order}
    emitted = {p.name: np.zeros((steps, 1, *p.shape), np.uint8 if p.spiking else np.int32) for p in network.populations}
    u = {p.name: np.zeros((steps, 1, *p.shape), np.int64) for p in network.populations if p.spiking}
    v = {name: np.zeros(trace.shape, np.int64) for name, trace in u.items()}
    sources = {INPUT: np.concatenate([np.zeros((lead, *stream.shape[1:]), stream.dtype), stream]), **emitted}
    for t in range(steps):
        for name, rule in rule_of.items():
            if t < lead - (lag_of[name] if rule.early else 0):
                continue
            population = network.with_bias(name, sources[INPUT][t, 0])
            total = np.zeros((1, *population.shape), np.int64)
            for connection in network.into(name):
                delay = connection.delay + (rule.extra_delay if connection.delay else 0)
                if t >= delay:
                    total += rule.activation(connection, sources[connection.source][t - delay])
            if not population.spiking:
                emitted[name][t] = readout_current(total, _terms(population, **rule.neuron(population))["bias"])
                continue
            u[name][t], v[name][t], emitted[name][t] = _step(rule, population, u[name][t - 1], v[name][t - 1], total)
    recorded = {
        name: slice(steps - window - lag, steps - lag)
        for name, rule in rule_of.items()
        for lag in [rule.late(lag_of[name])]
    }
    return Recording(
        departure.text,
        network.hash,
        hash_of(inputs[:, sample : sample + 1]),
        {name: trace[recorded[name]] for name, trace in emitted.items()},
        {name: trace[recorded[name]].astype(np.int32) for name, trace in u.items()},
        {name: trace[recorded[name]].astype(np.int32) for name, trace in v.items()},
    )


def _lags(network: IntegerNetwork) -> dict[str, int]:
    """By how many steps each population lags in Lava; not at all in a network that Lava cannot run."""
    try:
        return lags(network)
    except UserError:
        return dict.fromkeys(network.order, 0)


def voltage_before_reset(population: Population, u: np.ndarray, v_before: np.ndarray) -> np.ndarray:
    """What the contract compares with the threshold, int64 [..., *shape], from u of this step and v after the last."""
    never = replace(LOIHI_LIF_V1, fires=lambda v, threshold: np.zeros(v.shape, bool))
    rules = LOIHI_LIF_V1 if is_late(population.reset) else never
    zero = np.zeros_like(u, np.int64)
    return lif_step(zero, v_before, zero, rules=rules, **_terms(population, bias=population.bias + u))[1]


def _step(
    rule: Departure, population: Population, u: np.ndarray, v: np.ndarray, total: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The step in two halves, so that u and v can obey different rules: the second takes u as part of the bias."""
    terms = _terms(population, **rule.neuron(population))
    current, _, _ = lif_step(u, v, total, rules=rule.current, **terms)
    drive = u if rule.drives_with_last_current else current
    if rule.biases_current:
        drive = current = current + terms.pop("bias")
    terms["bias"] = terms.get("bias", 0) + drive
    zero = np.zeros_like(current)
    _, v, spikes = lif_step(zero, v, zero, rules=rule.voltage, **terms)
    return np.where(spikes, 0, current) if rule.clears_current else current, v, spikes


def _terms(population: Population, **changed: Any) -> dict[str, Any]:
    names = ("decay_u", "decay_v", "threshold_mant", "bias", "reset", "floor")
    return {name: getattr(population, name) for name in names} | changed


def _weighted(connection: Connection, spikes: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The connection's sum with other weights of the same shape, not yet shifted by the exponent."""
    if not connection.is_conv:
        return dense_sum(spikes, weight)
    geometry = {name: getattr(connection, name) for name in ("stride", "padding", "dilation", "groups")}
    return conv_sum(spikes, weight, **geometry)


def _exponent_ignored(connection: Connection, spikes: np.ndarray) -> np.ndarray:
    return _weighted(connection, spikes, connection.weight)


def _each_weight_shifted(connection: Connection, spikes: np.ndarray) -> np.ndarray:
    return _weighted(connection, spikes, shift(connection.weight.astype(np.int64), connection.exponent))


def _shift_truncates(connection: Connection, spikes: np.ndarray) -> np.ndarray:
    total = _weighted(connection, spikes, connection.weight)
    return np.sign(total) * shift(np.abs(total), connection.exponent)


def _weights_halved(connection: Connection, spikes: np.ndarray) -> np.ndarray:
    return shift(_weighted(connection, spikes, connection.weight >> 1), connection.exponent)


def _weights_overflow(connection: Connection, spikes: np.ndarray) -> np.ndarray:
    return shift(_weighted(connection, spikes, connection.weight.astype(np.int8)), connection.exponent)


def _off_the_grid(moved: Callable[[np.ndarray], np.ndarray]) -> Callable[[Connection, np.ndarray], np.ndarray]:
    def activation(connection: Connection, spikes: np.ndarray) -> np.ndarray:
        return shift(_weighted(connection, spikes, moved(connection.weight)), connection.exponent)

    return activation


def _kernels_flipped(connection: Connection, spikes: np.ndarray) -> np.ndarray:
    weight = connection.weight[..., ::-1, ::-1] if connection.is_conv else connection.weight
    return shift(_weighted(connection, spikes, weight), connection.exponent)


def _channels_last(connection: Connection, spikes: np.ndarray) -> np.ndarray:
    return reference.activation(connection, spikes if connection.is_conv else np.moveaxis(spikes, 1, -1))


def _shifted(inputs: np.ndarray, late: int) -> np.ndarray:
    """inputs [T, ...] moved along time, with silence where nothing is known."""
    moved = np.roll(inputs, late, axis=0)
    moved[slice(None, late) if late > 0 else slice(late, None)] = 0
    return moved


def _floor_rounds(product: np.ndarray) -> np.ndarray:
    return product >> DECAY_BITS


def _nearest_rounds(product: np.ndarray) -> np.ndarray:
    return (product + DECAY_UNITY // 2) >> DECAY_BITS


def _away_rounds(product: np.ndarray) -> np.ndarray:
    return np.sign(product) * ((np.abs(product) + DECAY_UNITY - 1) >> DECAY_BITS)


def _float32_rounds(product: np.ndarray) -> np.ndarray:
    return np.trunc(product.astype(np.float32) / np.float32(DECAY_UNITY)).astype(np.int64)


def _int32_rounds(product: np.ndarray) -> np.ndarray:
    return truncate_toward_zero(product.astype(np.int32).astype(np.int64))


def _twos_complement(state: np.ndarray) -> np.ndarray:
    return (state + STATE_LIMIT) % (2 * STATE_LIMIT) - STATE_LIMIT


def _unbounded(state: np.ndarray) -> np.ndarray:
    return state


def _decays_by(text: str, rounds: Callable[[np.ndarray], np.ndarray]) -> tuple[Departure, ...]:
    rules = replace(LOIHI_LIF_V1, truncate=rounds)
    return (
        Departure(f"the decay of u and v {text}", current=rules, voltage=rules),
        Departure(f"the decay of u {text}", current=rules),
        Departure(f"the decay of v {text}", voltage=rules),
    )


DEPARTURES: tuple[Departure, ...] = (
    Departure("threshold is compared with >= instead of >", voltage=replace(LOIHI_LIF_V1, fires=np.greater_equal)),
    *_decays_by("is rounded down instead of towards zero", _floor_rounds),
    *_decays_by("is rounded to nearest instead of towards zero", _nearest_rounds),
    *_decays_by("is rounded away from zero instead of towards it", _away_rounds),
    *_decays_by("is computed in float32, which cannot hold the product", _float32_rounds),
    *_decays_by("overflows 32 bits, which cannot hold the product", _int32_rounds),
    Departure("decay_u is used without its +1", current=replace(LOIHI_LIF_V1, current_decay_offset=0)),
    Departure("decay_v is used with a +1 as decay_u is", neuron=lambda p: {"decay_v": p.decay_v + 1}),
    Departure("u is not wrapped at 24 bits", current=replace(LOIHI_LIF_V1, wrap=_unbounded)),
    Departure(
        "u wraps as two's complement, which keeps -2^23, instead of into (-2^23, 2^23]",
        current=replace(LOIHI_LIF_V1, wrap=_twos_complement),
    ),
    Departure("u saturates instead of wrapping", current=replace(LOIHI_LIF_V1, wrap=LOIHI_LIF_V1.saturate)),
    Departure("v is not saturated at 24 bits", voltage=replace(LOIHI_LIF_V1, saturate=_unbounded)),
    Departure("v wraps instead of saturating", voltage=replace(LOIHI_LIF_V1, saturate=_twos_complement)),
    Departure("v takes up the current of the step before", drives_with_last_current=True),
    Departure("u is cleared too when a neuron fires", clears_current=True),
    Departure(
        "the reset is soft (minus the threshold) where the network says hard",
        neuron=lambda p: {"reset": p.reset.replace("hard", "soft")},
    ),
    Departure(
        "the reset is hard (to 0) where the network says soft",
        neuron=lambda p: {"reset": p.reset.replace("soft", "hard")},
    ),
    Departure(
        "the reset comes in the step after the spike where the network says at once",
        neuron=lambda p: {"reset": p.reset if is_late(p.reset) else f"{p.reset}-late"},
    ),
    Departure(
        "the reset comes at once where the network says in the step after the spike",
        neuron=lambda p: {"reset": p.reset.removesuffix("-late")},
    ),
    Departure("v has no floor at 0 where the network has one", neuron=lambda p: {"floor": False}),
    Departure("v has a floor at 0 where the network has none", neuron=lambda p: {"floor": True}),
    Departure("the bias is missing", neuron=lambda p: {"bias": np.zeros_like(p.bias)}),
    Departure("the bias is shifted by 6, as activations are", neuron=lambda p: {"bias": p.bias << STATE_SHIFT}),
    Departure("the bias exponent is ignored", neuron=lambda p: {"bias": p.bias_mant.astype(np.int64)}),
    Departure("the bias is added to u, which keeps a share of it, instead of to v", biases_current=True),
    Departure("the bias acts before a population's first step", early=True),
    Departure("the connection's exponent is ignored", activation=_exponent_ignored),
    Departure("the exponent shifts each weight instead of the sum", activation=_each_weight_shifted),
    Departure("a negative exponent rounds the sum towards zero instead of down", activation=_shift_truncates),
    Departure("weights are halved to fit 8 bits and the sum is not doubled", activation=_weights_halved),
    Departure("weights overflow 8 bits", activation=_weights_overflow),
    Departure("weights are off the even grid: each is 1 too high", activation=_off_the_grid(lambda w: w + 1)),
    Departure("weights are off the even grid: each is 1 too low", activation=_off_the_grid(lambda w: w - 1)),
    Departure(
        "weights are off the even grid: each but 0 is 1 too far from 0",
        activation=_off_the_grid(lambda w: w + np.sign(w)),
    ),
    Departure(
        "weights are off the even grid: each but 0 is 1 too near to 0",
        activation=_off_the_grid(lambda w: w - np.sign(w)),
    ),
    Departure("kernels are flipped: convolution instead of cross-correlation", activation=_kernels_flipped),
    Departure("a source is flattened with its channels last", activation=_channels_last),
    Departure("graded input is read as binary", inputs=lambda inputs: np.minimum(inputs, 1)),
    Departure("the input arrives one step late", inputs=lambda inputs: _shifted(inputs, 1)),
    Departure("the input arrives one step early", inputs=lambda inputs: _shifted(inputs, -1)),
    Departure("a connection's delay is one step too long", extra_delay=1),
    Departure("Lava's lag of one step per connection is not undone", late=lambda lag: lag),
    Departure("Lava's lag of one step per connection is undone one step short", late=lambda lag: 1),
    Departure("Lava's lag is undone for the first connection only", late=lambda lag: max(lag - 1, 0)),
    Departure(
        "Lava's lag of one step per connection is not undone, and the bias acts before a population's first step",
        early=True,
        late=lambda lag: lag,
    ),
    Departure("the state is not cleared between samples", uncleared=True),
)
