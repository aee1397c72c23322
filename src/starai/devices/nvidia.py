"""NVIDIA GPUs, from ``nvidia-smi``."""

from __future__ import annotations

from typing import Final

from starai.devices.base import Gpu
from starai.devices.fields import name, whole

#: What is asked for; `parse` reads its answer.
COMMAND: Final = (
    "nvidia-smi",
    "--query-gpu=name,memory.total,memory.free,driver_version",
    "--format=csv,noheader,nounits",
)
_FIELDS: Final = 4
_MIB: Final = 1 << 20
#: A GPU that shares the machine's memory (GB10, Jetson) says so instead of a size.
_NOT_TOLD: Final = ("[N/A]", "[Not Supported]", "N/A")


def parse(text: str) -> tuple[Gpu, ...]:
    """One GPU a line. A size of ``[N/A]`` means that its memory is the machine's."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        # Old drivers write errors to standard output; those lines have other cells.
        if len(cells) != _FIELDS or not cells[0]:
            continue
        model, total, free, driver = cells
        unified = total in _NOT_TOLD
        if not unified and not whole(total):
            continue
        found.append(
            Gpu(
                vendor="nvidia",
                name=name(model),
                memory_bytes=0 if unified else whole(total, _MIB),
                free_bytes=None if unified or not free[:1].isdigit() else whole(free, _MIB),
                unified=unified,
                driver=name(driver),
            )
        )
    return tuple(found)
