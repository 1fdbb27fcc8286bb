"""Where data sets are looked for, and what a user is told when one is not there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from base.errors import UserError

BESIDE = Path(__file__).parents[3] / "shared" / "data"  # beside the repository
DEBIAN = Path("/usr/share/datasets")


@dataclass(frozen=True)
class Places:
    """folder: the one given for this data set, or None to look in the usual places. cache: where decoded data and
    downloads go. pool: how many pixels (or channels) each way are summed into one, of event data."""

    folder: Path | None
    cache: Path
    pool: int = 1

    @property
    def downloads(self) -> Path:
        return self.cache / "downloads"


def data_root() -> Path:
    """The folder that has one folder for each data set: the environment's SPIKEPROOF_DATA, else shared/data beside."""
    return Path(os.environ.get("SPIKEPROOF_DATA") or BESIDE)


def looked_at(places: Places, usual: Sequence[Path]) -> list[Path]:
    """The folder that was given, or else the usual ones."""
    return [places.folder] if places.folder is not None else list(usual)


def find(name: str, places: Places, file: str, usual: Sequence[Path] = (), ways: str = "") -> Path:
    """The first folder that has `file`. Raises UserError naming what was looked for and where, and the way out."""
    looked = looked_at(places, [data_root() / name, *usual])
    for folder in looked:
        if (folder / file).exists():
            return folder
    where = ", ".join(str(folder) for folder in looked)
    raise UserError(
        f"data set '{name}': no {file} in {where}; " + (ways or "set data.folder to the folder that has it")
    )
