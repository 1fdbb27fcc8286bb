"""HDF5 files from anywhere, read as data alone: nothing outside the file is opened, no filter that is not HDF5's own is
loaded, no object is read twice, and nothing is read before its size is known."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from base.errors import UserError
from base.files import read_bytes

Tree = dict[str, Any]  # groups as dictionaries, datasets as NumPy arrays or scalars, text as str or lists of it

FILE_MAX = 1 << 28  # bytes
DATA_MAX = 1 << 29  # bytes of all datasets together, unpacked
OBJECTS_MAX = 1 << 16
DEPTH_MAX = 12
SIZE, INDEX = struct.Struct("<Q"), struct.Struct("<H")
HEAP_HEADER = OBJECT_HEADER = 16  # bytes
FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF)


def read(path: Path, kind: str) -> Tree:
    """All of a file of that kind. Raises UserError for one that is missing, too large, cut or foreign, and for whatever
    in it is not plain numbers and text of its own."""
    path = Path(path)
    data = read_bytes(path, FILE_MAX, "name an existing file", "file")
    try:
        return parse(data, path)
    except UserError:
        raise
    except Exception as error:  # h5py raises almost anything for harmed bytes
        raise UserError(f"{path}: is no whole {kind} file ({type(error).__name__}); write it again.") from error


def parse(data: bytes, path: Path) -> Tree:
    """All of an HDF5 file's bytes; `path` is what to call it. Raises UserError, and what h5py raises."""
    _check_heaps(data)
    with h5py.File(io.BytesIO(data), "r") as file:
        return _Reader(path).group(file, "", 0)


def _check_heaps(data: bytes) -> None:
    """Raises OSError, as h5py does for other harm, where libhdf5 would read for ever: it goes through a heap of texts
    by the sizes that its objects claim, the one of free space among them, even if that is 0 (H5HGcache.c).

    A heap is "GCOL", its version, three bytes of 0 and its size; an object an index (0: free space), 6 bytes and the
    size of what follows, of free space all of it; sizes are of 8 bytes, as the file's beginning says.
    """
    widths = data[13:15] if data[8:9] < b"\x02" else data[9:11]
    if widths != b"\x08\x08":
        raise OSError("sizes are not of 8 bytes")
    start = data.find(b"GCOL\x01\0\0\0")
    while start >= 0:
        (size,) = SIZE.unpack_from(data, start + 8)
        at, end = start + HEAP_HEADER, min(start + size, len(data))
        while at + OBJECT_HEADER <= end:
            (index,), (taken,) = INDEX.unpack_from(data, at), SIZE.unpack_from(data, at + 8)
            step = OBJECT_HEADER + -(-taken // 8) * 8 if index else taken
            if not 0 < step <= end - at:
                raise OSError(f"an object of {taken} bytes at {at} is none of its heap")
            at += step
        start = data.find(b"GCOL\x01\0\0\0", start + 8)


class _Reader:
    """What has been read of one file so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.seen: set[Any] = set()

    def refuse(self, where: str, why: str) -> UserError:
        return UserError(f"{self.path}: '{where}' {why}; write the file again without it.")

    def group(self, group: h5py.Group, where: str, depth: int) -> Tree:
        self.visit(group, where)
        if depth > DEPTH_MAX:
            raise self.refuse(where, f"lies {depth} groups deep, above the {DEPTH_MAX} that are followed")
        return {name: self.entry(group, name, f"{where}/{name}", depth) for name in group}

    def entry(self, group: h5py.Group, name: str, where: str, depth: int) -> Any:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise self.refuse(where, "is a link to another place, which is not followed")
        entry = group[name]
        if isinstance(entry, h5py.Group):
            return self.group(entry, where, depth + 1)
        if not isinstance(entry, h5py.Dataset):
            raise self.refuse(where, "is neither a group nor a dataset")
        return self.dataset(entry, where)

    def visit(self, entry: Any, where: str) -> None:
        """Each object once: links that lead back would never end."""
        address = h5py.h5o.get_info(entry.id).addr
        if address in self.seen:
            raise self.refuse(where, "is linked to twice")
        self.seen.add(address)
        if len(self.seen) > OBJECTS_MAX:
            raise self.refuse(where, f"is one object more than the {OBJECTS_MAX:,} that are read")

    def dataset(self, dataset: h5py.Dataset, where: str) -> Any:
        self.visit(dataset, where)
        created = dataset.id.get_create_plist()
        filters = [created.get_filter(index)[0] for index in range(created.get_nfilters())]
        if dataset.is_virtual or dataset.external or any(code not in FILTERS for code in filters):
            raise self.refuse(where, "keeps its data in other files or behind a filter of somebody's own")
        text = h5py.check_string_dtype(dataset.dtype)
        if dataset.shape is None or (text is None and dataset.dtype.kind not in "iufb"):
            raise self.refuse(where, f"is of type {dataset.dtype}, neither numbers nor text")
        self.count(dataset.size * dataset.dtype.itemsize, where)
        if text is None:
            return dataset[()]
        # Any number of entries may share one long text, so each is counted by itself.
        values = np.empty(dataset.shape, object)
        for index in np.ndindex(dataset.shape):
            value = dataset.asstr()[index]
            self.count(len(value), where)
            values[index] = value
        return values.tolist()

    def count(self, size: int, where: str) -> None:
        self.bytes += size
        if self.bytes > DATA_MAX:
            raise self.refuse(where, f"brings the data above the {DATA_MAX:,} bytes that are read")
