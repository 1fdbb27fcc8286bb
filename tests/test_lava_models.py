"""Lava's own model classes compute what the reference computes, on any drawn network; the rest is refused."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import networkx
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from strategies import networks

from base.errors import UserError
from deploy.lava import compat, graph, models
from deploy.lava.catalogue import KINDS, assemble, classes
from quantize import arithmetic, reference
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population
from quantize.recording import Recording

relaxed = settings(suppress_health_check=list(HealthCheck))
NETWORK_STATES = 2


def population(name: str, shape: tuple[int, ...], **changed: object) -> Population:
    values: dict = {"decay_u": 1000, "decay_v": 100, "threshold_mant": 20, "bias_mant": 0} | changed
    arrays = ("decay_u", "decay_v", "threshold_mant", "bias_mant")
    return Population(name, shape, **{key: np.array(v) if key in arrays else v for key, v in values.items()})


def chain(*links: Connection, input_shape: tuple[int, ...] = (4,), **changed: object) -> IntegerNetwork:
    shapes: dict[str, tuple[int, ...]] = {INPUT: input_shape}
    for link in links:
        shapes.setdefault(link.target, link.output_shape(shapes.get(link.source, (len(link.weight),))))
    layers = tuple(population(name, shape, **changed) for name, shape in shapes.items() if name != INPUT)
    return IntegerNetwork(input_shape, layers, links, layers[-1].name)


def assert_equal(expected: Recording, got: Recording) -> None:
    for kind in ("spikes", "u", "v"):
        for name, trace in getattr(expected, kind).items():
            other = getattr(got, kind)[name]
            assert trace.dtype == other.dtype
            assert np.array_equal(trace, other), f"{kind} of {name}"
    assert expected.hash == got.hash


@given(networks())
@settings(relaxed, max_examples=200)
def test_lava_models_equal_the_reference(drawn: tuple[IntegerNetwork, np.ndarray]) -> None:
    network, inputs = drawn
    assert_equal(reference.run(network, inputs, NETWORK_STATES), models.run(network, inputs, NETWORK_STATES))


def turns_in_lava(network: IntegerNetwork) -> bool:
    """Whether every cycle has a step of delay for each of its connections, found by looking at every cycle."""
    shortest = networkx.DiGraph()
    for connection in sorted(network.connections, key=lambda connection: -connection.delay):
        shortest.add_edge(connection.source, connection.target, delay=connection.delay)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # networkx 2 looks for pandas
        found = list(networkx.simple_cycles(shortest))
    cycles = (zip(cycle, cycle[1:] + cycle[:1], strict=True) for cycle in found)
    return all(sum(shortest.edges[edge]["delay"] - 1 for edge in cycle) >= 0 for cycle in cycles)


@given(networks(cycles=True, readouts=True))
@settings(relaxed, max_examples=200)
def test_recurrent_delayed_and_skipping_connections_equal_the_reference(
    drawn: tuple[IntegerNetwork, np.ndarray],
) -> None:
    network, inputs = drawn
    assume(turns_in_lava(network))
    assert_equal(reference.run(network, inputs, NETWORK_STATES), models.run(network, inputs, NETWORK_STATES))


@given(networks(cycles=True, readouts=True), st.integers(2, 4))
@settings(relaxed, max_examples=60)
def test_recurrent_delayed_and_skipping_connections_with_lanes_equal_the_reference(
    drawn: tuple[IntegerNetwork, np.ndarray], lanes: int
) -> None:
    network, inputs = drawn
    assume(turns_in_lava(network))
    states = min(NETWORK_STATES, inputs.shape[1])
    schedule = graph.Schedule(*inputs.shape[:2], states, lanes)
    got = models.run_scheduled(network, inputs, schedule, "Sparse")
    assert_equal(reference.run(network, inputs, states), got)


@given(networks(cycles=True, readouts=True))
@settings(relaxed, max_examples=200)
def test_just_the_cycles_that_cannot_turn_in_lava_are_refused(drawn: tuple[IntegerNetwork, np.ndarray]) -> None:
    network, _ = drawn
    if turns_in_lava(network):
        lag = graph.lags(network)
        assert lag[INPUT] == min(lag.values()) == 0
        assert all(c.delay + lag[c.target] - lag[c.source] >= 1 for c in network.connections)
    else:
        with pytest.raises(UserError, match="network: the cycle"):
            graph.lags(network)


@given(networks(), st.integers(2, 4))
@settings(relaxed, max_examples=60)
def test_lanes_equal_the_reference(drawn: tuple[IntegerNetwork, np.ndarray], lanes: int) -> None:
    network, inputs = drawn
    states = min(NETWORK_STATES, inputs.shape[1])
    schedule = graph.Schedule(*inputs.shape[:2], states, lanes)
    got = models.run_scheduled(network, inputs, schedule, "Sparse")
    assert_equal(reference.run(network, inputs, states), got)


@given(networks(stock=True, cycles=True))
@settings(relaxed, max_examples=40)
def test_conv_and_sparse_are_the_same_mapping(drawn: tuple[IntegerNetwork, np.ndarray]) -> None:
    network, inputs = drawn
    assume(any(connection.is_conv for connection in network.connections) and turns_in_lava(network))
    assert_equal(models.run(network, inputs, 1), models.run(network, inputs, 1, convolution="Conv"))


@given(networks())
@settings(relaxed, max_examples=60)
def test_unrolled_kernel_is_the_convolution(drawn: tuple[IntegerNetwork, np.ndarray]) -> None:
    network, _ = drawn
    for connection in (c for c in network.connections if c.is_conv):
        shape = network.shape_of(connection.source)
        images = np.random.default_rng(1).integers(0, 16, (3, *shape))
        geometry = {name: getattr(connection, name) for name in ("stride", "padding", "dilation", "groups")}
        expected = arithmetic.conv_sum(images, connection.weight, **geometry)
        got = (graph.unroll(connection, shape) @ images.reshape(3, -1).T).T
        assert np.array_equal(got, expected.reshape(3, -1))


@pytest.mark.smoke
def test_pooled_maps_over_several_layers_equal_the_reference() -> None:
    rng = np.random.default_rng(0)
    network = chain(
        Connection(INPUT, "a", 2 * rng.integers(-20, 40, (4, 2, 3, 3)), stride=(2, 1), padding=(1, 2)),
        Connection("a", "b", 2 * rng.integers(-20, 60, (4, 2, 2, 3)), 1, dilation=(2, 1), groups=2),
        Connection("b", "c", 2 * rng.integers(-20, 60, (5, 4 * 2 * 6)), -2),
        input_shape=(2, 7, 6),
        bias_mant=3,
        bias_exp=4,
    )
    inputs = (rng.random((9, 5, 2, 7, 6)) < 0.3).astype(np.uint8)
    expected = reference.run(network, inputs, 5)
    assert expected.spikes["c"].any()
    for convolution in graph.CONVOLUTIONS:
        assert_equal(expected, models.run(network, inputs, 5, convolution))


@pytest.mark.parametrize("threshold", [0, 131071])
@pytest.mark.parametrize("exponent", [-8, 7])
def test_edges_of_threshold_and_exponent_equal_the_reference(threshold: int, exponent: int) -> None:
    weight = np.tile([[254, -256, 254, 254]], (3, 1))
    network = chain(Connection(INPUT, "a", weight, exponent), threshold_mant=threshold, decay_u=4095, decay_v=0)
    inputs = np.random.default_rng(0).integers(0, 2, (40, 2, 4)).astype(np.uint8)
    expected = reference.run(network, inputs, 2)
    assert expected.spikes["a"].any() == (threshold == 0 or exponent == 7)
    assert_equal(expected, models.run(network, inputs, 2))


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({}, "LIFReset"),
        ({"bias_mant": [1, -2]}, "LIFReset"),
        ({"decay_v": [7, 7]}, "LIFReset"),
        ({"decay_u": [7, 8]}, "IntegerLIF"),
        ({"decay_v": [7, 8]}, "IntegerLIF"),
        ({"threshold_mant": [7, 8]}, "IntegerLIF"),
        ({"floor": True}, "IntegerLIF"),
        ({"reset": "soft"}, "IntegerLIF"),
        ({"reset": "hard-late"}, "IntegerLIF"),
    ],
)
def test_own_neurons_are_used_only_where_stock_cannot_say_it(changed: dict, kind: str) -> None:
    network = chain(Connection(INPUT, "a", np.full((2, 4), 2)), **changed)
    made = graph.plan(network, graph.Schedule(3, 1), "Sparse", Path("."))
    assert made.parts["neurons a"].kind == kind


@pytest.mark.parametrize(("exponent", "kind"), [(0, "Conv"), (3, "Conv"), (-1, "Sparse")])
def test_conv_is_used_only_where_it_can_hold_the_exponent(exponent: int, kind: str) -> None:
    network = chain(Connection(INPUT, "a", np.full((1, 1, 2, 2), 2), exponent), input_shape=(1, 3, 3))
    made = graph.plan(network, graph.Schedule(3, 1), "Conv", Path("."))
    assert made.parts["synapse 0 input->a"].kind == kind


DENSE = Connection(INPUT, "a", np.full((2, 4), 2))


def linked(*links: tuple[str, str, int]) -> IntegerNetwork:
    """Populations of four neurons that fire often, joined by (source, target, delay)."""
    rng = np.random.default_rng(0)
    connections = [Connection(*ends, 2 * rng.integers(-20, 60, (4, 4)), delay=delay) for *ends, delay in links]
    return chain(*connections, bias_mant=60, bias_exp=4)


@pytest.mark.smoke
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "links",
    [
        [(INPUT, "a", 0), ("a", "a", 1)],
        [(INPUT, "a", 2), ("a", "a", 3), ("a", "b", 0), ("a", "b", 2)],
        [(INPUT, "a", 0), ("a", "b", 0), ("b", "c", 0), (INPUT, "c", 0), ("a", "c", 0)],
        [(INPUT, "a", 0), ("a", "b", 0), ("b", "a", 2)],
        [(INPUT, "a", 0), ("a", "b", 1), ("b", "a", 1)],
        [(INPUT, "a", 0), ("a", "b", 2), ("b", "a", 0)],
        [(INPUT, "a", 0), ("a", "b", 0), ("b", "c", 0), ("c", "a", 7), ("c", "b", 2), ("b", "b", 1)],
    ],
)
def test_windows_of_any_length_hold_what_is_under_way(
    links: list[tuple[str, str, int]], steps: int, lanes: int
) -> None:
    network = linked(*links)
    inputs = np.random.default_rng(steps).integers(0, 2, (steps, 5, 4)).astype(np.uint8)
    expected = reference.run(network, inputs, 5)
    assert steps == 1 or expected.spikes[network.output].any()
    got = models.run_scheduled(network, inputs, graph.Schedule(steps, 5, 5, lanes), "Sparse")
    assert_equal(expected, got)


def biased(*links: tuple[str, str, int], **changed: object) -> IntegerNetwork:
    """Populations of four neurons, joined by (source, target, delay), the first biased by the input."""
    rng = np.random.default_rng(0)
    connections = tuple(Connection(*ends, 2 * rng.integers(-20, 60, (4, 4)), delay=delay) for *ends, delay in links)
    names = dict.fromkeys(["a", *(target for _, target, _ in links)])
    populations = tuple(population(name, (4,), **(changed if name == "a" else {})) for name in names)
    return IntegerNetwork((4,), populations, connections, populations[-1].name, input_is_bias_of="a")


def mantissas(steps: int, samples: int) -> np.ndarray:
    return np.random.default_rng(steps).integers(-300, 900, (1, samples, 4)).astype(np.int16).repeat(steps, axis=0)


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("changed", [{}, {"reset": "soft", "floor": True, "bias_exp": 2}])
@pytest.mark.parametrize("links", [[], [("a", "b", 0)], [("a", "a", 1), ("a", "b", 0), ("b", "a", 2), ("a", "b", 3)]])
def test_every_sample_gets_its_input_as_bias(
    links: list[tuple[str, str, int]], changed: dict, steps: int, lanes: int
) -> None:
    network, inputs = biased(*links, **changed), mantissas(steps, 5)
    expected = reference.run(network, inputs, 5)
    assert steps < 3 or expected.spikes[network.output].any()
    got = models.run_scheduled(network, inputs, graph.Schedule(steps, 5, 5, lanes), "Sparse")
    assert_equal(expected, got)


def test_a_stock_neuron_holds_the_input_as_bias_without_a_synapse() -> None:
    network = biased(("a", "b", 0))
    made = graph.plan(network, graph.Schedule(3, 1), "Sparse", Path("."))
    assert {name: part.kind for name, part in made.parts.items() if not name.startswith("recorder")} == {
        INPUT: "BiasLoader",
        "neurons a": "LIFReset",
        "neurons b": "LIFReset",
        "synapse 0 a->b": "Dense",
    }
    assert graph.lags(network) == {INPUT: 0, "a": 1, "b": 2}


def test_the_longest_delay_arrives_at_its_step() -> None:
    network = chain(
        Connection(INPUT, "a", np.full((1, 1), 254)),
        Connection(INPUT, "a", np.full((1, 1), 254), delay=62),
        input_shape=(1,),
        decay_u=4095,
    )
    inputs = np.zeros((64, 2, 1), np.uint8)
    inputs[[0, 1, 2]] = 1
    expected = reference.run(network, inputs, 2)
    assert np.flatnonzero(expected.spikes["a"][:, 1]).tolist() == [0, 1, 2, 62, 63]
    assert_equal(expected, models.run(network, inputs, 2))


def test_a_skipped_level_is_a_step_of_extra_delay_without_a_gate() -> None:
    network = linked((INPUT, "a", 0), ("a", "b", 0), ("b", "c", 0), (INPUT, "c", 0), ("a", "c", 0))
    parts = graph.plan(network, graph.Schedule(9, 1), "Sparse", Path(".")).parts
    axons = {name: part.arguments for name, part in parts.items() if part.kind == "Axon"}
    assert {name: (axon["delay"], axon["layer_delay"]) for name, axon in axons.items()} == {
        "axon 1 input->c": (2, 0),
        "axon 2 a->c": (1, 0),
    }


@pytest.mark.parametrize(
    ("links", "lag"),
    [
        ([(INPUT, "a", 0), ("a", "b", 0), (INPUT, "b", 0)], {"a": 1, "b": 2}),
        ([(INPUT, "a", 0), ("a", "b", 1)], {"a": 1, "b": 1}),
        ([(INPUT, "a", 5), ("a", "b", 0)], {"a": 0, "b": 1}),
        # The delayed connection points to a population before it: "a" is put off until the spikes of "b" can come.
        ([(INPUT, "a", 0), (INPUT, "b", 0), ("b", "c", 0), ("c", "a", 1)], {"a": 2, "b": 1, "c": 2}),
    ],
)
def test_a_population_lags_by_what_its_connections_need(links: list[tuple[str, str, int]], lag: dict[str, int]) -> None:
    assert graph.lags(linked(*links)) == {INPUT: 0} | lag


def test_stock_processes_hold_whatever_is_recurrent_delayed_or_skips() -> None:
    network = linked((INPUT, "a", 0), ("a", "a", 1), ("a", "b", 0), ("b", "a", 2), (INPUT, "b", 0), ("a", "b", 1))
    parts = graph.plan(network, graph.Schedule(9, 1), "Sparse", Path(".")).parts
    kinds = {name: part.kind for name, part in parts.items() if not name.startswith(("recorder", "axon"))}
    assert kinds.pop(INPUT) == "Player"
    assert {kind for name, kind in kinds.items() if name.startswith("neurons")} == {"LIFReset"}
    assert [kind for name, kind in kinds.items() if name.startswith("synapse")] == ["Dense"] * 6
    plain = linked((INPUT, "a", 0), ("a", "b", 0))
    parts = graph.plan(plain, graph.Schedule(9, 1), "Sparse", Path(".")).parts
    assert "Axon" not in {part.kind for part in parts.values()}


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("network", "convolution", "words"),
    [
        (
            linked((INPUT, "a", 0), ("a", "b", 0), ("b", "a", 1), ("a", "c", 0)),
            "Sparse",
            ["the cycle", "a -> b", "b -> a", "delay of 1,", "total of 2", "engine"],
        ),
        (
            linked((INPUT, "a", 0), ("a", "b", 0), ("b", "c", 1), ("c", "a", 1), ("a", "a", 1)),
            "Sparse",
            ["the cycle", "a -> b", "b -> c", "c -> a", "delay of 2,", "total of 3", "engine"],
        ),
        (
            linked((INPUT, "a", 0), ("a", "b", 0), (INPUT, "b", 62)),
            "Sparse",
            ["input->b", "delay of 62", "2 levels", "63 extra steps", "at most 62", "engine"],
        ),
        (
            chain(Connection(INPUT, "a", np.full((1, 1, 1, 1), 2), padding=(50, 0)), input_shape=(1, 28, 28)),
            "Conv",
            ["input->a", "128", "127", "'Sparse'"],
        ),
        (
            chain(Connection(INPUT, "a", np.full((128, 1, 1, 1), 2), groups=128), input_shape=(128, 2, 2)),
            "Conv",
            ["input->a", "128", "127", "'Sparse'"],
        ),
        (chain(DENSE), "Spars", ["'Spars'", "Sparse"]),
    ],
)
def test_what_lava_would_silently_compute_otherwise_is_refused(
    network: IntegerNetwork, convolution: str, words: list[str]
) -> None:
    inputs = np.ones((20, 1, *network.input_shape), np.uint8)
    with pytest.raises(UserError) as refusal:
        models.run(network, inputs, convolution=convolution)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_a_current_that_the_network_refuses_would_differ() -> None:
    # The refusal of currents that could leave 32 bits is no mere caution.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IntegerNetwork, "_check_accumulator", lambda *_: None)
        network = chain(Connection(INPUT, "a", np.full((1, 100), 254), 7), input_shape=(100,), decay_u=0)
    inputs = np.ones((20, 1, 100), np.uint8)
    assert not np.array_equal(reference.run(network, inputs, 1).v["a"], models.run(network, inputs, 1).v["a"])


def test_catalogue_names_the_models_that_lava_itself_selects() -> None:
    from lava.magma.compiler.compiler_graphs import ProcGroupDiGraphs
    from lava.magma.core.run_configs import Loihi2SimCfg

    rng = np.random.default_rng(0)
    network = chain(
        Connection(INPUT, "a", 2 * rng.integers(-9, 9, (2, 1, 2, 2))),
        Connection("a", "b", 2 * rng.integers(-9, 9, (2, 2, 2, 2)), -1),
        Connection("b", "c", 2 * rng.integers(-9, 9, (3, 2))),
        Connection("c", "c", 2 * rng.integers(-9, 9, (3, 3)), delay=2),
        input_shape=(1, 3, 3),
    )
    soft = chain(DENSE, reset="soft")
    plans = [
        graph.plan(biased(("a", "b", 0)), graph.Schedule(3, 1), "Sparse", Path(".")),
        graph.plan(network, graph.Schedule(3, 1), "Conv", Path(".")),
        graph.plan(soft, graph.Schedule(3, 4, 1, lanes=2), "Sparse", Path(".")),
    ]
    seen = set()
    with compat.visiting(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for plan in plans:
            for process in assemble(plan).values():
                kind = type(process).__name__
                found = ProcGroupDiGraphs._find_proc_models(process)
                assert Loihi2SimCfg(select_tag="fixed_pt").select(process, found) is classes(kind)[1]
                seen.add(kind)
    assert seen == set(KINDS)


def test_lanes_are_chosen_where_one_sample_after_the_other_would_take_long() -> None:
    def wide(inputs: int) -> IntegerNetwork:
        lif = Population("a", (1,), decay_u=4095, decay_v=0, threshold_mant=9, bias_mant=0)
        return IntegerNetwork((inputs,), (lif,), (Connection(INPUT, "a", np.ones((1, inputs), int) * 2),), "a")

    assert graph.chosen_lanes(wide(9), steps=16, samples=360) == 1
    assert graph.chosen_lanes(wide(9), steps=16, samples=10_000) == 10_000
    assert graph.chosen_lanes(wide(1 << 12), steps=16, samples=10_000) == 64
    assert graph.chosen_lanes(wide(1 << 20), steps=16, samples=10_000) == 1


def test_sums_of_lanes_are_exact_in_the_type_that_multiplies_them() -> None:
    """Convolutions whose kernels sum to just below 2^15, from where on 16 bits wrap, and to it."""
    for last in (0, 2):
        weight = np.append(np.full(129, 254), last).reshape(1, 1, 10, 13)
        lif = Population("a", (1, 1, 1), decay_u=4095, decay_v=0, threshold_mant=131071, bias_mant=0)
        network = IntegerNetwork((1, 10, 13), (lif,), (Connection(INPUT, "a", weight),), "a")
        assert (weight.sum() < 1 << 15) == (last == 0)
        inputs = np.ones((2, 4, 1, 10, 13), np.uint8)
        got = models.run_scheduled(network, inputs, graph.Schedule(2, 4, 4, lanes=2), "Sparse")
        assert_equal(reference.run(network, inputs, states=4), got)


def test_model_runs_leave_nothing_in_lavas_registers() -> None:
    import logging

    from lava.magma.core.process.process import ProcessServer

    handlers, processes = len(logging.getLogger().handlers), len(ProcessServer().processes)
    models.run(chain(DENSE), np.ones((2, 1, 4), np.uint8))
    assert len(logging.getLogger().handlers) == handlers
    assert len(ProcessServer().processes) == processes


@pytest.mark.parametrize("method", ["fork", "spawn", None])
def test_lava_imports_whatever_start_method_is_set_and_leaves_it(method: str | None) -> None:
    code = f"""
import multiprocessing
if {method!r}: multiprocessing.set_start_method({method!r})
from deploy.lava import models, worker
assert multiprocessing.get_start_method(allow_none=True) == {method!r}
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(__file__).parents[1])
