"""Ends whatever a guarded worker started: all processes of its session, and the shared memory that they map."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

_SEGMENT = re.compile(rb"(/dev/shm/psm_\S+)$", re.MULTILINE)


def end(session: int) -> None:
    """Kill every process of the session and remove its shared memory. Called from inside, it does not return.

    Killed processes cannot clean up, so the segments are taken from their memory maps first; they are stopped before,
    so that they make no new ones.
    """
    others = [pid for pid in _members(session) if pid != os.getpid()]
    _signal(others, signal.SIGSTOP)
    members = [*others, os.getpid()] if os.getsid(0) == session else others
    for segment in {segment for pid in members for segment in _segments(pid)}:
        Path(os.fsdecode(segment)).unlink(missing_ok=True)
    _signal(members, signal.SIGKILL)


def _members(session: int) -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _session_of(entry) == session]


def _session_of(pid: str) -> int:
    try:
        # The command's name, in parentheses, may itself hold spaces and parentheses.
        return int(Path("/proc", pid, "stat").read_bytes().rpartition(b")")[2].split()[3])
    except OSError:  # it ended meanwhile
        return -1


def _segments(pid: int) -> list[bytes]:
    try:
        return _SEGMENT.findall(Path("/proc", str(pid), "maps").read_bytes())
    except OSError:
        return []


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
