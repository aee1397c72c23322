"""What this machine could do at best: memory read bandwidth and matrix-multiplication peaks.

Prints one JSON object. Uses torch, and our native kernels' own measurements where they are built:
the better of both counts, because a limit is what something reached.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable

import torch

#: Several times any last-level cache.
READ_BYTES = 1 << 30
#: Square matrices that fill no cache twice.
SIZE = 2048
TRIES = 7
#: The `Kind`s of weights in our kernels (`common.h`).
NATIVE_KINDS = {"float32": 0, "bfloat16": 1, "int8": 2}


def best_s(work: Callable[[], object]) -> float:
    """The shortest of several runs, in seconds."""
    took = []
    for _ in range(TRIES):
        begin = time.perf_counter()
        work()
        took.append(time.perf_counter() - begin)
    return min(took)


def native(name: str, *numbers: int) -> float:
    """One of our kernels' own measurements; 0 without them."""
    try:
        from starai.engines.native import library  # noqa: PLC0415 - may be absent

        kinds = [library.COUNT] * len(numbers)
        measured = library.function(name, *kinds, returns=ctypes.c_double)
    except (ImportError, AttributeError):
        return 0.0
    return float(measured(*numbers)) if measured else 0.0


def bandwidth(threads: int) -> float:
    """Bytes read from memory, GB/s."""
    torch.set_num_threads(threads)
    data = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    by_torch = READ_BYTES / best_s(data.sum) / 1e9
    return max(by_torch, native("starai_read_bandwidth", READ_BYTES, threads, TRIES))


def peak(kind: str, threads: int) -> float:
    """T(FL)OP/s, two for each multiply-add: a large product by torch, or the bare instruction."""
    torch.set_num_threads(threads)
    if kind == "int8":
        a = torch.randint(-127, 127, (SIZE, SIZE), dtype=torch.int8)
        took = best_s(lambda: torch._int_mm(a, a))
    else:
        a = torch.ones(SIZE, SIZE, dtype=getattr(torch, kind))
        took = best_s(lambda: a @ a)
    instruction = native("starai_peak", NATIVE_KINDS[kind], threads, TRIES)
    return max(2 * SIZE**3 / took, instruction) / 1e12


def main(threads: int) -> dict[str, dict[str, float]]:
    """Every limit for one thread and for ``threads``."""
    found: dict[str, dict[str, float]] = {"read_gb_per_s": {}}
    for number in sorted({1, threads}):
        found["read_gb_per_s"][str(number)] = bandwidth(number)
        for kind in ("float32", "bfloat16", "int8"):
            found.setdefault(f"{kind}_tflop_per_s", {})[str(number)] = peak(kind, number)
    return found


if __name__ == "__main__":
    json.dump(main(int(sys.argv[1])), sys.stdout)
