"""What this machine could do at best: memory read bandwidth and matrix-multiplication peaks.

Prints one JSON object. Uses torch, and our native kernels' own measurements where they are built:
the better of both counts, because a limit is what something reached.
"""

from __future__ import annotations

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


def best_s(work: Callable[[], object]) -> float:
    """The shortest of several runs, in seconds."""
    took = []
    for _ in range(TRIES):
        begin = time.perf_counter()
        work()
        took.append(time.perf_counter() - begin)
    return min(took)


def native_bandwidth(threads: int) -> float:
    """By the kernels' own reader, GB/s; 0 without it."""
    try:
        from starai.engines.native import library  # noqa: PLC0415 - may be absent

        read = library.function(
            "starai_read_bandwidth", *[library.COUNT] * 3, returns=library.ctypes.c_double
        )
    except (ImportError, AttributeError):
        return 0.0
    return read(READ_BYTES, threads, TRIES) if read else 0.0


def bandwidth(threads: int) -> float:
    """Bytes read from memory, GB/s."""
    torch.set_num_threads(threads)
    data = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    return max(READ_BYTES / best_s(data.sum) / 1e9, native_bandwidth(threads))


def matmul_peak(kind: str, threads: int) -> float:
    """Operations of a large matrix product, T(FL)OP/s, two for each multiply-add."""
    torch.set_num_threads(threads)
    if kind == "int8":
        a = torch.randint(-127, 127, (SIZE, SIZE), dtype=torch.int8)
        took = best_s(lambda: torch._int_mm(a, a))
    else:
        a = torch.ones(SIZE, SIZE, dtype=getattr(torch, kind))
        took = best_s(lambda: a @ a)
    return 2 * SIZE**3 / took / 1e12


def main(threads: int) -> dict[str, dict[str, float]]:
    """Every limit for one thread and for ``threads``."""
    found: dict[str, dict[str, float]] = {"read_gb_per_s": {}}
    for number in sorted({1, threads}):
        found["read_gb_per_s"][str(number)] = bandwidth(number)
        for kind in ("float32", "bfloat16", "int8"):
            peak = matmul_peak(kind, number)
            found.setdefault(f"{kind}_tflop_per_s", {})[str(number)] = peak
    return found


if __name__ == "__main__":
    json.dump(main(int(sys.argv[1])), sys.stdout)
