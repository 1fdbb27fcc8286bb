"""Decoded data sets as .npy files, mapped into memory: read once, then only where they are needed.

A folder per data set and options holds one file an array and, written last, contents.json: what the arrays were made
from and how long each file is. Without it, or where it tells of something else, the folder is made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from base.files import whole_file, write_json

FORMAT_VERSION = 1
CONTENTS = "contents.json"

Rows = dict[str, np.ndarray]


def stored(
    cache: Path, name: str, options: Sequence[Any], sources: Iterable[Path], read: Callable[[], Iterable[Rows]]
) -> tuple[Rows, str]:
    """The arrays that `read` gives piece by piece, each joined along its first axis, and a fingerprint of their making.

    They come from the cache if it has them, made from files of these names, lengths and times of change; otherwise
    `read` is called and its pieces are written one by one, so that the whole need not fit into memory.
    Raises UserError where the cache cannot be written, and what `read` raises.
    """
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(sources)]
    fingerprint = _hash([FORMAT_VERSION, name, list(options), files])
    place = Path(cache) / f"{name}-{_hash(list(options))[:8]}"
    arrays = _load(place, fingerprint)
    if arrays is None:
        (place / CONTENTS).unlink(missing_ok=True)
        _write(place, fingerprint, read())
        arrays = _load(place, fingerprint)
        assert arrays is not None
    return arrays, fingerprint


def _load(place: Path, fingerprint: str) -> Rows | None:
    try:
        contents = json.loads((place / CONTENTS).read_text(encoding="utf-8"))
        if contents["made_from"] != fingerprint:
            return None
        if any((place / file).stat().st_size != size for file, size in contents["files"].items()):
            return None
        return {Path(file).stem: np.load(place / file, mmap_mode="r") for file in contents["files"]}
    except (OSError, ValueError, KeyError):
        return None


def _write(place: Path, fingerprint: str, pieces: Iterable[Rows]) -> None:
    lengths: dict[str, int] = {}
    with ExitStack() as stack:
        open_files: dict[str, BinaryIO] = {}
        kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        for piece in pieces:
            for name, rows in piece.items():
                if name not in open_files:
                    beside = stack.enter_context(whole_file(place / f"{name}.npy"))
                    open_files[name] = stack.enter_context(open(beside, "wb"))
                    kinds[name], lengths[name] = (rows.dtype, rows.shape[1:]), 0
                    _header(open_files[name], *kinds[name], 0)
                assert (rows.dtype, rows.shape[1:]) == kinds[name]
                open_files[name].write(np.ascontiguousarray(rows).data)
                lengths[name] += len(rows)
        for name, file in open_files.items():
            file.seek(0)
            _header(file, *kinds[name], lengths[name])
            file.flush()
    files = {f"{name}.npy": (place / f"{name}.npy").stat().st_size for name in lengths}
    write_json(place / CONTENTS, {"made_from": fingerprint, "files": files})


def _header(file: BinaryIO, dtype: np.dtype[Any], row: tuple[int, ...], length: int) -> None:
    """NumPy leaves room in a header for the first axis to grow, so that it can be written again when that is known."""
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length, *row)}
    np.lib.format.write_array_header_1_0(file, fields)


def _hash(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()
