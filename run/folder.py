"""The run folder's memory: which step was done from which inputs, so that a later call does only what is missing.

A step is done when steps.json holds its key (a hash of all that decides its result) and every file it wrote is still as
written. The entry is made last; whatever was killed before leaves a step that is simply not done.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base.errors import UserError
from base.files import sha256_of, write_json


@dataclass(frozen=True)
class RunFolder:
    path: Path

    def require(self, name: str, made_by: str) -> Path:
        """A file of an earlier stage. Raises UserError, naming the stage that writes it, where it is missing."""
        path = self.path / name
        if not path.is_file():
            raise UserError(f"{path} is missing; run 'pipeline.py {made_by} --out {self.path}' first.")
        return path

    def step(
        self, name: str, decides: Any, reads: Sequence[Path], writes: Sequence[str], work: Callable[[], None]
    ) -> bool:
        """Do `work` unless it was done already from the same `decides` (JSON data) and `reads`; True if done now."""
        key = self._key(name, decides, reads)
        if self._is_done(name, key):
            return False
        began = time.perf_counter()
        work()
        seconds = round(time.perf_counter() - began, 2)
        files = {file: sha256_of(self.path / file) for file in writes}
        write_json(self.path / "steps.json", self._steps() | {name: {"key": key, "seconds": seconds, "files": files}})
        return True

    def is_done(self, name: str, decides: Any, reads: Sequence[Path]) -> bool:
        """Whether the step was done from the same `decides` and `reads`, and what it wrote is still there."""
        return all(path.is_file() for path in reads) and self._is_done(name, self._key(name, decides, reads))

    @property
    def is_adopted(self) -> bool:
        """Whether the network was taken from a file, so that there is no float network to compare it with."""
        done = self._steps()
        return "adopt" in done and "quantize" not in done

    def seconds(self) -> dict[str, float]:
        """Seconds of each step's last run."""
        return {name: done["seconds"] for name, done in self._steps().items()}

    def _is_done(self, name: str, key: str) -> bool:
        done = self._steps().get(name)
        if done is None or done["key"] != key:
            return False
        return all(self._is_as_written(*item) for item in done["files"].items())

    @staticmethod
    def _key(name: str, decides: Any, reads: Sequence[Path]) -> str:
        read = [sha256_of(path) for path in reads]
        return hashlib.sha256(json.dumps([name, decides, read], sort_keys=True).encode()).hexdigest()

    def _is_as_written(self, file: str, digest: str) -> bool:
        path = self.path / file
        return path.is_file() and sha256_of(path) == digest

    def _steps(self) -> dict[str, Any]:
        path = self.path / "steps.json"
        if not path.exists():
            return {}
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); delete it, and every stage runs again.") from error
