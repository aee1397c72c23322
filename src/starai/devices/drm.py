"""AMD's GPUs as Linux itself shows them in ``/sys/class/drm``: where no tool is installed.

No other maker's driver tells the size of a GPU's memory there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from starai.devices.base import Gpu
from starai.devices.fields import name, whole

#: What is read of each ``card*/device`` folder, and where the folders are.
FOLDER: Final = "sys/class/drm"
FILES: Final = ("vendor", "device", "product_name", "mem_info_vram_total", "mem_info_vram_used")
#: A processor's own graphics claims a piece of memory of at most this as its "VRAM".
_OWN_BYTES_MAX: Final = 1 << 30
_AMD: Final = "0x1002"
_CARD: Final = re.compile(r"card\d+\Z")


def is_card(folder: str) -> bool:
    """Whether a folder's name is that of a GPU, not of a connector."""
    return bool(_CARD.match(folder))


def parse(cards: Mapping[str, Mapping[str, str]]) -> tuple[Gpu, ...]:
    """GPUs with memory of their own, from the files of each card by name."""
    found = []
    for _, files in sorted(cards.items()):
        total = whole(files.get("mem_info_vram_total") or "")
        if files.get("vendor", "").strip().lower() != _AMD or total <= _OWN_BYTES_MAX:
            continue
        used = files.get("mem_info_vram_used")
        found.append(
            Gpu(
                vendor="amd",
                name=name(files.get("product_name", ""))
                or f"AMD {name(files.get('device', ''))}".strip(),
                memory_bytes=total,
                free_bytes=None if used is None else max(0, total - whole(used)),
            )
        )
    return tuple(found)
