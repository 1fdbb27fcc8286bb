"""The one exception for what a user can mend. Its text names the thing, the value, the limit and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Refused input. The command line prints the text alone, without a traceback, and exits with status 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A closing half sentence for an unknown name: the nearest valid one, and all that are valid."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Valid: {', '.join(names)}."


@contextmanager
def claims_of(path: Path, way_out: str) -> Iterator[None]:
    """While what a file claims is made into a network: whatever goes wrong becomes a sentence that names the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    except Exception as error:  # what a file claims can be of any type, and fail anywhere
        raise UserError(f"{path}: describes no whole network ({type(error).__name__}: {error}); {way_out}.") from error
