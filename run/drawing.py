"""How pictures beside a page are drawn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib

from deploy.pictures import STYLE


@contextmanager
def drawing() -> Iterator[None]:
    """The house's style, for `deploy.pictures.svg`."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Names are a user's, and stay text in the SVG: a letter that matplotlib's font lacks only misjudges a width.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield
