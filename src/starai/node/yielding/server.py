"""Finds the processes of an engine that is a server on this machine: its load is ours, not others'.

Linux tells who listens on a port (/proc/net/tcp, proc(5)) to the same user. Elsewhere, and of
servers of other users, nothing is found, and a polite node takes the server for its owner's work.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from starai.core.clock import Clock
from starai.node.yielding.sensors.looking import read_text

_PROC: Final = Path("/proc")
_LISTENS: Final = "0A"
#: A server may restart, and its children come and go; looking through all processes costs 10 ms.
_AGAIN_S: Final = 5.0
_HERE: Final = ("localhost", "127.0.0.1", "::1")


def listening_inodes(table: str, port: int) -> set[str]:
    """The sockets that listen on ``port``, by /proc/net/tcp or tcp6."""
    found = set()
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTENS:
            with contextlib.suppress(ValueError):
                if int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found


def holders(inodes: set[str], proc: Path = _PROC) -> set[int]:
    """The processes that hold one of these sockets, as far as we may see."""
    links = {f"socket:[{inode}]" for inode in inodes}
    found = set()
    for folder in proc.iterdir() if inodes and proc.is_dir() else ():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if any(os.readlink(link) in links for link in (folder / "fd").iterdir()):  # noqa: PTH115
                found.add(int(folder.name))
    return found


def with_children(pids: set[int], proc: Path = _PROC) -> tuple[int, ...]:
    """These processes and all that they started."""
    parents = {}
    for folder in proc.iterdir() if pids and proc.is_dir() else ():
        if folder.name.isdigit():
            fields = read_text(folder / "stat").rpartition(")")[2].split()
            if len(fields) > 1 and fields[1].isdigit():
                parents[int(folder.name)] = int(fields[1])
    found = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return tuple(sorted(found))


class ServerProcesses:
    """The processes of the server at a URL; call it to know them now."""

    def __init__(self, url: str, clock: Clock) -> None:
        """Look for whoever listens at ``url``, if that is on this machine."""
        parts = urlsplit(url)
        here = parts.hostname in _HERE
        self._port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0) if here else 0
        self._clock = clock
        self._known: tuple[int, ...] = ()
        self._looked_s: float | None = None

    def __call__(self) -> Sequence[int]:
        """Their numbers; a few seconds old at most."""
        now_s = self._clock.monotonic_s()
        if self._port and (self._looked_s is None or now_s - self._looked_s >= _AGAIN_S):
            self._looked_s = now_s
            tables = (read_text(_PROC / "net" / name) for name in ("tcp", "tcp6"))
            inodes = set().union(*(listening_inodes(table, self._port) for table in tables))
            self._known = with_children(holders(inodes))
        return self._known
