"""What got slower between two runs of a benchmark.

    uv run python -m benchmarks.compare old.json new.json      exit status 1 where something did

A ratio got worse where its spread lies beyond the old one's and it is a twentieth worse; so does one that is missing.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORSE = 1.05


def slower(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A sentence for each ratio of the old file that the new one has worse, or not at all."""
    found = []
    for name, before in old["ratios"].items():
        now = new["ratios"].get(name)
        if now is None:
            found.append(f"{name}: {before['ratio']:.3g} before, not measured now")
        elif _worse(before, now):
            spreads = [
                f"{each['ratio']:.3g} ({each['spread'][0]:.3g} to {each['spread'][1]:.3g})" for each in (before, now)
            ]
            found.append(f"{name}: {spreads[0]} before, {spreads[1]} now")
    return found


def _worse(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if not before["lower_is_better"]:
        before, now = now, before
    return now["spread"][0] > before["spread"][1] and now["ratio"] > WORSE * before["ratio"]


def main() -> None:
    parser = ArgumentParser(description=__doc__, usage="python -m benchmarks.compare OLD NEW")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    chosen = parser.parse_args()
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (chosen.old, chosen.new))
    found = slower(old, new)
    print("\n".join(found) if found else f"none of {len(old['ratios'])} ratios got slower")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
