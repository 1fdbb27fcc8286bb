"""Whether the claims of a certificate hold of a network: every one is derived anew, none is believed.

    python -m quantize.bounds.checker runs/digits/quantize/network.npz runs/digits/quantize/bounds.json

A proof is checked by one step: where all claims hold before it, each holds after it (see `intervals`). Where they are
made for samples of so many steps, intervals are stepped so often from zero. A witness is run on the reference. What
only a solver could prove it is asked again. Nothing of the search is used.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from base.errors import UserError
from quantize import integer_network, reference
from quantize.bounds import certificate as files
from quantize.bounds.certificate import Answer, Certificate
from quantize.bounds.intervals import LIMITS, Claim, anything, contains, quantities, reached, spacing_of
from quantize.bounds.replay import reached as replayed
from quantize.integer_network import IntegerNetwork

SECONDS = 30.0  # for a question to the solver, which took a fraction of it when the claim was made


def check(network: IntegerNetwork, certificate: Certificate) -> None:
    """Raises UserError, naming the first claim that does not hold, and for a certificate of another network."""
    if certificate.network != network.hash:
        raise UserError(
            f"bounds: they are of network {certificate.network[:12]}, but this one is {network.hash[:12]}; run "
            "'pipeline.py quantize' again."
        )
    names = set(network.order)
    if set(certificate.claims) != names or set(certificate.answers) != names:
        raise UserError(f"bounds: they tell of {sorted(certificate.claims)}, but the network has {sorted(names)}.")
    for name in network.order:
        _check_shape(name, certificate.claims[name], anything(network[name]))
    for name in network.order:
        _check_population(network, certificate, name)


def _check_shape(name: str, claim: Claim, usual: Claim) -> None:
    for kind, values in vars(usual).items():
        found = getattr(claim, kind)
        if found.shape != values.shape:
            raise UserError(f"bounds: population '{name}': {kind} has shape {found.shape}, not {values.shape}.")


def _check_population(network: IntegerNetwork, certificate: Certificate, name: str) -> None:
    claim, answers, population = certificate.claims[name], certificate.answers[name], network[name]
    found = reached(network, name, certificate.claims, certificate.steps)
    if population.spiking:
        for what, claimed, after in zip("uv", (claim.u, claim.v), found.after, strict=True):
            holds = contains(claimed, after) & contains(claimed, np.zeros_like(after))
            _refuse_where(~holds, name, f"{what} leaves the range that is claimed of it")
        early = claim.spacing > spacing_of(network, name, found, claim)
        _refuse_where(early, name, "spikes may follow each other sooner than is claimed")
    if tuple(answers) != quantities(population):
        raise UserError(f"bounds: population '{name}': there are answers of {list(answers)} alone; give all.")
    for quantity, answer in answers.items():
        inside = found.inside(quantity)
        for neuron in answer.solved:
            inside[neuron] |= _solved(network, name, neuron, quantity, certificate.steps)
        if (answer.neurons, answer.proven) != (population.size, int(inside.sum())):
            raise UserError(
                f"bounds: population '{name}': {quantity} is claimed proven of {answer.proven} of {answer.neurons} "
                f"neurons, but is of {int(inside.sum())} of {population.size}."
            )
        if answer.witness is not None:
            _check_witness(network, name, quantity, answer, certificate.steps)


def _refuse_where(wrong: np.ndarray, name: str, what: str) -> None:
    if wrong.any():
        neuron = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise UserError(f"bounds: population '{name}', neuron {neuron}: {what}; run 'pipeline.py quantize' again.")


def _check_witness(network: IntegerNetwork, name: str, quantity: str, answer: Answer, steps: int | None) -> None:
    witness = answer.witness
    assert witness is not None
    inputs = network.check_inputs(witness.inputs[:, None])
    ran = reference.run(network, inputs, states=1)
    value = int(replayed(network, inputs, ran, name)[quantity][(witness.step, 0, *witness.neuron)])
    least, most = LIMITS[quantity]
    if value != witness.value or least <= value <= most or (steps is not None and len(inputs) > steps):
        raise UserError(
            f"bounds: population '{name}', neuron {witness.neuron}: its witness does not push {quantity} to "
            f"{witness.value} at step {witness.step}, but to {value}; run 'pipeline.py quantize' again."
        )


def _solved(network: IntegerNetwork, name: str, neuron: tuple[int, ...], quantity: str, steps: int | None) -> bool:
    from quantize.bounds.cones import Cone

    return steps is not None and Cone(network, steps, SECONDS).leaves(name, neuron, quantity) is False


if __name__ == "__main__":
    try:
        check(integer_network.load(Path(sys.argv[1])), files.load(Path(sys.argv[2])))
    except UserError as refusal:
        sys.exit(f"Error: {refusal}")
    print("Every claim holds.")
