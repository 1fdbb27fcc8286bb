"""Few bits, layer by layer: what is measured is what the integers do, and the search finds what enumeration finds."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fold import BIASED, NETWORKS, biased, shown, trained_a_little
from test_pipeline import QUICK, ROOT, pipeline, refused

from quantize import engine, integer_network, reference
from quantize.calibration import calibrate
from quantize.fold import fold
from quantize.integer_network import IntegerNetwork
from quantize.precision import BITS, WITHOUT_SAMPLES, Precision
from quantize.recording import Recording, hash_of, predictions
from quantize.scales import quantize
from quantize.sensitivity import (
    Allocation,
    Allocations,
    Measure,
    Measured,
    best_within,
    descent,
    front,
    one_layer_at_a_time,
    smallest_reaching,
    stored_bits,
)
from run import building, files
from run.sensitivity import search
from train.network import SpikingNetwork

LABELS = np.arange(6) % 4


def recorded(network: SpikingNetwork, payload_bits: int) -> tuple[np.ndarray, Recording]:
    """Six samples, and what the float network emits for them."""
    inputs = shown(payload_bits)
    spikes = {name: raster.numpy() for name, raster in network.rasters(inputs).items()}
    return inputs.numpy(), Recording("float", "weights", hash_of(inputs.numpy()), spikes)


def allocations_of(network: SpikingNetwork) -> Allocations:
    return Allocations(network, shown(network.payload_bits), WITHOUT_SAMPLES)


@pytest.mark.parametrize("name", [*NETWORKS, *BIASED])
def test_an_allocation_is_the_network_that_quantize_makes_of_its_widths(name: str) -> None:
    if name in BIASED:
        network, samples = biased(name)
    else:
        notation, settings = NETWORKS[name]
        network, samples = trained_a_little(notation, "spikes", settings, 1).float(), shown(1)
    rng, precision = np.random.default_rng(0), Precision(per_channel=True)
    allocations = Allocations(network.float(), samples, precision)
    for _ in range(3):
        widths = {layer: BITS[rng.integers(len(BITS))] for layer in allocations.layers}
        mixed = replace(precision, per_layer=widths)
        made, _ = quantize(calibrate(network, samples, mixed), network.input_shape, network.payload_bits, mixed)
        assert allocations.network(widths).hash == made.hash


def test_memory_is_the_weights_at_their_widths_kernels_once() -> None:
    allocations = allocations_of(trained_a_little("4C3-AP2-8-R5-4", "spikes", {}, 1))
    widths: Allocation = {"conv1": 8, "dense2": "ternary", "recurrent3": 3, "dense4": 1}
    assert allocations.layers == list(widths)
    pooled = 8 * 4 * 8 * 8  # a dense layer behind pooling reads the map before it
    assert allocations.bytes(widths) == (4 * 3 * 3 * 8 + pooled * 2 + (5 * 8 + 5 * 5) * 3 + 4 * 5 * 1) / 8


@pytest.mark.parametrize("readout", ["spikes", "current"])
def test_what_is_measured_is_what_the_reference_does(readout: str) -> None:
    network = trained_a_little("4C3-MP2-12-4", readout, {"threshold": 0.4}, 1)
    allocations, (inputs, floats) = allocations_of(network), recorded(network, 1)
    widths: Allocation = {"conv1": 3, "pool2": 8, "dense3": "ternary", "dense4": 2}
    found = allocations.measure(widths, inputs, floats, LABELS)
    made, rows = quantize(fold(network), (1, 8, 8), 1, replace(WITHOUT_SAMPLES, per_layer=widths))
    ran = reference.run(made, inputs)
    shares = []
    for name in ("conv1", "pool2", "dense3"):
        shares.append((ran.spikes[name] != floats.spikes[name]).mean())
        drift = ran.spikes[name].mean() - floats.spikes[name].mean()
        assert found.populations[name] == {"differing_share": shares[-1], "rate_drift": drift}
    if readout == "spikes":
        shares.append((ran.spikes["dense4"] != floats.spikes["dense4"]).mean())
    else:
        currents = floats.spikes["dense4"].astype(float)
        off = ran.spikes["dense4"] / (64 * rows[-1]["scale"]) - currents
        shares.append(min(1.0, (off**2).mean() / currents.var()))
        assert 0 < shares[-1] < 1
    assert found.divergence == pytest.approx(np.mean(shares), rel=1e-12)
    predicted = predictions(ran, made)
    assert found.accuracy == (predicted == LABELS).mean()
    assert found.agreement == (predicted == predictions(floats, made)).mean()
    assert (found.allocation, found.bytes) == (widths, allocations.bytes(widths))


class Enumerated:
    """Every allocation of a network of one or two layers, measured."""

    def __init__(self, notation: str) -> None:
        network = trained_a_little(notation, "spikes", {"threshold": 0.4}, 1)
        self.allocations, (inputs, floats) = allocations_of(network), recorded(network, 1)
        layers = self.allocations.layers
        every = [dict(zip(layers, widths, strict=True)) for widths in itertools.product(BITS, repeat=len(layers))]
        self.all = [self.allocations.measure(widths, inputs, floats, LABELS) for widths in every]

    def measure(self, allocation: Allocation) -> Measured:
        (found,) = (found for found in self.all if found.allocation == allocation)
        return found


@pytest.fixture(scope="module", params=["4", "24-4", "R9-4"])
def enumerated(request: pytest.FixtureRequest) -> Enumerated:
    return Enumerated(request.param)


def test_the_front_is_all_that_nothing_beats(enumerated: Enumerated) -> None:
    for loss in (lambda found: found.divergence, lambda found: -found.accuracy):
        kept = front(enumerated.all, loss)
        assert kept == sorted(kept, key=lambda found: found.bytes)
        for found in enumerated.all:
            beaten = any(
                other.bytes <= found.bytes
                and loss(other) <= loss(found)
                and (other.bytes, loss(other)) != (found.bytes, loss(found))
                for other in enumerated.all
            )
            equal = [(other.bytes, loss(other)) for other in kept].count((found.bytes, loss(found)))
            assert equal == (0 if beaten else 1)


def test_the_descent_takes_the_cheapest_of_all_steps_down_to_one_bit(enumerated: Enumerated) -> None:
    layers = enumerated.allocations.layers
    path = list(descent(enumerated.measure, dict.fromkeys(layers, 8)))
    sizes = {"ternary": 2}
    assert len(path) == 7 * len(layers) + 1
    assert set(path[-1].allocation.values()) == {1}
    for above, below in itertools.pairwise(path):
        steps = [
            found
            for found in enumerated.all
            if sorted(
                sizes.get(above.allocation[layer], above.allocation[layer])
                - sizes.get(found.allocation[layer], found.allocation[layer])
                for layer in layers
                if found.allocation[layer] != above.allocation[layer]
            )
            == [1]
        ]
        prices = [(step.divergence - above.divergence) / (above.bytes - step.bytes) for step in steps]
        assert below in steps
        assert (below.divergence - above.divergence) / (above.bytes - below.bytes) == min(prices)


def searched(measure: Measure, layers: list[str]) -> list[Measured]:
    """All that a search without a goal measures."""
    singly = [measure(allocation) for allocation in one_layer_at_a_time(layers)]
    return [*singly, *descent(measure, dict.fromkeys(layers, 8))]


def test_no_choice_is_beaten_by_what_was_measured_or_by_one_layer_more(enumerated: Enumerated) -> None:
    measure, size, layers = enumerated.measure, enumerated.allocations.bytes, enumerated.allocations.layers
    known, sizes = searched(measure, layers), dict(zip(BITS, map(stored_bits, BITS), strict=True))

    def beside(found: Measured, by: int) -> list[Measured]:
        """Those in which one layer takes so many bits more."""
        return [
            other
            for other in enumerated.all
            if [sizes[other.allocation[layer]] - sizes[found.allocation[layer]] for layer in layers
                if other.allocation[layer] != found.allocation[layer]] == [by]
        ]  # fmt: skip

    for budget in np.linspace(size(dict.fromkeys(layers, 1)), size(dict.fromkeys(layers, 8)), 23):
        found = best_within(budget, measure, size, known)
        assert found.bytes <= budget
        rivals = [other for other in (*known, *beside(found, 1)) if other.bytes <= budget]
        assert found.divergence == min(rival.divergence for rival in (found, *rivals))
        if len(layers) == 1:
            assert found.divergence == min(other.divergence for other in enumerated.all if other.bytes <= budget)
    for accuracy in {found.accuracy for found in known}:
        found = smallest_reaching(accuracy, measure, known)
        assert found.accuracy >= accuracy
        rivals = [other for other in (*known, *beside(found, -1)) if other.accuracy >= accuracy]
        assert found.bytes == min(rival.bytes for rival in (found, *rivals))
        if len(layers) == 1:
            assert found.bytes == min(other.bytes for other in enumerated.all if other.accuracy >= accuracy)


@given(st.lists(st.lists(st.floats(0.001, 1), min_size=7, max_size=7), min_size=2, max_size=3))
@settings(max_examples=25, deadline=None)
def test_where_each_bit_less_costs_more_than_the_one_before_the_best_of_all_is_found(steps: list[list[float]]) -> None:
    """Layers of one size whose costs add up and are convex: marginal allocation is optimal there (Fox, "Discrete
    optimization via marginal analysis", Management Science 13(3), 1966)."""
    layers = [f"dense{place}" for place in range(len(steps))]
    costs = {layer: np.concatenate([[0.0], np.cumsum(sorted(step))]) for layer, step in zip(layers, steps, strict=True)}

    def measure(allocation: Allocation) -> Measured:
        lost = sum(float(costs[layer][8 - stored_bits(bits)]) for layer, bits in allocation.items())
        return Measured(allocation, size(allocation), lost, 1 - lost / 100, 1.0, {})

    def size(allocation: Allocation) -> float:
        return float(sum(map(stored_bits, allocation.values())))

    whole = [bits for bits in BITS if bits != "ternary"]
    every = [measure(dict(zip(layers, widths, strict=True))) for widths in itertools.product(whole, repeat=len(layers))]
    known = searched(measure, layers)
    for budget in range(len(layers), 8 * len(layers) + 1):
        best = min(found.divergence for found in every if found.bytes <= budget)
        assert best_within(budget, measure, size, known).divergence == pytest.approx(best, rel=1e-12)
    for accuracy in np.linspace(min(found.accuracy for found in every), 1, 9):
        smallest = min(found.bytes for found in every if found.accuracy >= accuracy)
        assert smallest_reaching(accuracy, measure, known).bytes == smallest


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a run"
    settings = ("--set", "data.validation=0.1", "--set", "deploy.backends=reference,engine")
    assert pipeline("train", "--out", out, *QUICK, *settings).returncode == 0
    return out


@pytest.fixture(scope="module")
def finished(trained: Path) -> Path:
    done = pipeline("sensitivity", "--out", trained, "--budget", "0.5KiB")
    assert done.returncode == 0, done.stderr
    return trained


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def told(run: Path) -> dict[str, Any]:
    return json.loads((run / files.SENSITIVITY).read_text())


@pytest.fixture
def runs_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> list[IntegerNetwork]:
    """The networks that the engine runs from here on."""
    ran, original = [], engine.run

    def counted(network: IntegerNetwork, inputs: np.ndarray) -> Recording:
        ran.append(network)
        return original(network, inputs)

    monkeypatch.setattr(engine, "run", counted)
    return ran


def test_widths_are_chosen_on_the_validation_part_within_the_budget(finished: Path) -> None:
    numbers = told(finished)
    assert (numbers["part"], numbers["samples"]) == ("validation", 142)
    assert numbers["layers"] == {"dense1": 64 * 16, "dense2": 16 * 10}
    fitting = [found for found in numbers["measured"] if found["bytes"] <= 512]
    assert numbers["chosen"]["divergence"] == min(found["divergence"] for found in fitting)
    assert numbers["chosen"] in fitting
    assert len(numbers["measured"]) >= 1 + 2 * 8 + 8
    assert all(set(found["populations"]) == {"dense1", "dense2"} for found in numbers["measured"])


def test_the_test_part_is_never_looked_at(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = building.dataset_of
    monkeypatch.setattr(building, "dataset_of", lambda config: replace(original(config), test=None))
    (run / files.SENSITIVITY).unlink()
    assert pipeline("sensitivity", "--out", run).returncode == 0


def test_the_printed_command_runs_the_chosen_widths(run: Path) -> None:
    done = pipeline("sensitivity", "--out", run, "--accuracy", "0.5")
    (line,) = [line for line in done.stdout.splitlines() if "per_layer" in line]
    assert line == told(run)["use"]
    assert line in (run / files.SENSITIVITY_PAGE).read_text()
    python = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT))}/pipeline.py"
    words = ["bash", "-c", line.replace("uv run pipeline.py", python)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    chosen = told(run)["chosen"]
    rows = json.loads((run / "quantize" / "scales.json").read_text())
    assert {row["population"]: row["bits"] for row in rows} == chosen["allocation"]
    assert sum(row["weights"] * stored_bits(row["bits"]) for row in rows) / 8 == chosen["bytes"]
    network = integer_network.load(run / "quantize" / "network.npz")
    assert [connection.weight.size for connection in network.connections] == [1024, 160]


def test_a_second_call_does_nothing_and_another_goal_measures_nothing_twice(
    run: Path, runs_of_the_engine: list[IntegerNetwork]
) -> None:
    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}

    first = pipeline("sensitivity", "--out", run, "--budget", "0.5 KiB")
    before = stamps()
    again = pipeline("sensitivity", "--out", run, "--budget", "512B")
    assert "unchanged" in again.stdout
    assert stamps() == before
    assert again.stdout.split("bits of dense1")[1] == first.stdout.split("bits of dense1")[1]
    assert runs_of_the_engine == []
    known = {tuple(found["allocation"].items()) for found in told(run)["measured"]}
    assert pipeline("sensitivity", "--out", run, "--budget", "0.7KiB").returncode == 0
    now = {tuple(found["allocation"].items()) for found in told(run)["measured"]}
    assert known <= now
    assert len(runs_of_the_engine) == len(now - known) < 8


