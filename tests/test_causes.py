"""A divergence is named for what it is: the wrong side comes from a second simulator, in plain Python integers."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from deploy import causes, verify
from quantize import reference
from quantize.integer_network import Connection, IntegerNetwork, Population
from quantize.recording import Recording, hash_of

DEPTH = {"hidden": 1, "output": 2}


def make_network(seed=0, reset="hard", floor=False, exponent=0, weight_max=40, payload_bits=1, **fields):
    random = np.random.default_rng(seed)

    def population(name, size):
        values = {
            "decay_u": 1200,
            "decay_v": 300,
            "threshold_mant": 60,
            "bias_mant": random.integers(-60, 120, size),
            "bias_exp": 3,
        } | fields
        return Population(name, (size,), reset=reset, floor=floor, **values)

    def connection(source, target, shape):
        return Connection(source, target, 2 * random.integers(-weight_max, weight_max + 8, shape), exponent)

    return IntegerNetwork(
        (6,),
        (population("hidden", 8), population("output", 4)),
        (connection("input", "hidden", (8, 6)), connection("hidden", "output", (4, 8))),
        "output",
        payload_bits,
    )


def make_inputs(samples=2, steps=24, seed=1, payload=1):
    return np.random.default_rng(seed).integers(0, payload + 1, (steps, samples, 6)).astype(np.uint8)


ROUND = {
    "towards zero": lambda x: int(x),
    "down": math.floor,
    "nearest": lambda x: math.floor(x + Fraction(1, 2)),
    "away": lambda x: math.ceil(x) if x > 0 else math.floor(x),
    "float32": lambda x: int(float(np.float32(int(x * 4096))) / 4096),
    "int32": lambda x: int(Fraction((int(x * 4096) + 2**31) % 2**32 - 2**31, 4096)),
}


OFF_THE_GRID = {
    "up": lambda w: 1,
    "down": lambda w: -1,
    "outward": lambda w: (w > 0) - (w < 0),
    "inward": lambda w: (w < 0) - (w > 0),
}


def wrong_backend(network, inputs, wrong="", rounding="towards zero", rounded="uv", population=None):
    """A backend of its own: scalar loops over Python integers and exact fractions; `wrong` names what it gets wrong."""
    steps, samples, _ = inputs.shape
    round_u, round_v = (ROUND[rounding if state in rounded else "towards zero"] for state in "uv")
    traces = {q: {p.name: np.zeros((steps, samples, p.size), np.int32) for p in network.populations} for q in "suv"}
    u = {p.name: [0] * p.size for p in network.populations}
    v = {p.name: [0] * p.size for p in network.populations}
    for sample in range(samples):
        if wrong != "uncleared":
            u = {p.name: [0] * p.size for p in network.populations}
            v = {p.name: [0] * p.size for p in network.populations}
        for step in range(-2 if wrong == "early bias" else 0, steps):
            layer = [int(x) for x in inputs[step, sample]] if step >= 0 else [0] * 6
            if wrong == "binary":
                layer = [min(x, 1) for x in layer]
            for p, c in zip(network.populations, network.connections, strict=True):
                if step < 0 and step < -DEPTH[p.name]:
                    layer = [0] * p.size
                    continue
                spikes, mistaken = [], population in (None, p.name)
                for i in range(p.size):
                    du, dv = int(p.decay_u), int(p.decay_v) + (wrong == "decay_v + 1")
                    threshold = int(p.threshold_mant) * 64
                    total = sum(int(w) * s for w, s in zip(c.weight[i], layer, strict=True))
                    if wrong == "halved":
                        total = sum(int(w) // 2 * s for w, s in zip(c.weight[i], layer, strict=True))
                    elif wrong in OFF_THE_GRID:
                        total = sum(
                            (int(w) + OFF_THE_GRID[wrong](int(w))) * s for w, s in zip(c.weight[i], layer, strict=True)
                        )
                    elif wrong == "int8":
                        total = sum(((int(w) + 128) % 256 - 128) * s for w, s in zip(c.weight[i], layer, strict=True))
                    if wrong == "shift truncates":
                        total = int(total * Fraction(2) ** c.exponent)
                    elif wrong == "each weight":
                        total = sum((int(w) >> -c.exponent) * s for w, s in zip(c.weight[i], layer, strict=True))
                    elif wrong != "no exponent":
                        total = math.floor(total * Fraction(2) ** c.exponent)
                    kept = 4096 - du - (0 if wrong == "no offset" else 1)
                    current = round_u(Fraction(u[p.name][i] * kept, 4096)) + total * 64
                    if wrong == "saturating u":
                        current = max(-(2**23) + 1, min(2**23 - 1, current))
                    elif wrong != "no wrap":
                        current -= 2**24 if current > 2**23 else 0
                        current += 2**24 if current <= -(2**23) else 0
                    bias = 0 if wrong == "no bias" else int(np.broadcast_to(p.bias_mant, p.shape)[i]) * 2**p.bias_exp
                    bias *= 64 if wrong == "bias by 6" else 1
                    if wrong == "bias in u":
                        current, bias = current + bias, 0
                    driven = u[p.name][i] if wrong == "old current" else current
                    voltage = round_v(Fraction(v[p.name][i] * (4096 - dv), 4096)) + driven + bias
                    soft = p.reset.startswith("soft") != (wrong == "reset")
                    late = p.reset.endswith("late") != (wrong == "when")
                    if late and v[p.name][i] > threshold:
                        voltage = voltage - threshold if soft else 0
                    if wrong == "v wraps":
                        voltage = (voltage + 2**23) % 2**24 - 2**23
                    elif wrong != "no saturation":
                        voltage = max(-(2**23) + 1, min(2**23 - 1, voltage))
                    if p.floor != (wrong == "floor"):
                        voltage = max(voltage, 0)
                    fires = voltage >= threshold if wrong == ">=" and mistaken else voltage > threshold
                    if wrong == "clears u" and fires:
                        current = 0
                    after = (voltage - threshold if soft else 0) if fires and not late else voltage
                    u[p.name][i], v[p.name][i] = current, after
                    spikes.append(int(fires))
                if step >= 0:
                    for quantity, values in (("s", spikes), ("u", u[p.name]), ("v", v[p.name])):
                        traces[quantity][p.name][step, sample] = values
                layer = spikes
    spikes = {name: trace.astype(np.uint8) for name, trace in traces["s"].items()}
    return Recording("other", network.hash, hash_of(inputs), spikes, traces["u"], traces["v"])


def cause_of(network, inputs, other):
    truth = reference.run(network, inputs, states=inputs.shape[1])
    comparison = verify.compare(truth, other, network.order)
    assert not comparison.equal, "the wrong rule changed nothing; the test needs another network"
    explained = verify.explain(network, inputs, comparison, truth, other, lambda backend, alone: None)
    return explained.first_divergence.cause


def test_second_simulator_without_a_mistake_equals_the_reference():
    late = (("hard-late", True, 0), ("soft-late", False, 0))
    for reset, floor, exponent in (("hard", False, 0), ("soft", True, -2), ("soft", False, 1), *late):
        network, inputs = make_network(reset=reset, floor=floor, exponent=exponent), make_inputs()
        truth = reference.run(network, inputs, states=3)
        assert verify.compare(truth, wrong_backend(network, inputs), network.order).equal


def test_unchanged_contract_run_equals_the_reference():
    network, inputs = make_network(exponent=-1), make_inputs()
    truth = reference.run(network, inputs[:, 1:2], states=1)
    run = causes.run(causes.CONTRACT, network, inputs, sample=1)
    assert verify.compare(truth, run, network.order).equal


@pytest.mark.parametrize(
    ("wrong", "options", "cause"),
    [
        pytest.param(
            ">=",
            {"decay_u": 4095, "decay_v": 0, "threshold_mant": 64, "bias_mant": 64, "bias_exp": 6, "weight_max": 1},
            "threshold is compared with >= instead of >",
            marks=pytest.mark.smoke,
        ),
        ("no offset", {}, "decay_u is used without its +1"),
        ("no wrap", {"exponent": 7, "weight_max": 100, "threshold_mant": 131071}, "u is not wrapped at 24 bits"),
        (
            "saturating u",
            {"exponent": 7, "weight_max": 100, "threshold_mant": 131071},
            "u saturates instead of wrapping",
        ),
        (
            "no saturation",
            {"exponent": 6, "weight_max": 100, "decay_v": 0, "threshold_mant": 131071},
            "v is not saturated at 24 bits",
        ),
        ("reset", {"reset": "hard"}, "the reset is soft (minus the threshold) where the network says hard"),
        ("reset", {"reset": "soft"}, "the reset is hard (to 0) where the network says soft"),
        ("reset", {"reset": "hard-late"}, "the reset is soft (minus the threshold) where the network says hard"),
        ("reset", {"reset": "soft-late"}, "the reset is hard (to 0) where the network says soft"),
        ("when", {"reset": "hard"}, "the reset comes in the step after the spike where the network says at once"),
        ("when", {"reset": "soft"}, "the reset comes in the step after the spike where the network says at once"),
        ("when", {"reset": "hard-late"}, "the reset comes at once where the network says in the step after the spike"),
        ("when", {"reset": "soft-late"}, "the reset comes at once where the network says in the step after the spike"),
        ("floor", {"floor": True}, "v has no floor at 0 where the network has one"),
        ("floor", {"floor": False}, "v has a floor at 0 where the network has none"),
        ("decay_v + 1", {}, "decay_v is used with a +1 as decay_u is"),
        ("clears u", {}, "u is cleared too when a neuron fires"),
        ("halved", {}, "weights are halved to fit 8 bits and the sum is not doubled"),
        ("int8", {"weight_max": 100}, "weights overflow 8 bits"),
        ("up", {}, "weights are off the even grid: each is 1 too high"),
        ("down", {}, "weights are off the even grid: each is 1 too low"),
        ("outward", {}, "weights are off the even grid: each but 0 is 1 too far from 0"),
        ("inward", {}, "weights are off the even grid: each but 0 is 1 too near to 0"),
        ("shift truncates", {"exponent": -3}, "a negative exponent rounds the sum towards zero instead of down"),
        (
            "v wraps",
            {"exponent": 6, "weight_max": 100, "decay_v": 0, "threshold_mant": 131071},
            "v wraps instead of saturating",
        ),
        ("no bias", {}, "the bias is missing"),
        ("bias by 6", {}, "the bias is shifted by 6, as activations are"),
        ("bias in u", {}, "the bias is added to u, which keeps a share of it, instead of to v"),
        ("early bias", {}, "the bias acts before a population's first step"),
        ("old current", {}, "v takes up the current of the step before"),
        ("no exponent", {"exponent": 2}, "the connection's exponent is ignored"),
        ("each weight", {"exponent": -2}, "the exponent shifts each weight instead of the sum"),
        ("binary", {"payload_bits": 2}, "graded input is read as binary"),
        ("uncleared", {}, "the state is not cleared between samples"),
    ],
)
def test_one_wrong_rule_is_named_and_no_other(wrong, options, cause):
    network = make_network(**options)
    inputs = make_inputs(payload=network.payload_max("input"))
    assert cause_of(network, inputs, wrong_backend(network, inputs, wrong)) == cause


@pytest.mark.parametrize(
    ("rounding", "rounded", "cause"),
    [
        ("down", "uv", "the decay of u and v is rounded down instead of towards zero"),
        ("down", "u", "the decay of u is rounded down instead of towards zero"),
        ("down", "v", "the decay of v is rounded down instead of towards zero"),
        ("nearest", "uv", "the decay of u and v is rounded to nearest instead of towards zero"),
        ("away", "uv", "the decay of u and v is rounded away from zero instead of towards it"),
        ("int32", "uv", "the decay of u and v overflows 32 bits, which cannot hold the product"),
    ],
)
def test_wrong_rounding_of_the_decay_is_named(rounding, rounded, cause):
    network = make_network(exponent=5, threshold_mant=6000) if rounding == "int32" else make_network(threshold_mant=200)
    inputs = make_inputs()
    assert cause_of(network, inputs, wrong_backend(network, inputs, rounding=rounding, rounded=rounded)) == cause


def test_product_in_float32_is_named():
    network, inputs = make_network(exponent=6, threshold_mant=60000), make_inputs(steps=40)
    other = wrong_backend(network, inputs, rounding="float32")
    assert cause_of(network, inputs, other) == (
        "the decay of u and v is computed in float32, which cannot hold the product"
    )


def test_recording_in_lavas_time_with_the_bias_acting_from_its_first_step_is_named():
    network, inputs = make_network(), make_inputs()
    lagging = tuple(replace(connection, delay=1) for connection in network.connections)
    run = reference.run(replace(network, connections=lagging), inputs, states=2)
    assert cause_of(network, inputs, replace(run, backend="other", network=network.hash)) == (
        "Lava's lag of one step per connection is not undone, and the bias acts before a population's first step"
    )


def test_recurrent_delay_one_step_too_long_is_named():
    network = make_network()
    back = Connection("output", "hidden", 2 * np.random.default_rng(4).integers(-40, 48, (8, 4)), delay=1)
    network = replace(network, connections=(*network.connections, back))
    longer = replace(network, connections=(*network.connections[:2], replace(back, delay=2)))
    inputs = make_inputs()
    run = reference.run(longer, inputs, states=3)
    other = replace(run, backend="other", network=network.hash)
    assert cause_of(network, inputs, other) == "a connection's delay is one step too long"


def test_state_that_meets_the_one_value_where_wraps_differ_is_told_from_twos_complement():
    # Four weights of -256, shifted by 7 and by 6, land u exactly on -2^23; the second neuron wraps like any other.
    weight = np.array([[-256, -256, -256, -256, 0], [254, 254, 254, 254, 254]])
    population = Population("output", (2,), *(np.array(x) for x in (4095, 4095, 131071, 0)))
    network = IntegerNetwork((5,), (population,), (Connection("input", "output", weight, exponent=7),), "output")
    inputs = np.ones((2, 1, 5), np.uint8)
    truth = reference.run(network, inputs, states=1)
    assert truth.u["output"].max() == 2**23
    u = np.where(truth.u["output"] == 2**23, -(2**23), truth.u["output"])
    v, spikes = truth.v["output"].copy(), truth.spikes["output"].copy()
    v[..., 0], spikes[..., 0] = -(2**23) + 1, 0
    other = Recording("other", network.hash, hash_of(inputs), {"output": spikes}, {"output": u}, {"output": v})
    assert cause_of(network, inputs, other).startswith("u wraps as two's complement")


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("late", "cause"),
    [
        ({"hidden": 1, "output": 2}, "Lava's lag of one step per connection is not undone"),
        ({"hidden": 1, "output": 1}, "Lava's lag of one step per connection is undone one step short"),
        ({"hidden": 0, "output": 1}, "Lava's lag is undone for the first connection only"),
    ],
)
def test_recording_in_lavas_time_is_named(late, cause):
    network, inputs = make_network(), make_inputs()
    truth = reference.run(network, inputs)
    spikes = {
        name: np.concatenate([np.zeros((lag, *trace.shape[1:]), np.uint8), trace])[: len(trace)]
        for name, trace in truth.spikes.items()
        for lag in [late[name]]
    }
    assert cause_of(network, inputs, replace(truth, backend="other", spikes=spikes, u={}, v={})) == cause


def test_input_one_step_late_and_early_are_named():
    network, inputs = make_network(), make_inputs()
    silence = np.zeros_like(inputs[:1])
    for moved, cause in (
        (np.concatenate([silence, inputs[:-1]]), "the input arrives one step late"),
        (np.concatenate([inputs[1:], silence]), "the input arrives one step early"),
    ):
        other = replace(wrong_backend(network, moved), inputs=hash_of(inputs))
        assert cause_of(network, inputs, other) == cause


def test_wrong_rule_in_one_population_alone_is_named_with_it():
    options = {"decay_u": 4095, "decay_v": 0, "threshold_mant": 32, "bias_mant": 0, "weight_max": 4}
    network, inputs = make_network(**options), make_inputs()
    other = wrong_backend(network, inputs, ">=", population="output")
    assert cause_of(network, inputs, other) == (
        "threshold is compared with >= instead of >, in population 'output' alone"
    )


def biased_by_input():
    """Two populations, the input being the first one's bias, and input for them."""
    network = make_network()
    hidden, output = network.populations
    network = IntegerNetwork(
        (8,), (replace(hidden, bias_mant=0), output), network.connections[1:], "output", input_is_bias_of="hidden"
    )
    return network, np.random.default_rng(3).integers(-200, 700, (1, 2, 8)).astype(np.int16).repeat(24, axis=0)


