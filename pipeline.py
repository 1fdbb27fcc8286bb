"""The command line: train a spiking network, quantize it, deploy it to Lava, and prove that the spikes are equal.

pipeline.py                       the whole way on real digits, into runs/digits
pipeline.py deploy --lanes 64     one stage, from the files of the stage before
pipeline.py deploy --model my_module:net --data digits
                                  the whole way for a network that was trained elsewhere
pipeline.py check                 whether the network fits a chip, before any training or after it
pipeline.py sensitivity           how few bits each layer can do with
pipeline.py compare FILE          several ways to train, each from several seeds
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from base.errors import UserError
from base.files import write_text
from run import building, chip, exports, files, stages
from run import config as configuration
from run.config import Config
from run.folder import RunFolder

EXIT_EQUAL, EXIT_DIFFERENT, EXIT_REFUSED, EXIT_STOPPED = 0, 1, 2, 130

app = typer.Typer(
    help="Train a spiking network in PyTorch, turn it into integers, run it on Lava's simulator, and prove that every "
    "stage fires the same spikes. Without a command the whole way runs on real digits.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

Out = Annotated[Path, typer.Option("--out", help="The run's folder; every stage reads and writes there.")]
ConfigFile = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this annotation at run time, on Python 3.10 too
    typer.Option("--config", help="A TOML file, as in examples/. Default: the run folder's own, else the defaults."),
]
Settings = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set", help="Change one key: --set network.architecture=128-10. May be repeated.", metavar="KEY=VALUE"
    ),
]
Lanes = Annotated[Optional[int], typer.Option("--lanes", help="Samples that Lava runs side by side.")]  # noqa: UP045
Target = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--lava-target", help="loihi1-sim, loihi2-sim, loihi1-hardware or loihi2-hardware."),
]
Python = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--lava-python", help="The Python interpreter that has Lava, if it is another one."),
]

DEFAULT_OUT = Path("runs/digits")
PAGE_ONLY = ("seeds", "validation %", "rate", "in window", "s/epoch", "MiB")  # columns that a terminal has no room for

Command = Callable[..., int]


def command(work: Command) -> Command:
    """Register a command that returns its exit status; what a user can mend ends it with one sentence."""

    @app.command(name=work.__name__, help=work.__doc__)
    @functools.wraps(work)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            status = work(*args, **options)
        except UserError as error:
            errors.print(f"Error: {error}", markup=False, highlight=False, soft_wrap=True)
            status = EXIT_REFUSED
        except KeyboardInterrupt:
            errors.print("Stopped. What was finished is kept: the same command goes on from there.")
            status = EXIT_STOPPED
        raise typer.Exit(status)

    return work


@command
def run(
    out: Out = DEFAULT_OUT,
    config: ConfigFile = None,
    settings: Settings = None,
    lanes: Lanes = None,
    target: Target = None,
    python: Python = None,
) -> int:
    """All stages, one after the other. A run that was stopped goes on where it was. This is the default command."""
    return _whole_way(*_open(out, config, settings, lanes, target, python, on_lava=True))


@command
def train(out: Out = DEFAULT_OUT, config: ConfigFile = None, settings: Settings = None) -> int:
    """Train the float network; goes on after the last finished epoch."""
    chosen, folder = _open(out, config, settings)
    _stage(stages.train, chosen, folder)
    return EXIT_EQUAL


@command
def quantize(out: Out = DEFAULT_OUT, config: ConfigFile = None, settings: Settings = None) -> int:
    """Turn the trained network into integers: weights, biases, thresholds and decays as the chip holds them."""
    chosen, folder = _open(out, config, settings)
    _stage(stages.quantize, chosen, folder)
    _ranges(folder)
    return EXIT_EQUAL


@command
def deploy(
    out: Out = DEFAULT_OUT,
    config: ConfigFile = None,
    settings: Settings = None,
    lanes: Lanes = None,
    target: Target = None,
    python: Python = None,
    network: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--network", help="A network from elsewhere, .npz, .onnx or .nir, in place of a trained one."),
    ] = None,
    inputs: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--inputs", help="What that network is shown: an inputs.npz."),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--model", help="A module you trained elsewhere, my_module:net: all stages, from its import on."),
    ] = None,
    data: Annotated[Optional[str], typer.Option("--data", help="Of --model: its data set.")] = None,  # noqa: UP045
    way: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--way", help="Of --model: exact (default), or converted to neurons that stock Lava has."),
    ] = None,
    fine_tune: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--fine-tune", min=1, help="Of --model: train it so many epochs further first. Default: none."),
    ] = None,
) -> int:
    """Run the integers on the held-out samples: on the reference, the engine and Lava's simulator. Needs no torch."""
    if (network is None) != (inputs is None):
        raise UserError("deploy: --network and --inputs belong together; give both, or none for the run's own.")
    if model is None and (data, way, fine_tune) != (None, None, None):
        raise UserError("deploy: --data, --way and --fine-tune belong to --model; give it too, or leave them out.")
    if model is not None:
        if network is not None:
            raise UserError("deploy: --model and --network both name what to deploy; give one of them.")
        said = {"network.model": model, "data.dataset": data, "network.way": way, "train.epochs": fine_tune or 0}
        given = [f"{key}={value}" for key, value in said.items() if value is not None]
        return _whole_way(*_open(out, config, [*given, *(settings or [])], lanes, target, python, on_lava=True))
    chosen, folder = _open(out, config, settings, lanes, target, python, on_lava=True, trains=network is None)
    if network is not None and inputs is not None:
        stages.adopt(folder, network, inputs)
    _stage(stages.deploy, chosen, folder)
    return EXIT_EQUAL


