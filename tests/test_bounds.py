"""The range proof: no input leaves the intervals, every witness does, and a certificate that was touched is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import networks
from test_lava_models import turns_in_lava

from base.errors import UserError
from deploy.lava import models
from quantize import arithmetic, engine, reference
from quantize.bounds import certificate as files
from quantize.bounds import search
from quantize.bounds.certificate import PROVEN, REFUTED, UNDECIDED
from quantize.bounds.checker import check
from quantize.bounds.cones import Cone
from quantize.bounds.intervals import LIMITS, NEVER, contains, quantities
from quantize.bounds.proof import prove
from quantize.bounds.replay import reached
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population

ALL_INPUTS = 12  # bits of input that are enumerated


def every_input(network: IntegerNetwork) -> np.ndarray:
    """All inputs [T, B, *input_shape] of as many steps as there are bits for; of biases, some at every step alike."""
    size = int(np.prod(network.input_shape))
    if network.input_is_bias_of:
        choices = [-4096, 4095, 0, 1, -700][: max(2, 5 - size // 2)]
        mantissas = np.array(list(product(choices, repeat=size)), np.int16)[: 1 << ALL_INPUTS]
        return np.broadcast_to(
            mantissas.reshape(1, -1, *network.input_shape), (12, len(mantissas), *network.input_shape)
        )
    steps = ALL_INPUTS // (size * network.payload_bits)
    numbers = np.arange(1 << (steps * size * network.payload_bits))
    digits = numbers[:, None] >> (network.payload_bits * np.arange(steps * size)) & network.payload_max(INPUT)
    return digits.reshape(-1, steps, *network.input_shape).swapaxes(0, 1).astype(np.uint8)


def assert_contained(network: IntegerNetwork, inputs: np.ndarray, steps: int | None) -> None:
    """Every activation, current and voltage of every neuron lies in its interval, and no spike comes too early."""
    claims, found = search.find(network, steps)
    ran = engine.run(network, inputs, inputs.shape[1])
    for population in network.populations:
        name = population.name
        values = reached(network, inputs, ran, name)
        for quantity in quantities(population):
            low, high = getattr(found[name], quantity)
            assert (low <= values[quantity].min(axis=(0, 1))).all(), (name, quantity)
            assert (values[quantity].max(axis=(0, 1)) <= high).all(), (name, quantity)
        if population.spiking:
            for state, claim in ((ran.u[name], claims[name].u), (ran.v[name], claims[name].v)):
                assert (claim[0] <= state.min(axis=(0, 1))).all()
                assert (state.max(axis=(0, 1)) <= claim[1]).all()
            last = np.full(ran.spikes[name].shape[1:], -NEVER)
            for t, fires in enumerate(ran.spikes[name] > 0):
                assert (t - last >= claims[name].spacing)[fires].all()
                last[fires] = t


@pytest.mark.smoke
@given(networks(cycles=True, readouts=True, input_bits=6), st.booleans())
@settings(max_examples=100)
def test_of_all_inputs_none_leaves_the_intervals(case: Any, bounded: bool) -> None:
    network, _ = case
    inputs = every_input(network)
    assert_contained(network, inputs, len(inputs) if bounded else None)


@given(networks(cycles=True, readouts=True), st.sampled_from([None, 40]), st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_nor_does_any_random_input_of_many_steps(case: Any, steps: int | None, seed: int) -> None:
    network, _ = case
    rng = np.random.default_rng(seed)
    if network.input_is_bias_of:
        inputs = np.repeat(rng.integers(-4096, 4096, (1, 6, *network.input_shape)), 40, axis=0).astype(np.int16)
    else:
        fires = rng.random((40, 6, *network.input_shape)) < rng.choice([0.1, 0.5, 0.9, 1.0], (40 // 8, 6, 1)).repeat(
            8, axis=0
        ).reshape(40, 6, *[1] * len(network.input_shape))
        inputs = (fires * network.payload_max(INPUT)).astype(np.uint8)
    assert_contained(network, inputs, steps)


@given(networks(cycles=True, readouts=True))
@settings(max_examples=40)
def test_what_is_claimed_is_checked_and_every_witness_overflows_in_lava_too(case: Any) -> None:
    network, inputs = case
    found = prove(network, inputs, len(inputs), seconds=0.1)
    check(network, found)
    for name, answers in found.answers.items():
        for quantity, answer in answers.items():
            low, high = answer.observed
            assert answer.bound[0] <= low <= high <= answer.bound[1]
            least, most = LIMITS[quantity]
            if answer.word == PROVEN:
                assert answer.solved or least <= answer.bound[0] <= answer.bound[1] <= most
            if answer.witness is not None and turns_in_lava(network):
                shown = answer.witness.inputs[:, None]
                values = reached(network, shown, models.run(network, shown, 1), name)[quantity]
                assert values[(answer.witness.step, 0, *answer.witness.neuron)] == answer.witness.value
                assert not least <= answer.witness.value <= most


def lif(name: str = "a", shape: tuple[int, ...] = (1,), **changes: Any) -> Population:
    values: dict[str, Any] = {"decay_u": 4095, "decay_v": 1024, "threshold_mant": 100, "bias_mant": 0}
    return Population(name, shape, **(values | changes))


def single(weight: list[list[int]], exponent: int = 0, **changes: Any) -> IntegerNetwork:
    joined = Connection(INPUT, "a", np.array(weight), exponent)
    return IntegerNetwork((len(weight[0]),), (lif(shape=(len(weight),), **changes),), (joined,), "a")


@given(
    st.integers(0, 4095),
    st.integers(0, 4095),
    st.lists(st.integers(-128, 127), min_size=1, max_size=3),
    st.sampled_from(arithmetic.RESETS),
    st.booleans(),
)
@settings(max_examples=60)
def test_the_current_and_an_inhibited_voltage_reach_their_bounds_exactly(
    decay_u: int, decay_v: int, halves: list[int], reset: str, floor: bool
) -> None:
    decay_u, decay_v = decay_u | 64, decay_v | 64  # states settle within the steps that are run
    network = single([[2 * half for half in halves]], decay_u=decay_u, decay_v=decay_v, reset=reset, floor=floor)
    _, found = search.find(network, None)
    weight = network.connections[0].weight[0]
    inputs = np.stack([weight > 0, weight < 0]).astype(np.uint8)[None].repeat(2000, axis=0)
    values = reached(network, inputs, engine.run(network, inputs, 2), "a")
    assert values["u"].max() == found["a"].u[1]
    assert values["u"].min() == found["a"].u[0]
    assert reset == "soft-late" or values["v"].min() == found["a"].v[0]


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 40, 4096]),
    st.sampled_from([0, 3, 900]),
    st.integers(8, 22),
    st.sampled_from(arithmetic.RESETS),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60)
def test_whether_all_neurons_stay_inside_is_what_their_intervals_say(
    seed: int, lost_u: int, lost_v: int, bits: int, reset: str, floor: bool, each: bool
) -> None:
    rng = np.random.default_rng(seed)
    activation = np.sort(rng.integers(-1 << bits, 1 << bits, (2, 3)), axis=0) >> arithmetic.STATE_SHIFT
    bias, threshold = rng.integers(-1 << 18, 1 << 18, 3), rng.integers(1, 1 << bits, 3)
    shape = (3, 2) if each else (3, 1)
    u_lost, v_lost = (np.minimum(share + rng.integers(0, 9, shape) * each, 4096) for share in (lost_u, lost_v))
    u = search.invariant_u(activation[..., None], u_lost)
    _, v = search.invariant_v(u + bias[:, None], v_lost, threshold[:, None], reset, floor)
    inside = [bool(contains(LIMITS[name], values).all()) for name, values in (("u", u), ("v", v))]
    found = search.stays_inside(
        activation << arithmetic.STATE_SHIFT,
        *(bias, bias, u_lost.reshape(-1), v_lost.reshape(-1), threshold),
        *(reset.startswith("hard"), arithmetic.is_late(reset), floor),
    )
    assert found == (inside[0], all(inside))


def test_neurons_that_cannot_spike_add_nothing() -> None:
    silent = lif("b", decay_v=2048, threshold_mant=600)
    network = single([[254, 254]], threshold_mant=300)
    network = replace(
        network,
        populations=(*network.populations, silent, lif("c")),
        connections=(
            *network.connections,
            Connection("a", "b", np.array([[254]])),
            Connection("b", "c", np.array([[-254]]), 7),
        ),
        output="c",
    )
    claims, found = search.find(network, None)
    assert claims["b"].spacing == NEVER
    assert not found["c"].activation.any()


def test_a_source_that_must_charge_between_spikes_cannot_add_up_in_a_slow_current() -> None:
    """Spikes at every step would wrap the current of b; those that a can send do not."""
    network = single([[20]], decay_v=2048, threshold_mant=36)  # 20, 30, 35, 37.5: every fourth step
    network = replace(
        network,
        populations=(*network.populations, lif("b", decay_u=63, decay_v=4095)),
        connections=(*network.connections, Connection("a", "b", np.array([[128]]), 5)),
        output="b",
    )
    claims, found = search.find(network, None)
    assert claims["a"].spacing == 4
    assert LIMITS["u"][1] < 64 * 4096 * 64
    found = prove(network)
    assert (found.word(), found.steps) == (PROVEN, None)
    check(network, found)


def test_without_a_leak_steps_decide_and_a_witness_is_found_where_there_are_enough() -> None:
    network = single([[-256]], exponent=2, decay_v=0)
    short, long = prove(network, steps=100), prove(network, steps=1000)
    assert (short.word(), short.steps) == (PROVEN, 100)
    assert (long.word(), long.steps) == (REFUTED, 1000)
    witness = long.answers["a"]["v"].witness
    assert witness is not None
    assert (witness.step + 1) * 256 * 4 * 64 == 1 << 23
    assert prove(network).answers["a"]["v"].witness is not None
    for found in (short, long):
        check(network, found)


def twins() -> IntegerNetwork:
    """Two neurons of which either spikes when the other cannot: an activation that intervals think twice as large."""
    pair = lif("pair", (2,), decay_v=4095, threshold_mant=10)
    to_pair = Connection(INPUT, "pair", np.array([[40, -40], [-40, 40]]))
    to_sum = Connection("pair", "sum", np.array([[200, 200]]), 7)
    return IntegerNetwork((2,), (pair, lif("sum", threshold_mant=131071)), (to_pair, to_sum), "sum")


def test_the_solver_decides_what_intervals_cannot() -> None:
    network = twins()
    assert prove(network, seconds=0.1).answers["sum"]["activation"].word == UNDECIDED
    found = prove(network, steps=3, seconds=1)
    assert found.word() == PROVEN
    assert found.answers["sum"]["activation"].solved == ((0,),)
    check(network, found)
    bold = replace(network.connections[1], weight=np.array([[254, 254]]), exponent=7)
    inputs = Cone(replace(network, connections=(network.connections[0], bold)), 3).leaves("sum", (0,), "activation")
    assert inputs is False
    met = replace(network.connections[0], weight=np.array([[40, -40], [40, -40]]))
    network = replace(network, connections=(met, network.connections[1]))
    inputs = Cone(network, 3).leaves("sum", (0,), "activation")
    assert isinstance(inputs, np.ndarray)
    ran = reference.run(network, inputs[:, None], 1)
    assert reached(network, inputs[:, None], ran, "sum")["activation"].max() == 51200


@given(networks(cycles=True, max_layers=2, input_bits=6), st.sampled_from(["activation", "u", "v"]), st.integers(8, 20))
@settings(max_examples=20)
def test_the_solver_is_right_about_all_inputs(case: Any, quantity: str, bits: int) -> None:
    """With narrower registers, so that small networks overflow some of them."""
    network, _ = case
    assume(not network.input_is_bias_of and np.prod(network.input_shape) * network.payload_bits > 1)
    inputs = every_input(network)
    values = reached(network, inputs, engine.run(network, inputs, inputs.shape[1]), network.output)[quantity]
    neuron = tuple(0 for _ in network[network.output].shape)
    values = values[(slice(None), slice(None), *neuron)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LIMITS, quantity, (-(1 << bits), 1 << bits))
        found = Cone(network, len(inputs), 0.3).leaves(network.output, neuron, quantity)
    if isinstance(found, np.ndarray):
        ran = reference.run(network, found[:, None], 1)
        reaches = reached(network, found[:, None], ran, network.output)[quantity][(slice(None), 0, *neuron)]
        assert np.abs(reaches).max() > 1 << bits
    assert found is None or (found is False) == (np.abs(values).max() <= 1 << bits)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[IntegerNetwork, Path]:
    network = twins()
    network = replace(network, connections=(network.connections[0], replace(network.connections[1], exponent=3)))
    file = tmp_path / "bounds.json"
    files.save(prove(network), file)
    check(network, files.load(file))
    return network, file


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["network"], "0" * 64, "they are of network 000000000000"),
        (["populations", "pair", "claim", "u", 1, 0], 1, "population 'pair', neuron \\(0,\\): u leaves the range"),
        (["populations", "pair", "claim", "v", 0, 1], 0, "population 'pair', neuron \\(1,\\): v leaves the range"),
        (["populations", "pair", "claim", "spacing", 0], NEVER, "spikes may follow each other sooner"),
        (["populations", "pair", "claim", "spacing"], [1], "spacing has shape \\(1,\\), not \\(2,\\)"),
        (
            ["populations", "sum", "answers", "u", "proven"],
            0,
            "u is claimed proven of 0 of 1 neurons, but",
        ),
        (["populations", "pair", "claim", "u", 1, 0], 0.5, "holds float64 where whole numbers belong"),
        (["version"], 2, "is no spikeproof-bounds of version 1"),
        (["populations"], {}, "tell of \\[\\]"),
    ],
)
def test_a_certificate_that_was_touched_is_refused(
    stored: tuple[IntegerNetwork, Path], path: list[Any], value: Any, says: str
) -> None:
    network, file = stored
    claimed = json.loads(file.read_text())
    inner = claimed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(claimed))
    with pytest.raises(UserError, match=says):
        check(network, files.load(file))


def test_a_witness_that_was_touched_is_refused() -> None:
    network = single([[-256]], exponent=2, decay_v=0)
    found = prove(network, steps=1000)
    answer = found.answers["a"]["v"]
    assert answer.witness is not None
    gentler = replace(answer, witness=replace(answer.witness, inputs=0 * answer.witness.inputs))
    with pytest.raises(UserError, match=r"neuron \(0,\): its witness does not push v to -8388608"):
        check(network, replace(found, answers={"a": {**found.answers["a"], "v": gentler}}))
