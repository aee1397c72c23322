"""What a device's owner does while a node runs there: the jobs of `yielding.py`, a process each.

    python benchmarks/network/owners_jobs.py hash|copy|react AMOUNT

It imports next to nothing, so that a job begins when its process does, and prints a JSON object.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time


def hash_much(mebibytes: int) -> None:
    """Hash a fixed amount: arithmetic that fits into caches."""
    block = bytes(1 << 20)
    for _ in range(mebibytes):
        hashlib.sha256(block).digest()


def copy_much(gibibytes: int) -> None:
    """Copy a fixed amount: memory bandwidth."""
    source, target = bytearray(64 << 20), bytearray(64 << 20)
    for _ in range(gibibytes * 16):
        target[:] = source


def react(seconds: float) -> dict[str, float]:
    """Wake 50 times a second and work for 2 ms, like a program that draws; lateness in ms."""
    late_ms = []
    due = time.monotonic() + 0.02
    end = due + seconds
    while due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        began = time.thread_time()
        while time.thread_time() - began < 0.002:
            pass
        late_ms.append(1000 * (time.monotonic() - due) - 2)
        due += 0.02
    late_ms.sort()
    return {"p50": late_ms[len(late_ms) // 2], "p99": late_ms[-1 - len(late_ms) // 100]}


if __name__ == "__main__":
    kind, amount = sys.argv[1], float(sys.argv[2])
    told: dict[str, float] = {}
    if kind == "react":
        told = react(amount)
    else:
        {"hash": hash_much, "copy": copy_much}[kind](int(amount))
    print(json.dumps(told))