@command
def check(
    out: Out = DEFAULT_OUT,
    config: ConfigFile = None,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything that is known, as JSON.")] = False,
) -> int:
    """Tell whether the network fits a chip (chip.name), before any training or after it. Writes nothing. Exit status 0
    only when it fits."""
    stored = out / "config.toml"
    chosen = configuration.read(config or (stored if stored.is_file() else None), settings or ())
    what, told = chip.check(chosen, RunFolder(out))
    if as_json:
        print(json.dumps(told))
    else:
        _chip(what, told)
    return EXIT_EQUAL if told["fits"] else EXIT_DIFFERENT


@command
def verify(
    a: Annotated[str, typer.Argument(help="A backend of the run, or a recording's file.")] = "",
    b: Annotated[str, typer.Argument(help="Another one.")] = "",
    out: Out = DEFAULT_OUT,
    config: ConfigFile = None,
    settings: Settings = None,
) -> int:
    """Compare spike by spike: every two backends of the run, or the two named. Exit status 0 only when equal."""
    chosen, folder = _open(out, config, settings)
    if not a and not b:
        _stage(stages.verify, chosen, folder)
        return _summary(folder)
    from deploy.verify import describe

    if not b:
        raise UserError(f"verify {a}: name two recordings, as in 'verify engine lava', or none for all of the run.")
    comparison = stages.compare(chosen, folder, *(stages.recording_of(folder, name) for name in (a, b)))
    console.print(describe(comparison), markup=False, highlight=False)
    return EXIT_EQUAL if comparison.equal else EXIT_DIFFERENT


@command
def ways(out: Out = DEFAULT_OUT, config: ConfigFile = None, settings: Settings = None) -> int:
    """Measure the ways to deploy a network that was trained elsewhere (network.model)."""
    chosen, folder = _open(out, config, settings)
    _stage(stages.ways, chosen, folder)
    _ways(chosen, folder)
    return EXIT_EQUAL


@command
def report(out: Out = DEFAULT_OUT, config: ConfigFile = None, settings: Settings = None) -> int:
    """Write report.html and report.json from a verified run."""
    chosen, folder = _open(out, config, settings)
    _stage(stages.report, chosen, folder)
    return EXIT_EQUAL


@command
def export(
    formats: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="onnx, nir, netx (integers; need no torch), onnx-float, nir-float. Default: all but netx, which "
            "holds few networks."
        ),
    ] = None,
    out: Out = DEFAULT_OUT,
    config: ConfigFile = None,
    settings: Settings = None,
) -> int:
    """Write the network for other tools, into the folder deploy/ of the run."""
    chosen, folder = _open(out, config, settings)
    with _bars() as show:
        exports.export(chosen, folder, show, formats or ())
    return EXIT_EQUAL