def test_other_weights_are_measured_anew(run: Path, runs_of_the_engine: list[IntegerNetwork]) -> None:
    assert pipeline("sensitivity", "--out", run, "--set", "quantize.calibration=max").returncode == 0
    assert len(runs_of_the_engine) == len(told(run)["measured"])


def test_what_was_measured_before_a_stop_is_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, left = engine.run, [5]
    (run / files.SENSITIVITY).unlink()

    def stopping(network: IntegerNetwork, inputs: np.ndarray) -> Recording:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(network, inputs)

    monkeypatch.setattr(engine, "run", stopping)
    assert pipeline("sensitivity", "--out", run).returncode == 130
    kept = told(run)["measured"]
    assert len(kept) == 5
    left[0] = 10_000
    assert pipeline("sensitivity", "--out", run).returncode == 0
    assert 10_000 - left[0] == len(told(run)["measured"]) - 5
    assert told(run)["measured"][:5] == kept


def test_the_page_shows_every_layer_at_every_width(finished: Path) -> None:
    page = (finished / files.SENSITIVITY_PAGE).read_text()
    assert "142 samples of the validation part" in page
    by_key = {tuple(found["allocation"].values()): found for found in told(finished)["measured"]}
    assert f"| dense2 | {100 * by_key[8, 8]['divergence']:.3g} | {100 * by_key[8, 7]['divergence']:.3g} |" in page
    for name in files.SENSITIVITY_PICTURES:
        assert f"({Path(name).name})" in page
        drawing = ElementTree.parse(finished / name).getroot()
        words = " ".join("".join(text.itertext()) for text in drawing.iter("{http://www.w3.org/2000/svg}text"))
        assert ("dense1" in words) if "layers" in name else ("chosen" in words)


