"""A comparison's missing cells, made in processes side by side, one process for each cell.

A process of its own gives a cell its own peak memory, and lets it die alone.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from run import files
from run.comparison.plan import Cell

# The last two are what an optimizer and the digits import when they are first made.
IMPORTED_ONCE = ("run.comparison.cell", "torch._dynamo", "sklearn.datasets")

Measured = dict[str, dict[str, Any]]  # what a cell's process found, by the cell's key


@dataclass(frozen=True)
class _Running:
    cell: Cell
    job: int
    process: BaseProcess


def load(cells: Iterable[Cell], folder: Path) -> Measured:
    """What is known of the cells that were made."""
    files = {cell.key: _folder(folder, cell) / "cell.json" for cell in cells}
    return {key: json.loads(file.read_text(encoding="utf-8")) for key, file in files.items() if file.is_file()}


def make(cells: Iterable[Cell], folder: Path, jobs: int, progress: files.Progress) -> dict[str, str]:
    """Make the cells that are not there yet, `jobs` at a time; a sentence for each that failed, by its key.

    Every cell's file is whole or not there, and a training that was stopped goes on after its last epoch.
    """
    wanted = {cell.key: cell for cell in cells}
    done = load(cells, folder)
    missing = [cell for key, cell in wanted.items() if key not in done]
    failed: dict[str, str] = {}
    running: dict[Connection, _Running] = {}
    free = list(range(jobs, 0, -1))
    # Processes are forked from one that has no threads, and has done once the imports that cost seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED_ONCE))
    try:
        while missing or running:
            while missing and free:
                cell, job = missing.pop(0), free.pop()
                ours, theirs = context.Pipe(duplex=False)
                given = (cell.config, _folder(folder, cell), theirs)
                process = context.Process(target=_work, args=given, daemon=True)
                process.start()
                theirs.close()
                running[ours] = _Running(cell, job, process)
            finished = len(wanted) - len(missing) - len(running)
            progress("compare", finished, len(wanted), f"{len(failed)} failed" if failed else "")
            for told in wait(list(running)):
                assert isinstance(told, Connection)
                at = running[told]
                try:
                    news = told.recv()
                except EOFError:
                    at.process.join()
                    if at.process.exitcode:
                        failed[at.cell.key] = _died(at.process.exitcode)
                    free.append(at.job)
                    del running[told]
                    continue
                if isinstance(news, str):
                    failed[at.cell.key] = news
                else:
                    steps, total, note = news
                    progress(f"job {at.job}", steps, total, f"{at.cell}: {note}")
        progress("compare", len(wanted), len(wanted), f"{len(failed)} failed" if failed else "")
    finally:
        for at in running.values():
            at.process.terminate()
        for at in running.values():
            at.process.join()
    return failed


def _died(status: int) -> str:
    if status < 0:
        return f"its process was ended by signal {-status}, as when memory runs out; try fewer --jobs."
    return f"its process ended with status {status}; what went wrong stands above."


def _folder(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / cell.key


def _work(*arguments: Any) -> None:
    from run.comparison.cell import work  # torch, for which this process has no need

    work(*arguments)