@command
def sensitivity(
    out: Out = DEFAULT_OUT,
    budget: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--budget", help="Choose the least divergence that fits so much memory: 24KiB, or of B or MiB."),
    ] = None,
    accuracy: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--accuracy", help="Choose the least memory that reaches this share: 0.97."),
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
) -> int:
    """Measure how few bits each layer of the trained network can do with, and choose mixed widths. Goes on where it
    was."""
    from run.sensitivity import page, search

    wanted = search.goal(budget, accuracy)
    chosen, folder = _open(out, config, settings)
    asked = ["--budget", budget] if budget is not None else [] if accuracy is None else ["--accuracy", f"{accuracy:g}"]
    words = shlex.join(["sensitivity", "--out", str(out), *asked])
    with _bars() as show:
        if not stages.sensitivity(chosen, folder, show, wanted, f"uv run pipeline.py {words}"):
            show("sensitivity", 1, 1, "done before, unchanged")
    numbers = page.load(out)
    for title, table in page.tables(numbers):
        _table(*table, title)
    if numbers["use"]:
        anew = ", its aware epochs trained anew" if chosen.train.aware_epochs else ""
        words = f"The whole way with the chosen widths{anew}:\n{numbers['use']}"
        console.print(words, markup=False, highlight=False, soft_wrap=True)
    console.print(f"Page: {out / files.SENSITIVITY_PAGE}", highlight=False)
    return EXIT_EQUAL


@command
def compare(
    file: Annotated[
        Path, typer.Argument(help="A TOML file with a section [compare], as examples/compare-digits.toml.")
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="The comparison's folder. Default: runs/ and the file's name."),
    ] = None,
    jobs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--jobs", min=1, help="Trainings side by side, of one thread each. Default: one for each core."),
    ] = None,
    settings: Settings = None,
) -> int:
    """Train by several methods from several seeds, run the integers of each, and compare. Goes on where it was."""
    from run.comparison import page, plan, workers
    from run.comparison.numbers import numbers

    chosen, folder = plan.read(file, settings or []), out or Path("runs") / file.stem
    plan.check(chosen)
    with _bars() as show:
        failed = workers.make(chosen.cells, folder, jobs or len(os.sched_getaffinity(0)), show)
    found = numbers(chosen, workers.load(chosen.cells, folder), failed)
    words = [str(file), *(word for setting in settings or [] for word in ("--set", setting))]
    written = page.write(found, f"uv run pipeline.py compare {shlex.join(words)}", folder)
    _comparison(*page.table(found))
    for failure in found["failed"]:
        errors.print(f"Failed: {failure['cell']}: {failure['reason']}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Page: {written}", highlight=False)
    if failed:
        return EXIT_REFUSED
    return EXIT_EQUAL if all(cell["reference"]["equal"] for cell in found["cells"]) else EXIT_DIFFERENT


def _open(
    out: Path,
    config: Path | None,
    settings: list[str] | None,
    lanes: int | None = None,
    target: str | None = None,
    python: str | None = None,
    on_lava: bool = False,
    trains: bool = True,
) -> tuple[Config, RunFolder]:
    """The configuration and the run folder; a configuration that can be run is written into the folder.

    trains: whether the run's network is its own, so that what is said of training it must hold.
    """
    stored = out / "config.toml"
    flags = {"lanes": lanes, "target": target, "python": python}
    given = [f"deploy.{key}={value}" for key, value in flags.items() if value is not None]
    source = config or (stored if stored.is_file() else None)
    chosen = configuration.read(source, [*(settings or []), *given])
    before = configuration.read(stored) if stored.is_file() else None
    if chosen != before or on_lava:
        stages.check(chosen, before if trains else chosen, on_lava)
    if chosen != before:
        write_text(stored, configuration.write(chosen, stages.versions()))
    console.print(f"Configuration: {source or 'the defaults'}; run folder: {out}", highlight=False)
    return chosen, RunFolder(out)


def _whole_way(config: Config, folder: RunFolder) -> int:
    """All stages, and what is to be told at the end; returns the exit status."""
    of_model = (stages.ways,) if config.network.model else ()
    work = (stages.train, stages.quantize, stages.deploy, stages.verify, *of_model, stages.report)
    did_something = [_stage(stage, config, folder) for stage in work]
    if not any(did_something):
        console.print("Nothing has changed since the last run: nothing was done.")
    if of_model:
        _ways(config, folder)
    return _summary(folder)


def _stage(stage: Callable[[Config, RunFolder, files.Progress], bool], config: Config, folder: RunFolder) -> bool:
    """Run one stage under progress bars; True if it had something to do."""
    with _bars() as show:
        did_something = stage(config, folder, show)
        if not did_something:
            show(stage.__name__, 1, 1, "done before, unchanged")
    return did_something


@contextmanager
def _bars() -> Iterator[files.Progress]:
    """Progress bars, one for each thing that the caller shows: what, done, total, a note."""
    note = TextColumn("{task.fields[note]}", markup=False)
    columns = (TextColumn("{task.description:20}"), BarColumn(), TimeElapsedColumn(), note)
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int, note: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, note="")
            bars.update(tasks[what], completed=done, total=total, note=note)

        yield show


