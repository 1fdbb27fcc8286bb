"""A network's certificate: what is proven, what is refuted, and what is left open when the time is over."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from quantize.bounds import replay, search, witness
from quantize.bounds.certificate import Answer, Certificate
from quantize.bounds.cones import Cone
from quantize.bounds.intervals import Reached, quantities
from quantize.integer_network import IntegerNetwork

SECONDS = 6.0  # for all that intervals leave open


def prove(
    network: IntegerNetwork, samples: np.ndarray | None = None, steps: int | None = None, seconds: float = SECONDS
) -> Certificate:
    """The certificate of a network, for inputs of any number of steps, or if that is not proven, of at most so many.

    samples: inputs [T, B, *input_shape] on which to observe what is reached. seconds: to look for witnesses, and for a
    solver, where intervals decide nothing.
    """
    if network.time_weights is not None:
        steps = len(network.time_weights)
    claims, found = search.find(network, None)
    if search.all_inside(network, found):
        steps = None
    elif steps is not None:
        claims, found = search.find(network, steps)
    observed = {} if samples is None else replay.observed(network, samples)
    answers = {
        name: {
            quantity: Answer(
                _span(getattr(found[name], quantity)),
                observed.get(name, {}).get(quantity),
                network[name].size,
                int(found[name].inside(quantity).sum()),
            )
            for quantity in quantities(network[name])
        }
        for name in network.order
    }
    left = [(name, q) for name, of in answers.items() for q, answer in of.items() if answer.proven < answer.neurons]
    began = time.monotonic()
    for place, (name, quantity) in enumerate(left):
        until = began + seconds * (place + 1) / len(left)
        answers[name][quantity] = _decided(network, name, quantity, answers[name][quantity], found[name], steps, until)
    return Certificate(network.hash, steps, claims, answers)


def _decided(
    network: IntegerNetwork, name: str, quantity: str, answer: Answer, found: Reached, steps: int | None, until: float
) -> Answer:
    """The answer once witnesses and, over a known number of steps, the solver have been tried."""
    bound, inside = getattr(found, quantity), found.inside(quantity)
    overflow = witness.search(network, name, quantity, bound, steps, (time.monotonic() + until) / 2)
    if overflow is not None:
        return replace(answer, witness=overflow)
    if steps is None:
        return answer
    solved = []
    cone = Cone(network, steps)
    for neuron in (tuple(int(i) for i in place) for place in np.argwhere(~inside)):
        if time.monotonic() > until:
            break
        inputs = cone.leaves(name, neuron, quantity)
        if isinstance(inputs, np.ndarray):
            return replace(answer, witness=witness.confirmed(network, name, quantity, inputs))
        if inputs is None:
            break  # the others' cones are no smaller
        solved.append(neuron)
    return replace(answer, proven=answer.proven + len(solved), solved=tuple(solved))


def _span(values: np.ndarray) -> tuple[int, int]:
    return int(values[0].min()), int(values[1].max())
