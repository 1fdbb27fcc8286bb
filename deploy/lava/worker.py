"""The guarded child: `python -m deploy.lava.worker JOB_FOLDER` runs one job in Lava's simulator and ends its session.

It imports NumPy and Lava, never torch (which hangs in Lava's forked processes). On standard output it prints
`progress DONE TOTAL` lines and at last `finished`; tracebacks go to standard error. It never asks Lava to stop, which
may hang: done, failed or orphaned (standard input closed), it kills its whole session, itself included.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import deploy.lava.compat  # noqa: F401

# isort: split
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi1SimCfg, Loihi2SimCfg

from deploy.lava import session
from deploy.lava.catalogue import assemble, model_of
from deploy.lava.graph import Schedule, plan
from quantize.integer_network import load

RUN_CONFIGURATIONS = {"loihi1-sim": Loihi1SimCfg, "loihi2-sim": Loihi2SimCfg}
SECONDS_PER_BLOCK = 0.5
# A message is received within the step it is sent in; Lava's default of 64 slots can fill /dev/shm with wide lanes.
CHANNEL_SLOTS = 4


def main(folder: Path) -> None:
    threading.Thread(target=_end_when_orphaned, args=(folder,), daemon=True).start()
    # Lava's sockets go into the job folder, by a relative path: an absolute one can be too long for a socket.
    multiprocessing.current_process()._config["tempdir"] = "."  # type: ignore[attr-defined]
    try:
        job = json.loads((folder / "job.json").read_text())
        made = plan(load(folder / "network.npz"), Schedule(**job["schedule"]), job["convolution"], folder)
        processes = list(assemble(made).values())
        _start(processes, job["target"])
        _run(processes[0], made.total_steps)
        print("finished", flush=True)
    except BaseException:
        traceback.print_exc()
    session.end(os.getsid(0))


def _start(processes: list[AbstractProcess], target: str) -> None:
    # Named models spare Lava its search, which executes every file beside a process.
    models = {process: model_of(process) for process in processes}
    configuration = RUN_CONFIGURATIONS[target](select_tag="fixed_pt", exception_proc_model_map=models)
    processes[0].create_runtime(configuration, compile_config={"pypy_channel_size": CHANNEL_SLOTS})
    actors = processes[0].runtime._messaging_infrastructure.actors
    threading.Thread(target=_end_when_broken, args=(actors,), daemon=True).start()


def _run(process: AbstractProcess, total: int) -> None:
    """Run in blocks, the first of them small, of about SECONDS_PER_BLOCK each, and tell the progress after each."""
    done, block = 0, 1
    while done < total:
        started = time.monotonic()
        process.run(RunSteps(num_steps=min(block, total - done)))
        seconds = time.monotonic() - started
        done = min(done + block, total)
        print(f"progress {done} {total}", flush=True)
        block = max(1, min(8 * block, int(block * SECONDS_PER_BLOCK / seconds)))


def _end_when_orphaned(folder: Path) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    session.end(os.getsid(0))


def _end_when_broken(actors: list[Any]) -> None:
    """An exception in a model hangs Lava's `run` for ever, so that the models' processes are watched from here."""
    while True:
        for actor in actors:
            if actor.exception is not None:
                sys.stderr.write(actor.exception[1])
                session.end(os.getsid(0))
            if not actor.is_alive():
                sys.stderr.write(f"a process of Lava ended with exit code {actor.exitcode}\n")
                session.end(os.getsid(0))
        time.sleep(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