def test_unchanged_contract_run_takes_the_input_as_bias():
    network, inputs = biased_by_input()
    truth = reference.run(network, inputs[:, 1:2], states=1)
    assert truth.spikes["output"].any()
    assert verify.compare(truth, causes.run(causes.CONTRACT, network, inputs, sample=1), network.order).equal


def test_wrong_rules_about_the_input_as_bias_are_named():
    network, inputs = biased_by_input()
    hidden, output = network.populations
    for other, shown, cause in (
        (replace(network, populations=(replace(hidden, bias_exp=0), output)), inputs, "the bias exponent is ignored"),
        (network, np.zeros_like(inputs), "the bias is missing"),
    ):
        run = reference.run(other, shown, states=2)
        run = replace(run, backend="other", network=network.hash, inputs=hash_of(inputs))
        assert cause_of(network, inputs, run).startswith(cause)


def test_the_voltage_at_a_divergence_counts_the_input_as_bias():
    network, inputs = biased_by_input()
    truth = reference.run(network, inputs, states=2)
    spikes = {name: trace.copy() for name, trace in truth.spikes.items()}
    spikes["hidden"][0, 1, 2] ^= 1
    other = replace(truth, backend="other", spikes=spikes)
    explained = verify.explain(
        network, inputs, verify.compare(truth, other, network.order), truth, other, lambda *_: None
    )
    assert explained.first_divergence.voltage == int(inputs[0, 1, 2]) << 3


