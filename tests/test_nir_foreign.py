"""NIR graphs as other tools write them: what becomes of their nodes, what is told of the rest, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UserError
from deploy.nir import files, foreign
from deploy.onnx import floats as onnx_floats
from deploy.onnx.backend import executor, run_step
from deploy.onnx.graph import step_model
from quantize.integer_network import INPUT
from quantize.scales import quantize

DT = 1e-4  # snnTorch's


def real(*values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def alike(fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters of one shape, as NIR wants them."""
    return dict(zip(fields, np.broadcast_arrays(*fields.values()), strict=True))


def leaky(beta: float = 0.75, **changes: Any) -> nir.LIF:
    """As snnTorch writes a Leaky: one neuron for all, r = tau / dt."""
    tau = DT / (1 - beta) if beta < 1 else np.inf
    fields = {"tau": real(tau), "r": real(tau / DT), "v_leak": real(0), "v_threshold": real(1), "v_reset": real(0)}
    return nir.LIF(**alike(fields | changes))


def synaptic(alpha: float = 0.5, beta: float = 0.75, **changes: Any) -> nir.CubaLIF:
    tau_syn, tau_mem = DT / (1 - alpha), DT / (1 - beta)
    fields = {"tau_syn": real(tau_syn), "tau_mem": real(tau_mem), "r": real(tau_mem / DT), "v_leak": real(0)}
    fields |= {"v_threshold": real(1), "v_reset": real(0), "w_in": real(tau_syn / DT)}
    return nir.CubaLIF(**alike(fields) | changes)


def chain(path: Path, shape: tuple[int, ...], *nodes: nir.NIRNode, edges: Any = ()) -> Path:
    """A file of nodes "0", "1", ... in a row from the input to the output, and more edges."""
    names = ["input", *map(str, range(len(nodes))), "output"]
    ends = {"input": nir.Input(np.array(shape)), "output": nir.Output(np.array([1]))}
    row = list(pairwise(names))
    graph = nir.NIRGraph(ends | dict(zip(names[1:-1], nodes, strict=True)), [*row, *edges], type_check=False)
    files.save(graph, path)
    return path


def linear(rows: int, columns: int, seed: int = 0) -> nir.Linear:
    return nir.Linear(np.random.default_rng(seed).integers(-8, 9, (rows, columns)).astype(np.float32) / 8)


def conv(*shape: int, stride: Any = (1, 1), padding: Any = (0, 0), dilation: Any = (1, 1), groups: int = 1) -> Any:
    weight = np.random.default_rng(1).integers(-8, 9, shape).astype(np.float32) / 8
    bias = np.random.default_rng(2).integers(-8, 9, shape[0]).astype(np.float32) / 8
    return nir.Conv2d(None if groups == 0 else (8, 8), weight, stride, padding, dilation, groups, bias)


