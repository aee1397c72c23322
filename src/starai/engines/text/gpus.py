"""How fast this machine's GPUs read and multiply: ``python -m starai.engines.text.gpus``.

A program of its own, so that whoever asks needs no torch. Prints one JSON object: rates by a GPU's
name, empty without a GPU that torch can use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

import msgspec
import torch

from starai.core.clock import Clock, SystemClock
from starai.devices.base import Rates

#: Larger than any GPU's cache.
_READ_BYTES: Final = 1 << 29
#: Square matrices that keep every unit busy.
_SIZE: Final = 4096
_TRIES: Final = 10


def measure_gpus(clock: Clock) -> dict[str, Rates]:
    """Rates of every GPU that torch can use (CUDA or ROCm), by name."""
    found = {}
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        try:
            found[torch.cuda.get_device_name(device)] = _measure(device, clock)
        except RuntimeError:
            # Its memory is full, or it is too old for this torch: then it cannot serve either.
            continue
    return found


def _measure(device: torch.device, clock: Clock) -> Rates:
    data = torch.ones(_READ_BYTES // 4, dtype=torch.int32, device=device)
    read_s = _best_s(data.sum, device, clock)
    one = torch.ones(_SIZE, _SIZE, dtype=torch.float16, device=device)
    multiply_s = _best_s(lambda: one @ one, device, clock)
    return Rates(_READ_BYTES / read_s, 2.0 * _SIZE**3 / multiply_s)


def _best_s(work: Callable[[], object], device: torch.device, clock: Clock) -> float:
    taken = []
    for _ in range(_TRIES):
        torch.cuda.synchronize(device)
        begun_s = clock.monotonic_s()
        work()
        torch.cuda.synchronize(device)
        taken.append(clock.monotonic_s() - begun_s)
    return max(min(taken), 1e-9)


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(measure_gpus(SystemClock())))