def test_departures_that_a_sample_cannot_tell_apart_are_all_named():
    # Without a bias, a silent step in front changes nothing but the time at which all is seen.
    network, inputs = make_network(bias_mant=0), make_inputs()
    truth = reference.run(network, inputs)
    spikes = {name: np.concatenate([np.zeros_like(trace[:1]), trace[:-1]]) for name, trace in truth.spikes.items()}
    assert cause_of(network, inputs, replace(truth, backend="other", spikes=spikes)) == (
        "the input arrives one step late or Lava's lag of one step per connection is undone one step short "
        "(2 departures that this sample cannot tell apart)"
    )


def test_single_flipped_spike_has_no_cause():
    network, inputs = make_network(), make_inputs()
    truth = reference.run(network, inputs)
    spikes = {name: trace.copy() for name, trace in truth.spikes.items()}
    spikes["hidden"][5, 1, 2] ^= 1
    assert cause_of(network, inputs, replace(truth, backend="other", spikes=spikes)) == ""


def test_every_departure_has_a_name_of_its_own():
    names = [departure.text for departure in causes.DEPARTURES]
    assert len(set(names)) == len(names)


def convolutional(seed=3):
    random = np.random.default_rng(seed)
    scalars = {"decay_u": 4095, "decay_v": 200, "threshold_mant": 150, "bias_mant": 0}
    arrays = {field: np.array(value) for field, value in scalars.items()}
    return IntegerNetwork(
        (1, 5, 4),
        (Population("conv", (2, 5, 4), **arrays), Population("output", (3,), **arrays)),
        (
            Connection("input", "conv", 2 * random.integers(-30, 90, (2, 1, 3, 3)), padding=(1, 1)),
            Connection("conv", "output", 2 * random.integers(-60, 90, (3, 40))),
        ),
        "output",
    )


def test_flipped_kernels_and_channels_last_are_named():
    network = convolutional()
    inputs = np.random.default_rng(5).integers(0, 2, (20, 2, 1, 5, 4)).astype(np.uint8)
    conv, dense = network.connections
    flipped = replace(conv, weight=conv.weight[:, :, ::-1, ::-1])
    last = replace(dense, weight=dense.weight.reshape(3, 5, 4, 2).transpose(0, 3, 1, 2).reshape(3, 40))
    for connections, cause in (
        ((flipped, dense), "kernels are flipped: convolution instead of cross-correlation"),
        ((conv, last), "a source is flattened with its channels last"),
    ):
        run = reference.run(replace(network, connections=connections), inputs)
        assert cause_of(network, inputs, replace(run, backend="other", network=network.hash)) == cause
