"""How artefacts lie on disk: one `.npz` with a JSON header (as bytes), arrays, and the hash of both. No pickle.

NumPy alone reads it: `stored = np.load(path); json.loads(stored["header"].tobytes())`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np

from base.errors import UserError
from base.files import whole_file

Arrays = dict[str, np.ndarray]
Header = dict[str, Any]

FAST = 1  # zlib's level: NumPy's own, 6, takes five times as long for rasters and makes them a third smaller
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # bytes that this machine has


def content_hash(header: Header, arrays: Arrays) -> str:
    """SHA-256 over the header and the name, type, shape and bytes of every array."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def write(path: Path, header: Header, arrays: Arrays) -> None:
    """Write header and arrays whole. `header` holds "format" and "version", by which `read` knows the file."""
    sealed = header | {"sha256": content_hash(header, arrays)}
    stored: dict[str, Any] = {"header": np.frombuffer(json.dumps(sealed).encode(), np.uint8), **arrays}
    packed = io.BytesIO()  # a zip writer on a full disk would fail a second time, when it is closed
    with ZipFile(packed, "w", ZIP_DEFLATED, compresslevel=FAST) as archive:
        for name, array in stored.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    with whole_file(path) as beside:
        beside.write_bytes(packed.getbuffer())


def read(path: Path, kind: str, version: int, written_by: str) -> tuple[Header, Arrays]:
    """Header and arrays of a file of that format and version; `written_by` is the command that makes such a file.

    Raises UserError for a file that is missing, cut, foreign, of another version, or changed since it was written, and
    before any of it is unpacked for one that no memory holds.
    """
    path = Path(path)
    again = f"write it again with 'pipeline.py {written_by}'"
    try:
        with ZipFile(path) as packed:
            unpacked = sum(member.file_size for member in packed.infolist())
        if unpacked > MEMORY:
            raise UserError(
                f"{path}: unpacks to {unpacked:,} bytes, more than the {MEMORY:,} that this machine has; give a "
                "smaller one."
            )
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        header = json.loads(arrays.pop("header").tobytes())
        found = (header["format"], header["version"])
        claimed = header.pop("sha256")
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; 'pipeline.py {written_by}' writes it.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; {again}.") from error
    except Exception as error:  # foreign bytes make the zip and array readers raise almost anything
        raise UserError(f"{path}: is no whole {kind} file ({type(error).__name__}); {again}.") from error
    if found != (kind, version):
        raise UserError(f"{path}: is {found[0]} version {found[1]}; this program reads {kind} version {version}.")
    if claimed != content_hash(header, arrays):
        raise UserError(f"{path}: its content does not match the hash inside, it was changed; {again}.")
    return header, arrays


def malformed(path: Path, kind: str, error: Exception) -> UserError:
    """For a header that is intact and yet describes no artefact of its kind."""
    return UserError(f"{path}: its header describes no {kind} ({type(error).__name__}: {error}).")
