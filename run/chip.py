"""A run's network on the chip of its configuration."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from base.files import write_json
from run import building
from run.config import Config
from run.files import CHIP, INPUTS, NETWORK, WEIGHTS, Progress
from run.folder import RunFolder

if TYPE_CHECKING:
    from deploy.chip.limits import Chip


def chip_of(config: Config) -> Chip:
    """Raises UserError for one that is not there, or whose file is wrong."""
    from deploy.chip import limits

    return limits.load(config.chip.name)


def place(config: Config, folder: RunFolder, progress: Progress, recorded: str) -> bool:
    """Put the integers onto cores and count what a recording of theirs costs there; True if there was something to
    do."""
    chip = chip_of(config)
    reads = [folder.require(file, "deploy") for file in (NETWORK, INPUTS, recorded)]

    def work() -> None:
        from deploy.chip.summary import summary
        from quantize import held_out, integer_network, recording

        progress("deploy: chip", 0, 1, chip.name)
        network_file, inputs_file, recording_file = reads
        ran = recording.load(recording_file)
        inputs = held_out.load(inputs_file).first(ran.samples).inputs
        write_json(folder.path / CHIP, summary(integer_network.load(network_file), chip, ran, inputs))
        progress("deploy: chip", 1, 1, chip.name)

    return folder.step("deploy: chip", asdict(chip), reads, [CHIP], work)


def check(config: Config, folder: RunFolder) -> tuple[str, dict[str, Any]]:
    """What is checked, and the summary of it: the folder's integers, if this configuration made them or they were
    adopted, or what its architecture becomes without any training."""
    from deploy.chip.summary import summary
    from quantize import integer_network

    file, weights = folder.path / NETWORK, folder.path / WEIGHTS
    if folder.is_adopted or folder.is_done("quantize", building.decides_integers(config), [weights]):
        return str(file), summary(integer_network.load(file), chip_of(config))
    return "the architecture, untrained", summary(building.untrained(config), chip_of(config))


def in_short(folder: RunFolder) -> dict[str, Any]:
    """What a verdict tells of it."""
    from deploy.chip.findings import ERROR
    from deploy.chip.words import sentences, verdict

    told = json.loads((folder.path / CHIP).read_text(encoding="utf-8"))
    placed, split = told["placement"] or {}, told["split"] or {}
    return {
        "name": told["chip"],
        "fits": told["fits"],
        "words": verdict(told),
        "errors": sentences(told, ERROR),
        "cores": placed.get("cores"),
        "chips": placed.get("chips"),
        "parts_equal": split.get("equal"),
    }
