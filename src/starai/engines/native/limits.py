"""The machine's physical limits: how fast it reads memory, how fast it multiplies.

Measured twice where it can be, by torch and by the bare instruction in the compiled library; the
better counts, because a limit is what something reached. Knows nothing about models.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from starai.core.clock import Clock
from starai.engines.native import library
from starai.engines.native.linear import BFLOAT16, FLOAT32, INT8

#: Several times any last-level cache of a small machine, and little enough for its memory.
READ_BYTES: Final = 1 << 29
#: Square matrices that fill no cache twice; half a second each on one slow core.
_SIZE: Final = 1536
_TRIES: Final = 5
#: The smallest difference that a clock is trusted with.
_TINY_S: Final = 1e-9
#: Kinds of numbers, and the compiled library's name for each.
KINDS: Final = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a machine allows.

    Attributes:
        threads: that were used where more than one was.
        read_bytes_per_s_one: memory read by one thread.
        read_bytes_per_s: by all of them.
        operations_per_s: of all threads by kind of number; a multiply-add counts as two.
    """

    threads: int
    read_bytes_per_s_one: float
    read_bytes_per_s: float
    operations_per_s: dict[str, float]


def measure_limits(threads: int, clock: Clock, progress: Callable[[str], None]) -> Limits:
    """Measure a machine that does nothing else; takes seconds, and half a GiB of memory.

    Args:
        threads: to use.
        clock: tells the time.
        progress: is told what is measured next.
    """
    before = torch.get_num_threads()
    try:
        reads = {}
        for count in (1, threads):
            progress(f"memory, {count} thread{'s' if count > 1 else ''}")
            reads[count] = read_bytes_per_s(count, clock)
        operations = {}
        for kind in KINDS:
            progress(f"arithmetic, {kind}")
            operations[kind] = operations_per_s(kind, threads, clock)
    finally:
        torch.set_num_threads(before)
    # What one thread reached, all of them can.
    return Limits(threads, reads[1], max(reads.values()), operations)


def read_bytes_per_s(threads: int, clock: Clock) -> float:
    """Memory read by ``threads``, in bytes a second."""
    torch.set_num_threads(threads)
    data = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    by_torch = READ_BYTES / _best_s(data.sum, clock)
    del data
    return max(by_torch, 1e9 * _native("starai_read_bandwidth", READ_BYTES, threads, _TRIES))


def operations_per_s(kind: str, threads: int, clock: Clock) -> float:
    """Multiplications and additions of numbers of a kind of `KINDS` by ``threads``, a second."""
    torch.set_num_threads(threads)
    work: Callable[[], object]
    if kind == "int8":
        codes = torch.ones(_SIZE, _SIZE, dtype=torch.int8)
        multiply = torch._int_mm
        work = lambda: multiply(codes, codes)  # noqa: E731 - one of two
    else:
        floats = torch.ones(_SIZE, _SIZE, dtype=getattr(torch, kind))
        work = lambda: floats @ floats  # noqa: E731
    by_torch = 2 * _SIZE**3 / _best_s(work, clock)
    return max(by_torch, _native("starai_peak", KINDS[kind], threads, _TRIES))


def _best_s(work: Callable[[], object], clock: Clock) -> float:
    taken = []
    for _ in range(_TRIES):
        begun_s = clock.monotonic_s()
        work()
        taken.append(clock.monotonic_s() - begun_s)
    return max(min(taken), _TINY_S)


def _native(name: str, *numbers: int) -> float:
    """One of the compiled library's own measurements; 0 without it."""
    kinds = [library.COUNT] * len(numbers)
    measure = library.function(name, *kinds, returns=ctypes.c_double)
    return float(measure(*numbers)) if measure is not None else 0.0
