"""AMD GPUs, from ``amd-smi`` or its predecessor ``rocm-smi``."""

from __future__ import annotations

from typing import Any, Final

from starai.devices.base import Gpu
from starai.devices.fields import document, field, name, rows, whole

#: What is asked for, the newer tool first; `parse` and `parse_rocm` read the answers.
COMMAND: Final = ("amd-smi", "static", "--asic", "--vram", "--driver", "--json")
ROCM_COMMAND: Final = ("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json")
_UNITS: Final = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def parse(text: str) -> tuple[Gpu, ...]:
    """The list that ``amd-smi static`` prints; newer ones wrap it in ``gpu_data``."""
    told = document(text)
    found = []
    for row in rows(field(told, "gpu_data") or told):
        model = name(field(row, "asic", "market_name"))
        size = _size(field(row, "vram", "size") or field(row, "vram", "vram_size"))
        if model and size:
            driver = name(field(row, "driver", "version") or field(row, "driver", "driver_version"))
            found.append(Gpu("amd", model, size, driver=driver))
    return tuple(found)


def parse_rocm(text: str) -> tuple[Gpu, ...]:
    """The object that ``rocm-smi`` prints: ``card0``, ``card1`` and so on."""
    told = document(text)
    if not isinstance(told, dict):
        return ()
    found = []
    for _, card in sorted(told.items()):
        size = whole(field(card, "VRAM Total Memory (B)"))
        model = name(
            field(card, "Card Series")
            or field(card, "Card series")
            or field(card, "Card Model")
            or field(card, "Card model")
            or ""
        )
        if size:
            used = whole(field(card, "VRAM Total Used Memory (B)"))
            found.append(Gpu("amd", model or "AMD GPU", size, max(0, size - used)))
    return tuple(found)


def _size(told: Any) -> int:
    """``{"value": 16384, "unit": "MB"}``, or a number of MB."""
    unit = str(field(told, "unit") or "MB").upper()
    value = field(told, "value") if isinstance(told, dict) else told
    return whole(value, _UNITS.get(unit, 1 << 20))