def ran(found: foreign.Foreign, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """What the layers emit, in float32."""
    step = onnx_floats.build(found.layers, found.input_shape)
    told = run_step(executor(step_model(step, onnx_floats.about(found.layers))), step, inputs)
    return {name.rsplit("/", 1)[0]: raster for name, raster in told.items() if name.endswith(("/spikes", "/current"))}


def inputs_of(*shape: int, steps: int = 12) -> np.ndarray:
    return (np.random.default_rng(3).random((steps, 2, *shape)) < 0.5).astype(np.uint8)


def what(found: foreign.Foreign, population: str) -> set[str]:
    return {row.what for row in found.differences if row.population == population}


def test_a_leaky_of_snntorch_fires_its_spikes(tmp_path: Path) -> None:
    """Weights and decay are multiples of powers of two, so that no sum rounds."""
    import snntorch

    weight = linear(5, 6)
    bias = real(0.125, -0.25, 0, 0.5, 0.25)
    path = chain(tmp_path / "x.nir", (6,), nir.Affine(weight.weight, bias), leaky())
    inputs = inputs_of(6)
    for reset, mechanism, delayed in (
        ("hard", "zero", False),
        ("hard", "zero", True),  # it clears what a Leaky keeps before anything arrives
        ("soft-late", "subtract", True),
    ):
        found = foreign.read(path, reset=reset)
        assert found.layers[0].reset == reset
        theirs = snntorch.Leaky(0.75, reset_mechanism=mechanism, reset_delay=delayed)
        membrane, expected = theirs.init_leaky(), []
        for shown in torch.from_numpy(inputs).float():
            spikes, membrane = theirs(shown @ torch.from_numpy(weight.weight).T + torch.from_numpy(bias), membrane)
            expected.append(spikes)
        assert np.array_equal(ran(found, inputs)["1"], torch.stack(expected).detach().numpy())
    assert what(found, "1") == {"reset", "tau"}
    assert what(found, "all") == {"dt"}


def test_a_synaptic_of_snntorch_fires_its_spikes(tmp_path: Path) -> None:
    import snntorch

    weight = linear(5, 6)
    found = foreign.read(chain(tmp_path / "x.nir", (6,), weight, synaptic()))
    theirs = snntorch.Synaptic(0.5, 0.75, reset_mechanism="zero", reset_delay=False)
    (current, membrane), expected = theirs.init_synaptic(), []
    inputs = inputs_of(6)
    for shown in torch.from_numpy(inputs).float():
        spikes, current, membrane = theirs(shown @ torch.from_numpy(weight.weight).T, current, membrane)
        expected.append(spikes)
    assert np.array_equal(ran(found, inputs)["1"], torch.stack(expected).detach().numpy())
    assert what(found, "1") == {"reset", "tau_syn", "tau_mem", "order"}


def test_a_recurrent_leaky_lies_in_a_graph_of_its_own(tmp_path: Path) -> None:
    """As snnTorch writes an RLeaky: what a population hears of itself comes a step late."""
    feedback = linear(5, 5, seed=4)
    inner = nir.NIRGraph(
        {
            "input": nir.Input(np.array([5])),
            "lif": leaky(),
            "w_rec": feedback,
            "output": nir.Output(np.array([5])),
        },
        [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")],
        type_check=False,
    )
    weight = linear(5, 6)
    found = foreign.read(chain(tmp_path / "x.nir", (6,), weight, inner))
    (layer,) = found.layers
    assert [(c.source, c.delay) for c in layer.connections] == [(INPUT, 0), ("1.lif", 1)]
    inputs, spikes, membrane = inputs_of(6), np.zeros((2, 5)), np.zeros((2, 5))
    for step, raster in enumerate(ran(found, inputs)["1.lif"]):
        membrane = 0.75 * membrane + inputs[step] @ weight.weight.T + spikes @ feedback.weight.T
        spikes = (membrane > 1).astype(np.float64)
        membrane = membrane * (1 - spikes)
        assert np.array_equal(raster, spikes)


@given(st.data())
@settings(max_examples=40)
def test_pooling_flattening_scaling_and_delays_go_into_the_connection(
    tmp_path_factory: Any, data: st.DataObject
) -> None:
    draw = data.draw
    pooled = draw(st.lists(st.sampled_from([nir.SumPool2d, nir.AvgPool2d]), max_size=2))
    pools = [pool(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])) for pool in pooled]
    size = 8 >> len(pools)
    scale, delay = draw(st.sampled_from([None, 0.5, 2.0])), draw(st.sampled_from([0, 1, 3]))
    before = [nir.Scale(np.full((2, size, size), scale, np.float32))] if scale else []
    before += [nir.Delay(np.full((2, size, size), delay * DT))] if delay else []
    kind = draw(st.sampled_from(["dense", "conv", "none"]))
    if kind == "dense":
        weights = [nir.Flatten({"input": np.array([2, size, size])}, 0, -1), linear(4, 2 * size * size)]
    else:
        stride, padding = draw(st.integers(1, 2)), draw(st.sampled_from([1, (0, 1), "valid"]))
        dilation = draw(st.integers(1, 1 if size == 2 else 2))
        options = {"stride": stride, "padding": (1, 1) if size == 2 else padding, "dilation": dilation}
        weights = [conv(3, 2, 2, 2, **options)] if kind == "conv" else []
    path = chain(tmp_path_factory.mktemp("nir") / "x.nir", (2, 8, 8), *pools, *before, *weights)
    inputs = inputs_of(2, 8, 8, steps=5)
    late = np.concatenate([np.zeros_like(inputs[:delay]), inputs[: len(inputs) - delay]])
    signal = torch.from_numpy(late.reshape(-1, 2, 8, 8)).float()
    for pool in pooled:
        signal = torch.nn.functional.avg_pool2d(signal, 2, divisor_override=1 if pool is nir.SumPool2d else None)
    signal = signal * (scale or 1)
    if kind == "dense":
        signal = signal.flatten(1) @ torch.from_numpy(weights[1].weight).T
    elif kind == "conv":
        weight, bias = torch.from_numpy(weights[0].weight), torch.from_numpy(weights[0].bias)
        signal = torch.nn.functional.conv2d(signal, weight, bias, **options)
    found = foreign.read(path)
    (layer,) = found.layers
    assert layer.neuron == "none"
    currents = ran(found, inputs)[layer.name].reshape(-1, *layer.shape)
    assert np.array_equal(currents, signal.numpy())


