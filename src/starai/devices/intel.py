"""Intel GPUs, from ``xpu-smi``."""

from __future__ import annotations

from typing import Final

from starai.devices.base import Gpu
from starai.devices.fields import document, field, name, rows, whole

#: The list of devices; `parse_list` reads it.
COMMAND: Final = ("xpu-smi", "discovery", "-j")


def device_command(device: int) -> tuple[str, ...]:
    """Asks for one device of the list; `parse_one` reads the answer."""
    return ("xpu-smi", "discovery", "-d", str(device), "-j")


def parse_list(text: str) -> tuple[int, ...]:
    """The numbers of the GPUs."""
    listed = rows(field(document(text), "device_list"))
    return tuple(
        whole(row.get("device_id"))
        for row in listed
        if str(row.get("device_type", "GPU")).upper() == "GPU"
    )


def parse_one(text: str) -> Gpu | None:
    """One GPU with its memory."""
    told = document(text)
    model = name(field(told, "device_name"))
    size = whole(field(told, "memory_physical_size_byte"))
    if not model or not size:
        return None
    free = field(told, "memory_free_size_byte")
    return Gpu(
        vendor="intel",
        name=model,
        memory_bytes=size,
        free_bytes=whole(free) if free is not None else None,
        driver=name(field(told, "driver_version")),
    )
