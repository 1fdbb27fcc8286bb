"""What the rules say of a network, and what a chip's file may say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_chip_placement import LOIHI1, changed, dense

from base.errors import UserError
from deploy.chip import limits
from deploy.chip.findings import DoesNotFit, Finding
from deploy.chip.limits import CHIPS, KEYS, Chip
from deploy.chip.placement import HINTS, place
from deploy.chip.rules import check, check_placement
from deploy.chip.summary import summary
from quantize.integer_network import INPUT, Connection, IntegerNetwork, Population, readout

LOIHI2 = limits.load("loihi2")


def one_neuron(**fields: object) -> Population:
    arrays = {"decay_u": 4095, "decay_v": 410, "threshold_mant": 100, "bias_mant": 5}
    return Population("a", (1,), **{k: np.asarray(v) for k, v in arrays.items()} | fields)  # type: ignore[arg-type]


def network(population: Population | None = None, payload_bits: int = 1, **connection: int) -> IntegerNetwork:
    joined = Connection(INPUT, "a", np.full((1, 2), 100), **connection)
    return IntegerNetwork((2,), (population or one_neuron(),), (joined,), "a", payload_bits)


def broken(network: IntegerNetwork, chip: Chip = LOIHI1) -> list[tuple[str, str]]:
    return [(found.rule, found.severity) for found in check(network, chip) if found.severity in ("error", "warning")]


@pytest.mark.smoke
def test_a_plain_network_breaks_no_rule() -> None:
    assert broken(network()) == []
    assert {found.severity for found in check_placement(place(network(), LOIHI1))} == {"ok", "unknown"}


@pytest.mark.parametrize(
    ("harmed", "rule", "severity"),
    [
        (network(one_neuron(reset="soft")), "network.resets", "error"),
        (network(one_neuron(reset="hard-late")), "network.resets", "error"),
        (network(payload_bits=4), "network.payload_bits", "error"),
        (network(one_neuron(threshold_mant=np.asarray(0))), "network.threshold_least", "error"),
        (network(one_neuron(bias_mant=np.asarray(-4096))), "network.bias_magnitude", "error"),
        (network(exponent=-8), "network.exponent_least", "warning"),
        (network(delay=10), "network.delay_of_full_core", "warning"),
    ],
)
def test_what_loihi_1_cannot_do_is_found_and_named(harmed: IntegerNetwork, rule: str, severity: str) -> None:
    assert (rule, severity) in broken(harmed)


def test_what_loihi_2_says_nothing_about_is_unknown_and_no_error() -> None:
    assert broken(network(one_neuron(reset="soft"), payload_bits=4), LOIHI2) == []
    found = {found.rule: found for found in check_placement(place(network(), LOIHI2))}
    assert found["core.input_axons"].severity == "unknown"
    assert found["core.input_axons"].value == 2
    assert not any(key.startswith(("energy", "time")) for key in LOIHI2.limits)


def test_an_activation_and_a_readout_that_could_leave_their_registers_are_warnings() -> None:
    wide = Connection(INPUT, "a", np.full((1, 1000), 254), exponent=3)
    fired = IntegerNetwork((1000,), (one_neuron(),), (wide,), "a")
    assert broken(fired) == [("network.activation_bits", "warning")]
    read = IntegerNetwork((1000,), (readout("a", (1,)),), (wide,), "a")
    assert ("network.state_bits", "warning") in broken(read)


def test_a_cycle_with_less_delay_than_connections_is_an_error_of_its_delay() -> None:
    two = [Population(name, (1,), *map(np.asarray, (4095, 0, 1, 0))) for name in ("a", "b")]
    ends = ((INPUT, "a", 0), ("a", "b", 0), ("b", "a", 1))
    joined = [Connection(source, target, np.array([[2]]), delay=delay) for source, target, delay in ends]
    (found,) = [f for f in check(IntegerNetwork((1,), tuple(two), tuple(joined), "b"), LOIHI1) if f.severity == "error"]
    assert found.rule == "network.delay"
    assert "raise its delays" in found.sentence
    told = summary(IntegerNetwork((1,), tuple(two), tuple(joined), "b"), LOIHI1)
    assert (told["fits"], told["placement"]) == (False, None)
    assert [row["rule"] for row in told["rules"] if row["severity"] == "error"] == ["network.delay"]


def test_more_chips_than_there_are_is_an_error() -> None:
    chip = changed(LOIHI1, core_neurons=16, chip_cores=2, chip_chips=3)
    (found,) = [f for f in check_placement(place(dense(8, 200, exponent=-3), chip)) if f.severity == "error"]
    assert (found.rule, found.value, found.limit) == ("chip.chips", 7, 3)
    assert found.sentence.startswith("network: chip.chips is 7, the limit 3, 4 too many; ")


@pytest.mark.parametrize("name", CHIPS)
def test_every_limit_of_a_chip_here_has_a_source_and_none_is_invented(name: str) -> None:
    for key, limit in limits.load(name).limits.items():
        assert limit.source
        assert limit.known in ("published", "quoted", "unknown"), key
    assert set(HINTS) <= set(KEYS)


def test_a_chip_of_ones_own_is_a_file_and_what_it_leaves_out_is_unknown(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\n[core]\nneurons = 100\nsynapse_bits = {value = 4096, source = "my data sheet"}\n')
    chip = limits.load(str(file))
    assert (chip.name, chip.value("core.neurons"), chip["core.neurons"].known) == ("mine", 100, "given")
    assert chip["core.synapse_bits"].source == "my data sheet"
    placement = place(dense(8, 200, exponent=-3), chip)
    assert len(placement.cores) == 4  # 1,600 weights of 8 bits
    severities: dict[str, str] = {found.rule: found.severity for found in check_placement(placement)}
    assert (severities["core.synapse_bits"], severities["core.input_axons"]) == ("ok", "unknown")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[core]\nneuron = 5\n", "unknown key 'core.neuron'; did you mean 'core.neurons'?"),
        ("[core]\nneurons = 1.5\n", "'core.neurons' is 1.5; it must be a whole number"),
        ("[core]\nneurons = 0\n", "'core.neurons' is 0; it must be a whole number above 0"),
        ("[core]\nneurons = {known = 'given'}\n", "'core.neurons' has no value; give one, or say known"),
        ("[core]\nneurons = {value = 3, from = 'x'}\n", "unknown key 'core.neurons.from'"),
        ("[core]\nneurons = {value = 3, known = 'sure'}\n", "'core.neurons.known' is 'sure'"),
        ("[synapse]\nkernels = 'twice'\n", "'synapse.kernels' is 'twice'"),
        ("[time]\nbarrier_ns = 3\n", "'time.barrier_ns' is 3; it must be a least and a most"),
        ("cores = 5\n", "unknown key 'cores'; a limit is a key of a section"),
        ("[core\n", "is not valid TOML"),
    ],
)
def test_a_wrong_chip_file_is_refused_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"wrong\.toml") as refused:
        limits.load(str(file))
    assert said in str(refused.value)


@pytest.mark.parametrize(("name", "said"), [("loihi3", "did you mean 'loihi"), ("none.toml", "cannot be read")])
def test_a_chip_that_is_not_there_is_refused(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        limits.load(name)


def test_a_finding_tells_the_place_the_value_the_limit_and_the_way_out() -> None:
    found = Finding("core.neurons", "error", "core 3", 1030, 1024, "a paper", "published", "use fewer neurons")
    assert found.sentence == "core 3: core.neurons is 1,030, the limit 1,024, 6 too many; use fewer neurons."
    found = Finding("network.threshold_least", "error", "population 'a'", 0, 1, "a tool", "published", "raise it")
    assert found.sentence == "population 'a': network.threshold_least is 0, the limit 1, 1 too few; raise it."


def test_a_chip_without_a_format_for_a_kernel_says_so() -> None:
    kernel = Connection(INPUT, "a", np.full((1, 1, 3, 3), 2))
    neurons = Population("a", (1, 2, 2), *map(np.asarray, (4095, 0, 100, 0)))
    with pytest.raises(DoesNotFit, match=r"core\.synapse_bits is more than any format of the chip can say, the limit"):
        place(IntegerNetwork((1, 4, 4), (neurons,), (kernel,), "a"), changed(LOIHI1, synapse_index_bits=[0]))
