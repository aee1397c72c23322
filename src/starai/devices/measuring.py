"""How fast this machine's processor reads memory and multiplies, in less than two seconds.

With NumPy alone, so that a node without the engine's extra can be measured too. It is the floor of
what a good kernel reaches: `starai engine bench` measures closer to the limit, and takes longer.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from starai.core.clock import Clock
from starai.devices.base import Rates

#: Larger than the last-level cache of ordinary machines; small enough for a telephone.
READ_BYTES: Final = 1 << 27
#: Square matrices of 32-bit floats: 0.27 thousand million operations a product.
_SIZE: Final = 512
#: Each of the two parts stops after this long, and after so many tries.
BUDGET_S: Final = 0.6
_TRIES: Final = 8
#: The smallest time that a clock is trusted with.
_TINY_S: Final = 1e-9


def measure(threads: int, clock: Clock) -> Rates:
    """Measure; takes about a second, and memory of `READ_BYTES`.

    Args:
        threads: that a model would run on.
        clock: tells the time.
    """
    with ThreadPoolExecutor(max_workers=threads) as pool:
        data = np.ones(READ_BYTES // 4, np.float32)
        parts = np.array_split(data, threads)
        # A dot product with itself reads each number once, and needs no second stream.
        read_s = _best_s(lambda: list(pool.map(_read, parts)), clock)
        matrices = [np.ones((_SIZE, _SIZE), np.float32) for _ in range(threads)]
        multiply_s = _best_s(lambda: list(pool.map(_multiply, matrices)), clock)
    return Rates(READ_BYTES / read_s, 2.0 * _SIZE**3 * threads / multiply_s)


def _read(part: np.ndarray[tuple[int], np.dtype[np.float32]]) -> float:
    return float(np.dot(part, part))


def _multiply(matrix: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> float:
    return float((matrix @ matrix)[0, 0])


def _best_s(work: Callable[[], object], clock: Clock) -> float:
    """The shortest of a few tries: what others took from it is not the machine's limit."""
    begun_s = clock.monotonic_s()
    best_s = float("inf")
    for _ in range(_TRIES):
        before_s = clock.monotonic_s()
        work()
        now_s = clock.monotonic_s()
        best_s = min(best_s, now_s - before_s)
        if now_s - begun_s > BUDGET_S:
            break
    return max(best_s, _TINY_S)
