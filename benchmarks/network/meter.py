"""What processes cost, read from /proc: CPU time and resident memory, of one or of a whole tree."""

from __future__ import annotations

import os
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6


def _fields(pid: int) -> list[str]:
    # The name in parentheses may hold blanks; what follows it does not.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(root: int) -> list[int]:
    """A process and all its descendants that are alive now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int(_fields(int(entry.name))[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += children.get(pid, [])
    return found


def cpu_s(pids: list[int]) -> float:
    """User and system time that the processes have used, in seconds."""
    total = 0.0
    for pid in pids:
        try:
            fields = _fields(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += (int(fields[11]) + int(fields[12])) * _TICK_S
    return total


def resident_mb(pids: list[int]) -> float:
    """Resident memory of the processes, in megabytes; shared pages count once each."""
    total = 0.0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_MB
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total