def test_padding_to_the_same_size(tmp_path: Path) -> None:
    path = chain(tmp_path / "x.nir", (2, 8, 8), conv(3, 2, 3, 5, padding="same"), leaky())
    assert foreign.read(path).layers[0].connections[0].geometry["padding"] == (1, 2)


def test_what_scales_a_current_goes_into_the_weights(tmp_path: Path) -> None:
    weight = linear(2, 3)
    bias = real(0.5, 0.25)
    node = leaky(r=real(2, 4), v_leak=real(1, 0), v_threshold=real(1, 2), tau=real(4e-4, 4e-4), v_reset=real(0, 0))
    found = foreign.read(chain(tmp_path / "x.nir", (3,), nir.Affine(weight.weight, bias), node))
    (layer,) = found.layers
    np.testing.assert_allclose(layer.connections[0].weight, weight.weight * [[0.5], [0.5]], rtol=1e-6)
    np.testing.assert_allclose(layer.bias, [0.5 * 0.5 + 0.25, 0.25 * 0.5], rtol=1e-6)
    assert layer.threshold == 1
    assert what(found, "1") == {"reset", "tau", "v_leak", "gain", "v_threshold"}


def test_a_bias_that_enters_a_filtered_current_becomes_what_it_settles_to(tmp_path: Path) -> None:
    path = chain(tmp_path / "x.nir", (3,), nir.Affine(linear(2, 3).weight, real(0.5, 1)), synaptic(alpha=0.5))
    found = foreign.read(path)
    np.testing.assert_allclose(found.layers[0].bias, [1, 2], rtol=1e-6)
    assert "bias" in what(found, "1")


@pytest.mark.parametrize(("r", "gain"), [(1.0, 1.0), (1 / DT, 1.0), (0.5 / DT, 0.5)])
def test_integrators_count_per_step_or_per_second(r: float, gain: float, tmp_path: Path) -> None:
    weight = linear(2, 3)
    node = nir.IF(r=real(r), v_threshold=real(1), v_reset=real(0))
    found = foreign.read(chain(tmp_path / "x.nir", (3,), weight, node))
    np.testing.assert_allclose(found.layers[0].connections[0].weight, gain * weight.weight, rtol=1e-6)
    assert found.layers[0].beta == 1
    assert ("r" in what(found, "1")) == (r == 1)


def test_another_dt_gives_other_decays(tmp_path: Path) -> None:
    path = chain(tmp_path / "x.nir", (3,), linear(2, 3), leaky(beta=0.75))
    assert foreign.read(path, dt=DT / 2).layers[0].beta == pytest.approx(0.875)
    assert foreign.read(path).layers[0].beta == pytest.approx(0.75)


def test_without_leak_time_constants_may_be_infinite(tmp_path: Path) -> None:
    found = foreign.read(chain(tmp_path / "x.nir", (3,), linear(2, 3), leaky(beta=1.0)))
    assert found.layers[0].beta == 1
    assert np.array_equal(found.layers[0].connections[0].weight, linear(2, 3).weight)


def test_a_network_from_elsewhere_goes_on_to_integers(tmp_path: Path) -> None:
    nodes = (conv(3, 1, 3, 3), leaky(), nir.Flatten({"input": np.array([3, 6, 6])}, 0, -1), linear(4, 108), synaptic())
    found = foreign.read(chain(tmp_path / "x.nir", (1, 8, 8), *nodes))
    network, _ = quantize(found.layers, found.input_shape, payload_bits=1)
    assert [(p.name, p.shape) for p in network.populations] == [("1", (3, 6, 6)), ("4", (4,))]
    assert np.array_equal(network["1"].decay_v, 1024)


LIF = leaky()
W = linear(3, 3)
REFUSED: dict[str, tuple[tuple[nir.NIRNode, ...], list[tuple[str, str]], str]] = {
    "a node of another kind": (
        (W, nir.LI(real(1), real(1), real(0))),
        [],
        "node '1' is a LI, which has no integer form",
    ),
    "a reset to something": ((W, leaky(v_reset=real(0.5))), [], "node '1', a LIF, has v_reset = 0.5"),
    "a decay of more than all": ((W, leaky(tau=real(DT / 2))), [], "has tau = 5e-05 s, no decay in steps of 0.0001 s"),
    "a negative time constant": ((W, leaky(tau=real(-1))), [], "has tau = -1 s, no decay"),
    "a time constant that is no number": ((W, leaky(tau=real(np.nan))), [], "has tau = nan s, no decay"),
    "a threshold of nothing": ((W, leaky(v_threshold=real(0))), [], "has thresholds of 0"),
    "weights that are not finite": (
        (nir.Linear(real([np.inf])), LIF),
        [],
        "node '0', a Linear, has numbers that are not",
    ),
    "weights behind weights": ((W, W, LIF), [], "node '1', a Linear, has weights, as has a node before it"),
    "another width": ((linear(3, 4), LIF), [], "node '0', a Linear, reads 4 values, but hears a shape of (3,)"),
    "a map that is none": ((conv(3, 2, 3, 3), LIF), [], "reads 2 channels, but hears a shape of (3,)"),
    "a cycle without neurons": ((W, LIF, W), [("2", "2")], "hears 2 nodes"),
    "sums before weights": ((W, LIF, W, LIF), [("input", "2")], "node '2', on the way to '3', hears 2 nodes"),
    "a cycle without delay": (
        (W, LIF, W, LIF, W),
        [("4", "1")],
        "has no delay; put a Delay of a step into it",
    ),
    "half a step of delay": ((nir.Delay(np.full(3, DT / 2)), W, LIF), [], "waits 0.5 steps of 0.0001 s"),
    "delays of their own": ((nir.Delay(real(0, DT, DT)), W, LIF), [], "waits 0..1 steps of 0.0001 s"),
    "an edge to nowhere": ((W, LIF), [("1", "9")], "edge '1' -> '9' joins a node that is not there"),
    "neurons that fit nothing": ((W, leaky(tau=real(4e-4, 4e-4))), [], "describes no whole network"),
    "a huge time of parameters": ((W, synaptic(w_in=np.ones((999, 1), np.float32))), [], "describes no whole network"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_here_is_refused_by_the_nodes_name(name: str, tmp_path: Path) -> None:
    nodes, edges, says = REFUSED[name]
    with pytest.raises(UserError) as caught:
        foreign.read(chain(tmp_path / "x.nir", (3,), *nodes, edges=edges))
    assert says in str(caught.value)
    assert str(tmp_path) in str(caught.value)


POOL = nir.SumPool2d(np.array([3, 3]), np.array([1, 1]), np.array([0, 0]))
HUGE = nir.SumPool2d(*(np.array([1 << 20, 1 << 20]), np.array([1 << 20, 1 << 20]), np.array([0, 0])))
REFUSED_MAPS = {
    "pooling that overlaps": ((1, 9, 9), (POOL, leaky()), "has kernel (3, 3), stride (1, 1)"),
    "pooling of a vector": ((9,), (POOL, leaky()), "pools a shape of (9,)"),
    "weights that pooling blows up": ((1, 1 << 20, 1 << 20), (HUGE, leaky()), "above the 67,108,864 that are made"),
    "an identity that no memory holds": ((1 << 20,), (leaky(),), "above the 67,108,864 that are made"),
    "an empty map": ((1, 4, 4), (conv(1, 1, 5, 5), leaky()), "would yield a shape of (1, 0, 0)"),
    "thresholds within a channel": (
        (1, 2, 1),
        (leaky(v_threshold=real([[1], [2]])),),
        "has 1..2 within a channel",
    ),
    "no input": ((0,), (leaky(),), "shape (0,) holds no input"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_MAPS)
def test_maps_that_have_no_meaning_here_are_refused(name: str, tmp_path: Path) -> None:
    shape, nodes, says = REFUSED_MAPS[name]
    with pytest.raises(UserError) as caught:
        foreign.read(chain(tmp_path / "x.nir", shape, *nodes))
    assert says in str(caught.value)


def test_a_missing_node_and_a_missing_output_are_told(tmp_path: Path) -> None:
    path = chain(tmp_path / "x.nir", (3,), W, LIF)
    with h5py.File(path, "a") as file:
        del file["node/nodes/output"]
        del file["node/edges"]
        file["node/edges"] = [["input", "0"], ["0", "1"]]
    with pytest.raises(UserError, match=r"the graph has 0 nodes of type Output"):
        foreign.read(path)
    with h5py.File(path, "a") as file:
        del file["node/edges"]
    with pytest.raises(UserError, match=r"describes no whole network \(KeyError: 'edges'\)"):
        foreign.read(path)


def test_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    path = chain(tmp_path / "x.nir", (3,), W, LIF)
    with pytest.raises(UserError, match="unknown reset 'subtract'"):
        foreign.read(path, reset="subtract")
    with pytest.raises(UserError, match="dt = 0"):
        foreign.read(path, dt=0)
