"""The page is whole, self-contained and harmless, says the verdict first, and its JSON twin holds the same numbers."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from base.errors import UserError
from deploy import pictures, report, verify
from deploy.chip import limits
from deploy.chip.summary import summary
from quantize import reference
from quantize.fidelity import fidelity
from quantize.integer_network import Connection, IntegerNetwork, Population, readout

HOSTILE = '<script>alert("1")</script> $\\frac{1$ 猫'


def make_network(random, hidden, channels):
    def population(name, shape, threshold):
        arrays = {"decay_u": 4095, "decay_v": 410, "threshold_mant": threshold}
        bias = random.integers(-200, 200, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        return Population(name, shape, **{k: np.array(x) for k, x in arrays.items()}, bias_mant=bias)

    def weights(shape, scale):
        return 2 * np.clip(np.rint(random.normal(0, scale, shape)), -128, 127).astype(int)

    return IntegerNetwork(
        (1, 8, 8),
        (
            population(hidden, (channels, 8, 8), 240),
            population("dense1", (128,), 700),
            population("output", (10,), 260),
        ),
        (
            Connection("input", hidden, weights((channels, 1, 3, 3), 42), padding=(1, 1)),
            Connection(hidden, "dense1", weights((128, channels * 64), 36), exponent=-1),
            Connection("dense1", "output", weights((10, 128), 40)),
        ),
        "output",
    )


def make_data(samples=40, steps=20, channels=4, different=True, hidden="conv1", names=None, **fields):
    """A random network with labels drawn near its own predictions; Lava differs in one spike, or in none."""
    random = np.random.default_rng(7)
    network = make_network(random, hidden, channels)
    rates = random.random((samples, 1, 8, 8)) * 0.6
    inputs = (random.random((steps, samples, 1, 8, 8)) < rates).astype(np.uint8)
    truth = reference.run(network, inputs, states=4)
    flips = {name: random.random(trace.shape) < 0.004 for name, trace in truth.spikes.items()}
    floating = {name: truth.spikes[name] ^ flip.astype(np.uint8) for name, flip in flips.items()}
    other = {name: trace.copy() for name, trace in truth.spikes.items()}
    if different:
        other[hidden][7:9, 2, 3, 2, 1] ^= 1
    lava = replace(truth, backend="lava", spikes=other, u={}, v={})
    float_run = replace(truth, backend="float", network="float", spikes=floating, u={}, v={})
    engine = replace(truth, backend="engine")
    labels = np.where(random.random(samples) < 0.9, truth.spikes["output"].sum(axis=0).argmax(-1), 3)
    comparisons = [verify.compare(truth, engine, network.order), verify.compare(engine, lava, network.order)]
    comparisons = [
        verify.explain(network, inputs, c, a, b, lambda *_: None)
        for c, a, b in zip(comparisons, (truth, engine), (engine, lava), strict=True)
    ]
    measured = fidelity(float_run, truth, labels, network)
    return report.ReportData(
        **{
            "title": "digits, 20 steps",
            "config": {"seed": 7, "data": {"name": "digits", "steps": steps}, "train": {"epochs": 12, "rate": 2e-3}},
            "network": network,
            "inputs": inputs,
            "labels": labels,
            "class_names": names or [str(i) for i in range(10)],
            "recordings": {"float": float_run, "reference": truth, "engine": engine, "lava": lava},
            "comparisons": comparisons,
            "accuracy": measured["accuracy"] | {"lava": measured["accuracy"]["integer"]},
            "fidelity": measured,
            "scales": [{"layer": "conv1", "scale": 118.25, "exponent": 0}, {"layer": "output", "clipped": 3}],
            "seconds": {"train": 41.2, "quantize": 0.8, "lava": 12.6, "report": 1.1},
            "versions": {"lava-nc": "0.10.0", "numpy": "2.3.5"},
            "bounds": [
                {
                    "population": name,
                    "quantity": quantity,
                    "answer": "undecided" if name == "output" and quantity == "v" else "proven",
                    "neurons": network[name].size,
                    "proven": network[name].size - (name == "output" and quantity == "v"),
                    "bound": [-limit // 2, limit // 3],
                    "observed": [-limit // 5, limit // 4],
                    "limit": [-limit, limit - 1],
                }
                for name in network.order
                for quantity, limit in (("activation", 1 << 15), ("u", 1 << 23), ("v", 1 << 23))
            ],
            "range": {
                "answer": "undecided",
                "steps": steps,
                "populations": {hidden: "proven", "dense1": "proven", "output": "undecided"},
            },
            "training": [
                {"epoch": e, "loss": 2.2 / e, "train_accuracy": 1 - 0.7 / e, "test_accuracy": 1 - 0.75 / e}
                for e in range(1, 13)
            ],
        }
        | fields
    )


@pytest.fixture(scope="module")
def different():
    return make_data()


def on_chip(data, name):
    return summary(data.network, limits.load(name), data.recordings["engine"], data.inputs)


def written(data, folder):
    page = report.write(data, folder)
    return page.read_text(encoding="utf-8"), json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def pair(different, tmp_path_factory):
    return written(different, tmp_path_factory.mktemp("report"))


@pytest.mark.smoke
def test_page_gives_the_verdict_the_place_and_both_sides(pair):
    html, twin = pair
    assert html.index('class="word">DIFFERENT') < html.index("Comparisons")
    assert "step <b>7</b>, neuron <b>(3, 2, 1)</b>" in html
    assert "simulator of lava-nc 0.10.0; nothing here ran on silicon" in html
    assert twin["verdict"]["word"] == "DIFFERENT"
    assert twin["verdict"]["spikes_different"] == 2
    assert twin["comparisons"][0]["equal"]
    assert twin["comparisons"][1]["first_divergence"]["neuron"] == [3, 2, 1]


def test_equal_and_uncompared_runs_say_so(tmp_path):
    data = make_data(different=False)
    html, twin = written(data, tmp_path)
    assert 'class="word">EQUAL' in html
    assert "First divergence" not in html
    assert twin["verdict"]["word"] == "EQUAL"
    html, _ = written(replace(data, comparisons=[]), tmp_path)
    assert 'class="word">NOT COMPARED' in html
    assert "Lava was not among the backends compared" in html


def test_time_weights_are_shown_and_decide_the_confusion(different, tmp_path):
    last_only = np.eye(20, dtype=int)[19] << 16
    data = replace(different, network=replace(different.network, time_weights=last_only))
    html, twin = written(data, tmp_path)
    assert "integers 0 to 65,536, where 65,536 is 1" in html
    assert twin["integers"]["time_weights"] == last_only.tolist()
    answers = data.recordings["reference"].spikes["output"][19].argmax(axis=-1)
    assert np.trace(twin["confusion"]["counts"]) == (answers == data.labels).sum()


def test_a_network_without_time_weights_shows_none(pair):
    html, twin = pair
    assert "time weights" not in html
    assert twin["integers"]["time_weights"] is None


def test_page_needs_nothing_but_itself(pair):
    html, _ = pair
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    sources = re.findall(r'<img src="([^"]*)"', html)
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert all(re.findall(r'<img src="[^"]*" alt="([^"]*)"', html))
    for source in sources:
        svg = base64.b64decode(source.partition(",")[2]).decode()
        assert not re.search(r'(href|src)="(?!#|data:)', svg)


def test_page_says_how_sure_the_agreement_is_and_what_the_distances_are(different, pair):
    html, twin = pair
    low, high = different.fidelity["agreement_interval"]
    assert f"(95 % confidence: {100 * low:.2f} to {100 * high:.2f} %)" in html
    for row in twin["fidelity"]["populations"].values():
        assert {"van_rossum", "victor_purpura", "rate_earth_mover", "differing_share"} <= set(row)
    assert "rate earth mover</th>" in html


def test_names_that_carry_markup_stay_text(tmp_path):
    data = make_data(
        samples=4,
        hidden="<b>&" + HOSTILE.replace("/", ""),
        names=[HOSTILE] * 10,
        title=HOSTILE,
        config={HOSTILE: HOSTILE, "inner": {"list": [HOSTILE, None]}},
        versions={HOSTILE: HOSTILE},
        scales=[{HOSTILE: HOSTILE}],
        training=[{"loss": 1.0, HOSTILE: HOSTILE}],
    )
    data = replace(data, chip=on_chip(data, "loihi1"))
    html, twin = written(data, tmp_path)
    assert "<script" not in html
    assert "<b>&<" not in html
    assert "&lt;script&gt;" in html
    assert twin["title"] == HOSTILE


def test_page_tells_the_chip_its_cores_and_what_an_inference_costs(tmp_path):
    data = make_data(samples=4, steps=6, different=False)
    html, twin = written(replace(data, chip=on_chip(data, "loihi1")), tmp_path)
    assert "Loihi 1: fits, on 1 core of 1 chip; by counting it takes at least 1." in html
    assert "Every core, filled as far as its fullest limit." in html
    assert "Loihi 1, pre-silicon constants: Davies et al. 2018, Table 2" in html
    assert "not to be compared with the chip" in html
    assert twin["chip"]["split"]["equal"]
    nowhere = limits.Chip("tiny", {"core.input_axons": limits.Limit(1, "a test", "given")})
    html, _ = written(replace(data, chip=summary(data.network, nowhere)), tmp_path)
    assert "tiny: DOES NOT FIT; it has no place on any number of cores." in html
    assert "core.input_axons is 9, the limit 1, 8 too many" in html


def test_same_data_gives_the_same_bytes(different, pair, tmp_path):
    assert written(different, tmp_path) == pair


def test_page_of_a_full_test_set_stays_below_two_megabytes(tmp_path):
    page = report.write(make_data(samples=360, channels=16), tmp_path)
    assert page.stat().st_size < 2_000_000


def test_json_twin_holds_the_recorded_spikes_voltages_and_weights(different, pair):
    _, twin = pair
    sample = twin["rasters"]["sample"]
    assert sample == different.comparisons[1].first_divergence.sample == 2
    for raster in twin["rasters"]["populations"]:
        for backend, rows in raster["rows"].items():
            spikes = different.recordings[backend].spikes[raster["population"]][:, sample].reshape(20, -1).T
            assert np.array_equal(np.array([list(map(int, row)) for row in rows]), spikes[raster["neurons"]])
    for trace in twin["traces"]:
        index = (slice(None), sample, *trace["neuron"])
        truth = different.recordings["reference"]
        assert np.array_equal(trace["v"], truth.v[trace["population"]][index])
        fires = np.array(trace["voltage"]) > trace["threshold"]
        assert np.array_equal(fires, truth.spikes[trace["population"]][index].astype(bool))
    for histogram, connection in zip(twin["weights"], different.network.connections, strict=True):
        assert np.array_equal(
            np.repeat(histogram["values"], histogram["counts"]), np.sort(connection.weight, axis=None)
        )


def test_diverging_neuron_is_always_among_the_rows_shown(different, tmp_path):
    raster = report.numbers(different)["rasters"]["populations"][0]
    flat = int(np.ravel_multi_index((3, 2, 1), (4, 8, 8)))
    assert flat in raster["neurons"]
    assert len(raster["neurons"]) == len(set(raster["neurons"])) == report.RASTER_NEURONS < raster["size"]


def test_confusion_counts_each_sample_once(different):
    confusion = report.numbers(different)["confusion"]
    output = different.recordings["reference"].spikes["output"].sum(axis=0)
    counts = np.array(confusion["counts"])
    for true in range(10):
        for guess in range(10):
            expected = sum(
                label == true and int(np.argmax(row)) == guess
                for label, row in zip(different.labels, output, strict=True)
            )
            assert counts[true, guess] == expected


def test_absent_float_states_training_and_infinite_values_leave_a_whole_page(different, tmp_path):
    truth = replace(different.recordings["reference"], u={}, v={})
    data = replace(
        different,
        recordings={"engine": truth},
        comparisons=[],
        accuracy={},
        fidelity={},
        scales=[],
        seconds={},
        training=[{"loss": float("nan")}, {"loss": np.float32("inf")}, {"loss": 0.5}],
    )
    html, twin = written(data, tmp_path)
    assert html.rstrip().endswith("</html>")
    assert twin["training"][0]["loss"] is None
    assert twin["traces"] == []
    assert twin["anchor"] == "engine"


def test_reports_without_integer_recordings_or_with_other_labels_are_refused(different, tmp_path):
    with pytest.raises(UserError, match="no recording of the integer network"):
        report.write(replace(different, recordings={"float": different.recordings["float"]}), tmp_path)
    with pytest.raises(UserError, match="for 40 recorded samples"):
        report.write(replace(different, labels=np.zeros(3, int)), tmp_path)
    assert not any(tmp_path.iterdir())


def test_network_that_takes_its_input_as_bias_shows_the_voltages_that_it_gives(tmp_path):
    """Alone, without a connection, a neuron that starts at 0 reaches in its first step just what was loaded."""
    values = {"decay_u": 4095, "decay_v": 300, "threshold_mant": 90, "bias_mant": 0}
    output = Population("output", (10,), **{name: np.array(value) for name, value in values.items()}, bias_exp=2)
    network = IntegerNetwork((10,), (output,), (), "output", input_is_bias_of="output")
    inputs = np.random.default_rng(2).integers(-900, 1600, (1, 12, 10)).astype(np.int16).repeat(8, axis=0)
    truth = reference.run(network, inputs, states=2)
    labels = truth.spikes["output"].sum(axis=0).argmax(axis=-1)
    _, twin = written(
        make_data(
            network=network,
            inputs=inputs,
            labels=labels,
            recordings={"reference": truth},
            comparisons=[],
            fidelity={"accuracy": {}},
        ),
        tmp_path,
    )
    assert twin["integers"]["populations"][0]["bias"] == "the input"
    for trace in twin["traces"]:
        assert trace["voltage"][0] == int(inputs[0, 0, trace["neuron"][0]]) << 2


@pytest.mark.parametrize("layers", [1, 2])
def test_network_read_as_current_leaves_a_whole_page(layers, tmp_path):
    """The last layer has no neurons; with one layer nothing fires at all. Its confusion matrix counts the currents."""
    random = np.random.default_rng(2)
    hidden = Population("hidden", (10,), *(np.array(value) for value in (4095, 300, 90, 0)))
    weights = [2 * random.integers(-30, 40, (10, 10)) for _ in range(layers)]
    chain = [*(("hidden",) if layers == 2 else ()), "output"]
    connections = [Connection(*pair, w) for pair, w in zip(pairwise(["input", *chain]), weights, strict=True)]
    network = IntegerNetwork(
        (10,), (*((hidden,) if layers == 2 else ()), readout("output", (10,), 5)), tuple(connections), "output"
    )
    inputs = random.integers(0, 2, (8, 12, 10)).astype(np.uint8)
    truth = reference.run(network, inputs, states=2)
    other = {name: trace.copy() for name, trace in truth.spikes.items()}
    other["output"][3, 1, 4] += 64
    lava = replace(truth, backend="lava", spikes=other)
    comparison = verify.compare(truth, lava, network.order)
    comparison = verify.explain(network, inputs, comparison, truth, lava, lambda *_: None)
    assert (comparison.spikes_different, comparison.states_different, comparison.equal) == (0, 1, False)
    assert f"in current: reference reads {truth.spikes['output'][3, 1, 4]:,}, lava reads" in verify.describe(comparison)
    labels = truth.spikes["output"].sum(axis=0).argmax(axis=-1)
    floats = replace(truth, backend="float", spikes=truth.spikes | {"output": truth.spikes["output"] / 64.0})
    measured = fidelity(floats, truth, labels, network)
    assert measured["accuracy"] == {"float": 1.0, "integer": 1.0}
    assert list(measured["populations"]) == (["hidden"] if layers == 2 else [])
    runs = {"float": floats, "reference": truth, "lava": lava}
    data = make_data(network=network, labels=labels, recordings=runs, comparisons=[comparison], fidelity=measured)
    _, twin = written(data, tmp_path)
    assert np.trace(twin["confusion"]["counts"]) == 12
    assert twin["integers"]["populations"][-1]["threshold"] == "–"
    assert [row["population"] for row in twin["rates"]] == list(measured["populations"])


def test_the_page_tells_what_is_proven_of_ranges_and_what_is_not(pair):
    html, twin = pair
    assert "no input is known to overflow a register, and none is excluded" in html
    assert [row["quantity"] for row in twin["bounds"]["dense1"]] == ["activation", "u", "v"]
    assert twin["range"]["populations"]["output"] == "undecided"
    assert html.count("Proven and observed ranges of population") == 3


def test_a_proven_range_is_for_any_number_of_steps_unless_it_says_how_many(tmp_path):
    data = make_data(samples=4, different=False)
    data = replace(data, range=data.range | {"answer": "proven", "steps": None})
    assert "no input of any number of steps pushes" in written(data, tmp_path)[0]


@pytest.mark.parametrize("pairs", [[(1, 0, 314.0)], [(0, 1, 1.0), (1, 0, 1e5), (2, 0, 7.0)]])
def test_traffic_is_labelled_in_plain_numbers(pairs: list[tuple[int, int, float]]) -> None:
    drawn = base64.b64decode(pictures.traffic(pairs, 2, "spikes").partition(",")[2]).decode()
    assert "spikes" in drawn
    assert "mathdefault" not in drawn
