"""One neuron and all that leads to it, step by step from zero, as bit vectors for an SMT solver (z3).

For small cones and few steps, where intervals are too coarse: they do not know that neurons which share their inputs
cannot spike together. The solver is asked for an input on which a register is left, before any wraps or saturates, and
either gives one or proves that there is none.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import z3

from quantize import arithmetic as rules
from quantize.bounds.intervals import LIMITS, threshold_of
from quantize.bounds.witness import receptive
from quantize.integer_network import INPUT, IntegerNetwork

WIDTH = 48  # a 32-bit current times a 12-bit share, and its sign
TERMS_MAX = 4096  # weights and neurons, of every step; more are no small cone
SECONDS = 2.0  # for one question


class TooLarge(Exception):
    """The cone has more than TERMS_MAX terms."""


class Cone:
    """The network over so many steps, encoded as far as it is asked for."""

    def __init__(self, network: IntegerNetwork, steps: int, seconds: float = SECONDS) -> None:
        self._network, self._steps, self._terms = network, steps, 0
        self._solver = z3.SolverFor("QF_BV")
        self._solver.set("timeout", int(1000 * seconds))
        self._inputs: dict[tuple[int, ...], Any] = {}
        self._sent, self._state = cache(self._sent_of), cache(self._state_of)

    def leaves(self, name: str, neuron: tuple[int, ...], quantity: str) -> np.ndarray | bool | None:
        """An input [T, *input_shape] on which the neuron's quantity leaves its register, False if no input makes it, or
        None where the cone is too large or the solver takes too long."""
        least, most = LIMITS[quantity]
        try:
            reached = [self._state(name, neuron, t)[quantity] for t in range(self._steps)]
        except TooLarge:
            return None
        self._solver.push()
        self._solver.add(z3.Or([z3.Or(value < least, value > most) for value in reached]))
        answer = self._solver.check()
        found: np.ndarray | bool | None = None if answer == z3.unknown else False
        if answer == z3.sat:
            model = self._solver.model()
            kind = np.int16 if self._network.input_is_bias_of else np.uint8
            found = np.zeros((self._steps, *self._network.input_shape), kind)
            for (t, *place), variable in self._inputs.items():
                value = model.eval(variable, model_completion=True).as_signed_long()
                found[(slice(None) if t < 0 else t, *place)] = value
        self._solver.pop()
        return found

    def _input(self, t: int, place: tuple[int, ...], least: int, most: int) -> Any:
        """What the input is there: any integer of a range. t below 0: at all steps."""
        variable = z3.BitVec(f"input {t} {place}", WIDTH)
        self._solver.add(variable >= least, variable <= most)
        self._inputs[(t, *place)] = variable
        return variable

    def _sent_of(self, source: str, place: tuple[int, ...], t: int) -> Any:
        if source == INPUT:
            return self._input(t, place, 0, self._network.payload_max(INPUT))
        return z3.If(self._state(source, place, t)["spikes"], _number(1), _number(0))

    def _state_of(self, name: str, neuron: tuple[int, ...], t: int) -> dict[str, Any]:
        """What a neuron comes to in a step: the activation, u and v before and after all that is done to them."""
        network, population = self._network, self._network[name]
        activation = _number(0)
        for connection in network.into(name):
            if t < connection.delay:
                continue
            weights = receptive(connection, network.shape_of(connection.source), neuron)
            read = [tuple(int(i) for i in place) for place in np.argwhere(weights)]
            self._count(len(read))
            total = _number(0)
            for place in read:
                total = total + int(weights[place]) * self._sent(connection.source, place, t - connection.delay)
            up = connection.exponent
            activation = activation + (total << up if up >= 0 else total >> -up)
        if not population.spiking:
            return {"activation": activation}
        self._count(16)
        decay_u, decay_v, threshold = (
            int(np.broadcast_to(values, population.shape)[neuron])
            for values in (population.decay_u, population.decay_v, threshold_of(population))
        )
        if name == network.input_is_bias_of:
            half = 1 << (rules.BIAS_BITS - 1)
            shown = self._inputs.get((-1, *neuron))
            bias = (self._input(-1, neuron, -half, half - 1) if shown is None else shown) << population.bias_exp
        else:
            bias = _number(int(np.broadcast_to(population.bias, population.shape)[neuron]))
        last = self._state(name, neuron, t - 1) if t else {"u'": _number(0), "v'": _number(0)}
        hard, late, limit = population.reset.startswith("hard"), rules.is_late(population.reset), rules.STATE_LIMIT
        u = _kept(last["u'"], rules.DECAY_UNITY - rules.CURRENT_DECAY_OFFSET - decay_u) + (
            activation << rules.STATE_SHIFT
        )
        after_u = z3.If(u > limit, u - 2 * limit, z3.If(u <= -limit, u + 2 * limit, u))
        v = _kept(last["v'"], rules.DECAY_UNITY - decay_v) + after_u + bias
        if late:
            v = z3.If(last["v'"] > threshold, _number(0) if hard else v - threshold, v)
        if population.floor:
            v = z3.If(v < 0, _number(0), v)
        after_v = z3.If(v > limit - 1, _number(limit - 1), z3.If(v < 1 - limit, _number(1 - limit), v))
        spikes = after_v > threshold
        if not late:
            after_v = z3.If(spikes, _number(0) if hard else after_v - threshold, after_v)
        return {"activation": activation, "u": u, "v": v, "u'": after_u, "v'": after_v, "spikes": spikes}

    def _count(self, terms: int) -> None:
        self._terms += terms
        if self._terms > TERMS_MAX:
            raise TooLarge


def _number(value: int) -> Any:
    return z3.BitVecVal(value, WIDTH)


def _kept(state: Any, share: int) -> Any:
    """trunc(state share / 4096)."""
    product = state * _number(share)
    return (product + ((product >> (WIDTH - 1)) & (rules.DECAY_UNITY - 1))) >> rules.DECAY_BITS
