"""Comparison is exact and complete, finds the first place that differs, and says it in words."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UserError
from deploy import verify
from quantize import reference
from quantize.integer_network import Connection, IntegerNetwork, Population
from quantize.recording import Recording


def make_recording(backend="a", seed=0, states=3, steps=6, samples=4):
    random = np.random.default_rng(seed)
    shapes = {"first": (2, 3), "second": (4,)}

    def traces(count, high, kind):
        return {name: random.integers(0, high, (steps, count, *s)).astype(kind) for name, s in shapes.items()}

    return Recording(
        backend,
        "net",
        "in",
        traces(samples, 2, np.uint8),
        *((traces(states, 999, np.int32), traces(states, 999, np.int32)) if states else ({}, {})),
    )


def changed(recording, places, backend="b"):
    """A copy with the value at each (quantity, population, (step, sample, neuron...)) made another."""
    copies = {q: {name: trace.copy() for name, trace in getattr(recording, q).items()} for q in ("spikes", "u", "v")}
    for quantity, population, index in places:
        copies[quantity][population][index] ^= 1
    return replace(recording, backend=backend, **copies)


@pytest.mark.smoke
def test_recording_equals_itself_and_everything_is_counted():
    a = make_recording()
    comparison = verify.compare(a, changed(a, []), ("first", "second"))
    assert comparison.equal
    assert comparison.first_divergence is None
    assert (comparison.spikes_compared, comparison.states_compared) == (6 * 4 * 10, 2 * 6 * 3 * 10)
    assert "a and b are equal: 0 of 240 spikes and 0 of 360 values of u and v differ" in verify.describe(comparison)


places = st.lists(
    st.tuples(
        st.sampled_from(["u", "v", "spikes"]),
        st.sampled_from(["first", "second"]),
        st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 1), st.integers(0, 2)),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda place: (place[0], place[1], place[2] if place[1] == "first" else place[2][:3]),
)


@settings(max_examples=80)
@given(places, st.sampled_from([("first", "second"), ("second", "first")]))
def test_first_divergence_is_the_least_in_sample_step_population_quantity_neuron(drawn, order):
    cut = [(q, p, index if p == "first" else index[:3]) for q, p, index in drawn]
    a = make_recording()
    comparison = verify.compare(a, changed(a, cut), order)
    quantities = ("u", "v", "spikes")
    expected = min((i[1], i[0], order.index(p), quantities.index(q), i[2:]) for q, p, i in cut)
    found = comparison.first_divergence
    assert (
        found.sample,
        found.step,
        order.index(found.population),
        quantities.index(found.quantity),
        found.neuron,
    ) == expected
    assert comparison.spikes_different == sum(q == "spikes" for q, _, _ in cut)
    assert comparison.states_different == sum(q != "spikes" for q, _, _ in cut)
    assert not comparison.equal


def test_one_different_state_is_a_difference_though_all_spikes_agree():
    a = make_recording()
    comparison = verify.compare(a, changed(a, [("v", "second", (5, 2, 3))]))
    assert (comparison.equal, comparison.spikes_different, comparison.states_different) == (False, 0, 1)


def test_states_are_compared_for_the_samples_that_both_sides_hold():
    a = make_recording(states=3)
    b = replace(a, u={name: trace[:, :1] for name, trace in a.u.items()}, v={})
    assert verify.compare(a, b).states_compared == 6 * 10


def test_sides_hold_the_values_there_and_one_step_before():
    a = make_recording()
    b = changed(a, [("spikes", "first", (2, 1, 1, 0))])
    found = verify.compare(a, b).first_divergence
    index, before = (2, 1, 1, 0), (1, 1, 1, 0)
    assert found.a == {
        "spike": a.spikes["first"][index],
        "u": a.u["first"][index],
        "v": a.v["first"][index],
        "u_before": a.u["first"][before],
        "v_before": a.v["first"][before],
    }
    assert found.b["spike"] == 1 - found.a["spike"]
    at_start = verify.compare(a, changed(a, [("u", "first", (0, 0, 0, 0))])).first_divergence
    assert at_start.a["u_before"] is None


def test_comparison_becomes_json_and_back():
    a = make_recording(states=0)
    told = verify.compare(a, changed(a, [("spikes", "second", (3, 3, 2))])).to_json()
    again = json.loads(json.dumps(told, allow_nan=False))
    assert again["first_divergence"]["neuron"] == [2]
    assert again["first_divergence"]["a"]["u"] is None
    assert (again["equal"], again["spikes_different"], again["populations"]) == (False, 1, ["first", "second"])
    assert verify.compare(a, changed(a, [])).to_json()["first_divergence"] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network": "other"}, "ran the network net, b the network other"),
        ({"inputs": "other"}, "ran the input in, b the input other"),
        ({"spikes": {"first": np.zeros((6, 4, 2, 3), np.uint8)}}, "record the same ones"),
        (
            {"spikes": {"first": np.zeros((5, 4, 2, 3), np.uint8), "second": np.zeros((6, 4, 4), np.uint8)}},
            "shape (6, 4, 2, 3) in a and (5, 4, 2, 3) in b",
        ),
        ({"u": {"second": np.zeros((6, 3, 5), np.int32)}}, "u of population 'second' has shape"),
    ],
)
def test_recordings_that_cannot_be_compared_are_refused_with_both_sides_named(change, words):
    a = make_recording()
    with pytest.raises(UserError) as error:
        verify.compare(a, replace(a, backend="b", **change))
    assert words in str(error.value)


def test_order_that_forgets_a_population_is_refused():
    a = make_recording()
    with pytest.raises(UserError, match="the recordings hold"):
        verify.compare(a, a, ("first",))


@pytest.fixture
def case():
    """One neuron meets its threshold exactly at step 1 of both samples: 32 a step, and 64 to exceed. The other gets 62,
    and would exceed 64 at once if its four weights were off by one."""
    population = Population("output", (2,), *(np.array(value) for value in (4095, 0, 64, 0)))
    weight = [[32, 0, 0, 0], [16, 16, 16, 14]]
    network = IntegerNetwork((4,), (population,), (Connection("input", "output", weight),), "output")
    inputs = np.ones((6, 2, 4), np.uint8)
    firing = np.array([0, 1, 0, 1, 0, 1], np.uint8).reshape(6, 1, 1).repeat(2, axis=1).repeat(2, axis=2)
    truth = reference.run(network, inputs)
    return network, inputs, truth, replace(truth, backend="lava", spikes={"output": firing})


def test_explained_divergence_reads_as_a_sentence(case):
    network, inputs, truth, lava = case
    comparison = verify.compare(truth, lava, network.order)
    explained = verify.explain(network, inputs, comparison, truth, lava, lambda backend, alone: None)
    assert verify.describe(explained) == (
        "reference and lava differ: 6 of 24 spikes; first at sample 0, population output, step 1, neuron (0,), "
        "in spikes: reference does not fire, lava fires; by the contract v reaches 4,096, the threshold is 4,096; "
        "cause: threshold is compared with >= instead of >."
    )


def test_states_come_from_a_second_run_of_the_one_sample(case):
    network, inputs, truth, lava = case
    asked = []

    def rerun(backend, alone):
        asked.append((backend, alone.shape))
        if backend == "lava":
            return replace(lava, spikes={"output": lava.spikes["output"][:, :1]}, u=given["u"], v=given["v"])
        return reference.run(network, alone, states=1)

    drive = np.array([32 * 64, 62 * 64], np.int32)
    given = {
        "u": {"output": np.tile(drive, (6, 1, 1))},
        "v": {"output": np.array([drive, [0, 0]] * 3, np.int32).reshape(6, 1, 2)},
    }
    comparison = verify.compare(truth, lava, network.order)
    found = verify.explain(network, inputs, comparison, truth, lava, rerun).first_divergence
    assert asked == [("reference", (6, 1, 4)), ("lava", (6, 1, 4))]
    assert found.a == {"spike": 0, "u": 2048, "v": 4096, "u_before": 2048, "v_before": 2048}
    assert found.b == {"spike": 1, "u": 2048, "v": 0, "u_before": 2048, "v_before": 2048}
    assert found.cause == "threshold is compared with >= instead of >"


def test_second_run_that_fires_otherwise_is_not_believed(case):
    network, inputs, truth, lava = case
    comparison = verify.compare(truth, lava, network.order)
    explained = verify.explain(
        network, inputs, comparison, truth, lava, lambda backend, alone: reference.run(network, alone, states=1)
    )
    assert explained.first_divergence.a["v"] == 4096
    assert explained.first_divergence.b["v"] is None


def test_side_that_leaves_the_reference_is_named_where_the_reference_is_neither(case):
    network, inputs, truth, lava = case
    engine = replace(truth, backend="engine")
    for a, b in ((engine, lava), (lava, engine)):
        comparison = verify.compare(a, b, network.order)
        explained = verify.explain(network, inputs, comparison, a, b, lambda backend, alone: None)
        assert explained.first_divergence.cause == (
            "lava departs from the reference: threshold is compared with >= instead of >"
        )


def test_equal_comparison_needs_no_explanation(case):
    network, inputs, truth, _ = case
    comparison = verify.compare(truth, replace(truth, backend="engine"))
    assert verify.explain(network, inputs, comparison, truth, truth, lambda *_: None) is comparison
