"""The stages of a run, each a step from the files of the one before to its own.

    train     -> train/weights.safetensors, train/metrics.jsonl; of a model from elsewhere differences.json too
    quantize  -> quantize/network.npz, inputs.npz, float.npz, scales.json, fidelity.json, bounds.json
    deploy    -> deploy/recordings/<backend>.npz, deploy/chip.json
    verify    -> verdict.json
    ways      -> ways.json, of a model from elsewhere
    report    -> report.html, report.json

and one that only needs what train wrote:

    sensitivity -> quantize/sensitivity.md and its pictures, sensitivity.json

Each floor is imported by the stage that needs it: deploy, verify and report run where there is no torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

import numpy as np

from base.errors import UserError
from base.files import sha256_of, write_json, write_text
from deploy import BACKENDS
from run import building, chip
from run.config import Config
from run.files import (
    BOUNDS,
    CHIP,
    DIFFERENCES,
    FIDELITY,
    FLOAT,
    INPUTS,
    METRICS,
    NETWORK,
    REPORT,
    REPORT_JSON,
    SCALES,
    SENSITIVITY,
    SENSITIVITY_PAGE,
    SENSITIVITY_PICTURES,
    VERDICT,
    WAYS_MEASURED,
    WEIGHTS,
    Progress,
)
from run.folder import RunFolder

if TYPE_CHECKING:
    from deploy.lava.backend import LavaOptions
    from deploy.verify import Comparison
    from quantize.recording import Recording
    from run.sensitivity.search import Goal

COST_SAMPLES = 64  # on which each rounding is tried by itself
BOUNDED_SAMPLES = 64  # of the training part, whose states are told beside what is proven of them
SENSITIVITY_SAMPLES = 512  # on which widths are tried


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute something here, as far as they are installed."""
    found = {"python": python_version()}
    for package in ("spikeproof", "numpy", "numba", "torch", "snntorch", "onnx", "onnxruntime", "nir", "lava-nc"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def check(config: Config, before: Config | None, on_lava: bool) -> None:
    """Refuse before any work, and before it is stored, what a stage would refuse later.

    `before` is the configuration that the run had: where data, network and training are as they were, they need no
    torch to be checked again. `on_lava`: whether a target and an interpreter for Lava are needed now. Raises UserError.
    """
    from deploy.lava.backend import check_interpreter

    chip.chip_of(config)
    options = lava_options(config)
    if on_lava and "lava" in config.deploy.backends:
        check_interpreter(options)
    if before is None or replace(config, deploy=before.deploy, chip=before.chip) != before:
        from quantize.aware import check as check_aware
        from train.trainer import check

        network = building.network_of(config)
        if building.trains(config):
            check(network, building.training_of(config))
        config.quantize.check(stage.name for stage in network.stages if not stage.input_is_bias)
        if config.train.aware_epochs:
            check_aware(network, config.quantize)


def train(config: Config, folder: RunFolder, progress: Progress) -> bool:
    """Train the float network, or take that of a model as it is; True if there was something to do."""

    def work() -> None:
        from train.checkpoint import save_weights
        from train.trainer import fit

        if config.network.model:
            write_json(folder.path / DIFFERENCES, [asdict(difference) for difference in building.taken_of(config)[1]])
        if not building.trains(config):
            save_weights(building.network_of(config), folder.path / WEIGHTS)
            write_text(folder.path / METRICS, "")
            progress("train", 1, 1, "taken as it is")
            return

        def show(batch: dict[str, Any]) -> None:
            progress("train", *of_batch(batch))

        fit(*building.prepare(config), folder.path / "train", show, aware=building.aware(config))

    writes = [WEIGHTS, METRICS, *([DIFFERENCES] if config.network.model else [])]
    return folder.step("train", building.decides_training(config), [], writes, work)


def of_batch(batch: dict[str, Any]) -> tuple[int, int, str]:
    """How far a training is that tells of this batch: batches done, their total, and a note."""
    done = (batch["epoch"] - 1) * batch["batches"] + batch["batch"]
    note = f"epoch {batch['epoch']}/{batch['epochs']}, accuracy {batch['accuracy']:.1%}"
    return done, batch["epochs"] * batch["batches"], note


def quantize(config: Config, folder: RunFolder, progress: Progress) -> bool:
    """Turn the trained network into integers and write down what that cost; True if there was something to do."""
    weights = folder.require(WEIGHTS, "train")

    def work() -> None:
        from quantize import engine, held_out, integer_network, recording
        from quantize.bounds import certificate
        from quantize.bounds.proof import prove
        from quantize.calibration import calibrate
        from quantize.cost import rounding_costs
        from quantize.fidelity import fidelity
        from quantize.fold import check_alive
        from quantize.scales import assembled, input_biases, quantize_each
        from train.checkpoint import load_weights
        from train.encoding import encode_all
        from train.trainer import calibration_inputs, record

        encoding, network, dataset = (
            building.encoding_of(config),
            building.network_of(config),
            building.dataset_of(config),
        )
        test = dataset.test
        load_weights(network, weights)
        progress("quantize", 0, 5, "choosing integers")
        samples = calibration_inputs(dataset, encoding)
        layers = calibrate(network, samples, config.quantize)
        check_alive(layers, encoding.payload_bits)
        each = quantize_each(layers, encoding.payload_bits, config.quantize)
        integers, scales = assembled(layers, each, network.input_shape, encoding.payload_bits, config.quantize)
        shown = encode_all(test.values, encoding)
        held = held_out.HeldOut(input_biases(layers, integers, shown) if encoding.input_is_bias else shown, test.labels)
        progress("quantize", 1, 5, "proving ranges")
        seen = samples[:, :BOUNDED_SAMPLES].numpy()
        seen = input_biases(layers, integers, seen) if encoding.input_is_bias else seen
        bounds = prove(integers, seen, len(shown))
        progress("quantize", 2, 5, "float network on the held-out part")
        floats = recording.Recording("float", sha256_of(weights), held.hash, record(network, test, encoding))
        progress("quantize", 3, 5, "each rounding by itself")
        emitted = {name: raster[:, :COST_SAMPLES] for name, raster in floats.spikes.items()}
        costs = rounding_costs(layers, each, integers, shown[:, :COST_SAMPLES], emitted)
        first_rows = {row["population"]: row for row in reversed(scales)}
        for name, columns in costs.items():
            first_rows[name].update(columns)
        progress("quantize", 4, 5, "integer network on the held-out part")
        lost = fidelity(floats, engine.run(integers, held.inputs), test.labels, integers)
        integer_network.save(integers, folder.path / NETWORK)
        held_out.save(held, folder.path / INPUTS)
        recording.save(floats, folder.path / FLOAT)
        write_json(folder.path / SCALES, scales)
        write_json(folder.path / FIDELITY, lost)
        certificate.save(bounds, folder.path / BOUNDS)
        progress("quantize", 5, 5, "")

    decides = building.decides_integers(config)
    return folder.step("quantize", decides, [weights], [NETWORK, INPUTS, FLOAT, SCALES, FIDELITY, BOUNDS], work)


def sensitivity(config: Config, folder: RunFolder, progress: Progress, wanted: Goal, command: str) -> bool:
    """Measure how few bits each layer can do with, and choose widths for what is wanted; True if there was something to
    do. command: what the page says it was made by."""
    weights = folder.require(WEIGHTS, "train")
    uniform = replace(config.quantize, bits=8, per_layer={})
    decides = [*building.decides_network(config), asdict(uniform), SENSITIVITY_SAMPLES]

    def work() -> None:
        from quantize.recording import Recording, hash_of
        from quantize.sensitivity import Allocations
        from run.sensitivity import page
        from run.sensitivity.search import Shown, explore
        from train.checkpoint import load_weights
        from train.encoding import encode_all
        from train.trainer import calibration_inputs, record

        encoding, network, dataset = (
            building.encoding_of(config),
            building.network_of(config),
            building.dataset_of(config),
        )
        load_weights(network, weights)
        progress("sensitivity", 0, 1, "float network on the samples to choose by")
        part = dataset.train if dataset.validation is None else dataset.validation
        # Evenly spread: some data sets are sorted by class.
        places = np.linspace(0, len(part) - 1, min(SENSITIVITY_SAMPLES, len(part))).round().astype(int)
        samples = part[places]
        allocations = Allocations(network, calibration_inputs(dataset, encoding), config.quantize)
        inputs = allocations.inputs(encode_all(samples.values, encoding))
        floats = Recording("float", sha256_of(weights), hash_of(inputs), record(network, samples, encoding))
        shown = Shown(inputs, floats, samples.labels, "training" if dataset.validation is None else "validation")
        key = hash_of(np.frombuffer(json.dumps([decides, sha256_of(weights)]).encode(), np.uint8))
        numbers = explore(allocations, shown, wanted, folder.path / SENSITIVITY, key, progress)
        page.write(numbers, command, folder.path)

    writes = [SENSITIVITY, SENSITIVITY_PAGE, *SENSITIVITY_PICTURES]
    return folder.step("sensitivity", [decides, asdict(wanted)], [weights], writes, work)


def deploy(config: Config, folder: RunFolder, progress: Progress) -> bool:
    """Run the integer network on every backend of the configuration, and put it onto the chip's cores; True if there
    was something to do."""
    network_file, inputs_file = folder.require(NETWORK, "quantize"), folder.require(INPUTS, "quantize")
    options = lava_options(config)
    done = []
    for name in config.deploy.backends:
        file = recording_file(name)

        def work(name: str = name, file: str = file) -> None:
            from deploy import backends
            from quantize import held_out, integer_network, recording

            network = integer_network.load(network_file)
            held = held_out.load(inputs_file).first(config.deploy.samples)

            def show(steps: int, total: int) -> None:
                progress(f"deploy: {name}", steps, total, f"step {steps:,}/{total:,}")

            progress(f"deploy: {name}", 0, 1, "")
            ran = backends.run(name, network, held.inputs, config.deploy.states, options, show)
            recording.save(ran, folder.path / file)
            progress(f"deploy: {name}", 1, 1, "")

        decides: list[Any] = [config.deploy.samples, config.deploy.states]
        decides += [asdict(options)] if name.startswith("lava") else []
        done.append(folder.step(f"deploy: {name}", decides, [network_file, inputs_file], [file], work))
    done.append(chip.place(config, folder, progress, recording_file(config.deploy.backends[0])))
    return any(done)


def verify(config: Config, folder: RunFolder, progress: Progress) -> bool:
    """Check the bounds, compare all recordings pair by pair and write the verdict; True if there was something to do.

    Raises UserError for bounds that do not hold.
    """
    names = config.deploy.backends
    files = [folder.require(recording_file(name), "deploy") for name in names]
    of_floats = () if folder.is_adopted else (FLOAT, FIDELITY)
    reads = [folder.require(file, "quantize") for file in (NETWORK, INPUTS, BOUNDS, *of_floats)]
    reads.append(folder.require(CHIP, "deploy"))

    def work() -> None:
        recordings = {name: recording_of(folder, name) for name in names}
        pairs = list(combinations(names, 2))
        comparisons = []
        for done, (a, b) in enumerate(pairs):
            progress("verify", done, len(pairs), f"{a} against {b}")
            comparisons.append(compare(config, folder, recordings[a], recordings[b]))
        progress("verify", len(pairs), len(pairs), "")
        write_json(folder.path / VERDICT, _verdict(folder, recordings, comparisons) | {"range": _checked(folder)})

    return folder.step("verify", [list(names)], [*reads, *files], [VERDICT], work)


def compare(config: Config, folder: RunFolder, a: Recording, b: Recording) -> Comparison:
    """The Comparison of two Recordings of this run, its first divergence explained."""
    from deploy import backends
    from deploy.verify import compare, explain
    from quantize import held_out, integer_network

    network = integer_network.load(folder.require(NETWORK, "quantize"))
    comparison = compare(a, b, network.order)
    if comparison.first_divergence is None:
        return comparison
    held = held_out.load(folder.require(INPUTS, "quantize")).first(a.samples)

    def again(name: str, inputs: np.ndarray) -> Recording | None:
        return backends.run(name, network, inputs, 1, lava_options(config)) if name in BACKENDS else None

    return explain(network, held.inputs, comparison, a, b, again)


def recording_of(folder: RunFolder, name: str) -> Recording:
    """The recording of a backend of this run, or of a file."""
    from quantize import recording

    return recording.load(Path(name) if name.endswith(".npz") else folder.require(recording_file(name), "deploy"))


def ways(config: Config, folder: RunFolder, progress: Progress) -> bool:
    """Measure the ways to deploy a model on the held-out samples; True if there was something to do.

    Raises UserError for a network that is none from elsewhere.
    """
    if not config.network.model:
        raise UserError("ways: there is no network.model; only a network that was trained elsewhere has ways.")
    weights = folder.require(WEIGHTS, "train")

    def work() -> None:
        from run.ways import measure
        from train.checkpoint import load_weights
        from train.frameworks.stock import as_stock

        found = building.found_of(config.network, config.data, config.seed)
        networks = {"exact": found.network}
        converted, changes = as_stock(found.network)
        if changes:
            networks["converted"] = converted
        if building.trains(config):
            networks[building.deployed(config)] = building.network_of(config)
            load_weights(networks[building.deployed(config)], weights)

        def show(done: int, total: int) -> None:
            progress("ways", done, total, "")

        rows = measure(
            found, networks, building.dataset_of(config), building.encoding_of(config), config.quantize, show
        )
        write_json(folder.path / WAYS_MEASURED, rows)

    decides = [*building.decides_network(config), building.deployed(config), asdict(config.quantize)]
    return folder.step("ways", decides, [weights], [WAYS_MEASURED], work)


def tables_of_model(folder: RunFolder) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """How a model's neurons differ from ours, and the ways to deploy it as measured."""
    differences, measured = map(_json, _of_model(folder).values())
    return differences, measured


def _of_model(folder: RunFolder) -> dict[str, Path]:
    return {"differences": folder.require(DIFFERENCES, "train"), "ways": folder.require(WAYS_MEASURED, "ways")}


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def report(config: Config, folder: RunFolder, progress: Progress) -> bool:
    """Write the report of a verified run; True if there was something to do."""
    verdict_file = folder.require(VERDICT, "verify")
    names = config.deploy.backends
    files = [folder.require(recording_file(name), "deploy") for name in names]
    quantized = [folder.require(file, "quantize") for file in (NETWORK, INPUTS, FLOAT, SCALES, FIDELITY, BOUNDS)]
    metrics, on_chip = folder.require(METRICS, "train"), folder.require(CHIP, "deploy")
    of_model = _of_model(folder) if config.network.model else {}

    def work() -> None:
        from deploy.report import ReportData, write
        from deploy.verify import Comparison
        from quantize import held_out, integer_network, recording
        from quantize.bounds import certificate

        progress("report", 0, 1, "")
        found = verdict(folder)
        held = held_out.load(folder.path / INPUTS).first(config.deploy.samples)
        floats = recording.load(folder.path / FLOAT)
        ran = {name: raster[:, : len(held.labels)] for name, raster in floats.spikes.items()}
        recordings = {"float": replace(floats, inputs=held.hash, spikes=ran)}
        recordings |= {name: recording_of(folder, name) for name in names}
        data = ReportData(
            title=f"{config.data.dataset}, {config.network.model or config.network.architecture}",
            config=asdict(config),
            network=integer_network.load(folder.path / NETWORK),
            inputs=held.inputs,
            labels=held.labels,
            class_names=[str(label) for label in range(int(held.labels.max()) + 1)],
            recordings=recordings,
            comparisons=[Comparison.from_json(stored) for stored in found["comparisons"]],
            accuracy=found["accuracy"],
            fidelity=json.loads((folder.path / FIDELITY).read_text(encoding="utf-8")),
            scales=json.loads((folder.path / SCALES).read_text(encoding="utf-8")),
            bounds=certificate.summary(certificate.load(folder.path / BOUNDS)),
            range=found["range"],
            seconds=folder.seconds(),
            versions=found["versions"],
            chip=_json(on_chip),
            training=[json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()],
            **{name: _json(file) for name, file in of_model.items()},
        )
        write(data, folder.path)
        progress("report", 1, 1, "")

    reads = [verdict_file, metrics, on_chip, *quantized, *files, *of_model.values()]
    return folder.step("report", asdict(config), reads, [REPORT, REPORT_JSON], work)


def verdict(folder: RunFolder) -> dict[str, Any]:
    """The verdict of a verified run. Raises UserError where there is none."""
    return dict(json.loads(folder.require(VERDICT, "verify").read_text(encoding="utf-8")))


def adopt(folder: RunFolder, network: Path, inputs: Path) -> bool:
    """Take a network (.npz, .onnx or .nir) and its inputs from files, in place of quantizing; True if they are new.

    Raises UserError for a folder that trains its own network, and for files that are refused or do not fit each other.
    """
    if (folder.path / WEIGHTS).exists():
        raise UserError(
            f"{folder.path} has a network of its own; give a network from a file another folder with --out."
        )
    for path in (network, inputs):
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; --network and --inputs name existing ones.")

    def work() -> None:
        from quantize import held_out, integer_network
        from quantize.bounds import certificate
        from quantize.bounds.proof import prove

        if network.suffix == ".onnx":
            from deploy.onnx.files import load
        elif network.suffix == ".nir":
            from deploy.nir.files import load
        else:
            from quantize.integer_network import load
        found = load(network)
        held = held_out.load(inputs)
        seen = found.check_inputs(held.inputs)[:, :BOUNDED_SAMPLES]
        integer_network.save(found, folder.path / NETWORK)
        held_out.save(held, folder.path / INPUTS)
        certificate.save(prove(found, seen, len(seen)), folder.path / BOUNDS)

    return folder.step("adopt", [BOUNDED_SAMPLES], [network, inputs], [NETWORK, INPUTS, BOUNDS], work)


def lava_options(config: Config) -> LavaOptions:
    from deploy.lava.backend import LavaOptions

    chosen = config.deploy
    return LavaOptions(chosen.target, chosen.lanes, chosen.deadline, chosen.python, chosen.convolution)


def recording_file(backend: str) -> str:
    return f"deploy/recordings/{backend}.npz"


def _checked(folder: RunFolder) -> dict[str, Any]:
    """What a run's bounds say, once every claim of theirs has been checked."""
    from quantize import integer_network
    from quantize.bounds import certificate
    from quantize.bounds.checker import check

    bounds = certificate.load(folder.path / BOUNDS)
    check(integer_network.load(folder.path / NETWORK), bounds)
    populations = {name: bounds.word(name) for name in bounds.answers}
    return {"answer": bounds.word(), "steps": bounds.steps, "populations": populations}


def ranges(folder: RunFolder) -> list[str]:
    """What is proven of the ranges of a quantized run, a sentence for each population."""
    from quantize.bounds import certificate

    return certificate.describe(certificate.load(folder.require(BOUNDS, "quantize")))


def _verdict(folder: RunFolder, recordings: dict[str, Recording], comparisons: list[Comparison]) -> dict[str, Any]:
    from quantize import held_out, integer_network, recording

    network = integer_network.load(folder.path / NETWORK)
    labels = held_out.load(folder.path / INPUTS).labels
    compared = next(iter(recordings.values())).samples

    def accuracy(ran: Recording) -> float:
        return float((recording.predictions(ran, network)[:compared] == labels[:compared]).mean())

    floats, of_all = None, None
    if not folder.is_adopted:
        floats = accuracy(recording.load(folder.path / FLOAT))
        of_all = json.loads((folder.path / FIDELITY).read_text(encoding="utf-8"))["accuracy"]
    return {
        "equal": all(comparison.equal for comparison in comparisons),
        "comparisons": [comparison.to_json() for comparison in comparisons],
        "accuracy": {
            "float": floats,
            "integer": accuracy(next(iter(recordings.values()))),
            "lava": accuracy(recordings["lava"]) if "lava" in recordings else None,
        },
        "samples": {"compared": compared, "held_out": len(labels)},
        "chip": chip.in_short(folder),
        "accuracy_of_all": of_all,
        "hashes": {
            "network": network.hash,
            "recordings": {name: ran.hash for name, ran in recordings.items()},
        },
        "versions": versions(),
        "seconds": folder.seconds(),
    }