def _summary(folder: RunFolder) -> int:
    """What is proven of ranges, and the verdict as a table; returns the exit status."""
    from deploy.verify import Comparison, describe

    _ranges(folder)
    verdict = stages.verdict(folder)
    table = Table(
        title="EQUAL" if verdict["equal"] else "DIFFERENT", title_style="bold green" if verdict["equal"] else "bold red"
    )
    for heading in ("compared", "samples", "spikes compared", "different"):
        table.add_column(heading, justify="left" if heading == "compared" else "right")
    for pair in verdict["comparisons"]:
        counts = (pair["samples"], pair["spikes_compared"], pair["spikes_different"])
        table.add_row(f"{pair['a']} = {pair['b']}", *(f"{count:,}" for count in counts))
    console.print(table)
    accuracy = Table()
    shown = [name for name, value in verdict["accuracy"].items() if value is not None]
    for heading in ("accuracy", *shown):
        accuracy.add_column(heading, justify="left" if heading == "accuracy" else "right")
    samples = verdict["samples"]
    of_rows = [(f"of {samples['compared']:,} compared samples", verdict["accuracy"])]
    if verdict["accuracy_of_all"] and samples["compared"] < samples["held_out"]:
        of_rows.append((f"of all {samples['held_out']:,} held-out samples, by the engine", verdict["accuracy_of_all"]))
    for title, values in of_rows:
        accuracy.add_row(title, *(f"{values[name]:.2%}" if name in values else "" for name in shown))
    console.print(accuracy)
    for pair in verdict["comparisons"]:
        if pair["first_divergence"]:
            console.print(describe(Comparison.from_json(pair)), markup=False, highlight=False)
    console.print(f"{verdict['chip']['words']} 'pipeline.py check' tells more.", highlight=False)
    page = folder.path / files.REPORT
    if page.is_file():
        console.print(f"Report: {page}", highlight=False)
    return EXIT_EQUAL if verdict["equal"] else EXIT_DIFFERENT


def _chip(what: str, told: dict[str, Any]) -> None:
    """Every rule, and where the populations are."""
    from deploy.chip import words

    _table(*words.rules(told), f"{told['chip']}: rules")
    if told["placement"]:
        _table(*words.cores(told), f"{told['chip']}: cores")
    console.print(f"Checked: {what}", highlight=False)
    console.print(words.report(told), markup=False, highlight=False, soft_wrap=True)


def _ranges(folder: RunFolder) -> None:
    for sentence in stages.ranges(folder):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _ways(config: Config, folder: RunFolder) -> None:
    """How a model's neurons differ from ours, and the ways to deploy it."""
    differences, measured = stages.tables_of_model(folder)
    if differences:
        table = Table(*differences[0], title="its neurons and ours")
        for difference in differences:
            table.add_row(*map(escape, difference.values()))
        console.print(table)
    cells = [[v if isinstance(v, str) else f"{v:.2%}" if v else "0" for v in row.values()] for row in measured]
    _table(list(measured[0]), cells, f"ways to deploy {config.network.model}")
    console.print(f"Deployed: {building.deployed(config)}.", highlight=False)
    if "converted" in {row["way"] for row in measured} and not building.trains(config):
        words = ["deploy", "--model", config.network.model, "--config", str(folder.path / "config.toml")]
        words += ["--way", "converted", "--fine-tune", "10", "--out", f"{folder.path}-converted"]
        text = f"Converted and trained further:\nuv run {shlex.join([sys.argv[0], *words])}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _comparison(headings: list[str], rows: list[list[str]]) -> None:
    """The columns of a comparison's table that say who is better; the page has them all."""
    shown = [place for place, heading in enumerate(headings) if heading not in PAGE_ONLY]
    _table([headings[place] for place in shown], [[row[place] for place in shown] for row in rows])


def _table(headings: list[str], rows: list[list[str]], title: str | None = None) -> None:
    """A table whose first column is words and whose others are numbers."""
    table = Table(title=None if title is None else escape(title))
    for place, heading in enumerate(headings):
        table.add_column(escape(heading), justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def main() -> None:
    """Run the command line. Exit status: 0 done (and equal), 1 different, 2 refused, 130 stopped."""
    words = sys.argv[1:]
    if not words or (words[0].startswith("-") and words[0] != "--help"):
        words = [run.__name__, *words]
    app(words, prog_name="pipeline.py")


if __name__ == "__main__":
    main()
