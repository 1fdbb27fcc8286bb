"""What the pages written in Markdown share."""

from __future__ import annotations

import re
from collections.abc import Iterable


def line(texts: Iterable[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(texts)} |"


def escaped(text: str) -> str:
    """A user's text as Markdown that shows it letter by letter."""
    return re.sub(r"([\\`*_{}\[\]<>|~#$&])", r"\\\1", " ".join(text.split()))