def test_a_network_whose_input_is_a_bias_counts_only_what_has_weights(tmp_path: Path) -> None:
    direct = ("--set", "data.encoding=direct", "--set", "data.direct=bias")
    assert pipeline("train", "--out", tmp_path, *QUICK, *direct).returncode == 0
    assert pipeline("sensitivity", "--out", tmp_path).returncode == 0
    assert told(tmp_path)["layers"] == {"dense2": 160}
    assert (told(tmp_path)["part"], told(tmp_path)["samples"]) == ("training", 512)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--budget", "24KB"), "--budget 24KB: is no size of memory; give a number of B, KiB or MiB, as 24KiB"),
        (("--budget", "-3KiB"), "is no size of memory"),
        (("--budget", "lots"), "is no size of memory"),
        (("--budget", "0.1KiB"), "--budget 102.4 B: the weights take at least 148 B, with 1 bit each"),
        (("--accuracy", "97"), "--accuracy 97: is no share of samples; give one above 0 and up to 1, as 0.97"),
        (("--accuracy", "nan"), "is no share of samples"),
        (("--accuracy", "0.9", "--budget", "1KiB"), "are two goals; give one of them"),
        (("--accuracy", "1"), "--accuracy 1: with 8 bits in every layer it is 0."),
    ],
)
def test_a_goal_that_cannot_be_meant_is_refused_in_one_sentence(run: Path, words: tuple[str, ...], says: str) -> None:
    assert says in refused("sensitivity", "--out", run, *words)


def test_a_run_that_was_not_trained_is_told_to(tmp_path: Path) -> None:
    assert "run 'pipeline.py train" in refused("sensitivity", "--out", tmp_path)


@pytest.mark.parametrize(("size", "text"), [(148.0, "148 B"), (1536.0, "1.5 KiB"), (3 * 2**20, "3 MiB")])
def test_sizes_are_told_in_their_own_units(size: float, text: str) -> None:
    assert search.size_text(size) == text
    assert search.goal(text, None).budget == size
