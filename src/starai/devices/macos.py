"""macOS: ``sysctl``, ``vm_stat``, ``system_profiler``, ``pmset``, ``route``, ``networksetup``."""

from __future__ import annotations

import re
from typing import Final

from starai.devices.base import Battery, Cpu, Gpu, NetworkKind
from starai.devices.fields import document, field, name, number, pairs, rows, whole
from starai.devices.windows import vendor_of

SYSCTL: Final = ("sysctl", "hw", "machdep.cpu")
VM_STAT: Final = ("vm_stat",)
DISPLAYS: Final = ("system_profiler", "SPDisplaysDataType", "-json")
POWER: Final = ("pmset", "-g", "batt")
ROUTE: Final = ("route", "-n", "get", "default")
PORTS: Final = ("networksetup", "-listallhardwareports")

#: What ``sysctl`` calls the instruction sets that Linux names otherwise.
_FEATURES: Final = {
    "hw.optional.neon": "asimd",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
}
_PAGE_SIZE: Final = re.compile(r"page size of (\d{1,6}) bytes")
_PERCENT: Final = re.compile(r"(\d{1,3})%")
#: Pages of ``vm_stat`` that could be had at once.
_AVAILABLE: Final = ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable")


def parse_sysctl(text: str, architecture: str) -> tuple[Cpu, int]:
    """The processor, and the machine's memory in bytes."""
    told = dict(pairs(text))
    flags = sorted({flag for key, flag in _FEATURES.items() if told.get(key) == "1"})
    cpu = Cpu(
        model=name(told.get("machdep.cpu.brand_string", "")),
        architecture=architecture,
        cores=whole(told.get("hw.physicalcpu", "")),
        threads=whole(told.get("hw.logicalcpu") or told.get("hw.ncpu", "")),
        flags=tuple(flags),
    )
    return cpu, whole(told.get("hw.memsize", ""))


def parse_vm_stat(text: str) -> int:
    """Bytes that could be had at once."""
    page = _PAGE_SIZE.search(text)
    told = dict(pairs(text))
    pages = sum(whole(told.get(key, "")) for key in _AVAILABLE)
    return pages * int(page[1]) if page else 0


def parse_displays(text: str, memory_bytes: int) -> tuple[Gpu, ...]:
    """GPUs; Apple's own have the machine's memory, which is ``memory_bytes``."""
    found = []
    for row in rows(field(document(text), "SPDisplaysDataType")):
        model = name(row.get("sppci_model") or row.get("_name"))
        maker = str(row.get("spdisplays_vendor", "")).lower()
        if "apple" in maker or model.startswith("Apple"):
            found.append(Gpu("apple", model, memory_bytes, unified=True))
            continue
        vendor = vendor_of(f"{maker} {model}")
        memory = str(row.get("spdisplays_vram") or row.get("_spdisplays_vram") or "")
        unit = 1 << 30 if "gb" in memory.lower() else 1 << 20
        # "spdisplays_vram_shared" is a processor's own graphics.
        if vendor is not None and whole(memory):
            found.append(Gpu(vendor, model, whole(memory, unit)))
    return tuple(found)


def parse_power(text: str) -> Battery | None:
    """``pmset``: a desktop has no battery in it."""
    percent = _PERCENT.search(text)
    if percent is None or "InternalBattery" not in text:
        return None
    return Battery(min(number(percent[1]), 100.0), "'AC Power'" in text)


def parse_network(route: str, ports: str) -> NetworkKind:
    """What the default route's interface is, by the list of ports."""
    interface = dict(pairs(route)).get("interface", "")
    port = ""
    for key, value in pairs(ports):
        if key == "Hardware Port":
            port = value.lower()
        elif key == "Device" and value == interface and interface:
            if "wi-fi" in port or "airport" in port:
                return "wireless"
            if "iphone" in port or "bluetooth" in port or "modem" in port:
                return "mobile"
            return "wired"
    return "unknown"
