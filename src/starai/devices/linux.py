"""Linux and Android: ``/proc`` and ``/sys``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from starai.devices.base import Battery, Cpu, NetworkKind
from starai.devices.fields import name, number, pairs, whole

#: Instruction sets that decide how fast a model runs; a processor names a hundred others.
FLAGS: Final = frozenset(
    (
        *("sse4_1", "sse4_2", "ssse3", "avx", "avx2", "fma", "f16c", "avx_vnni"),
        *("avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
        *("amx_tile", "amx_int8", "amx_bf16", "v"),
        *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
    )
)
#: Arm's processors give numbers for names: the ones that people have at home.
_ARM_PARTS: Final = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2",
    "0xd49": "Neoverse-N2",
    "0xd4d": "Cortex-A715",
    "0xd4e": "Cortex-X3",
    "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520",
    "0xd81": "Cortex-A720",
    "0xd82": "Cortex-X4",
}
_RISCV_VECTOR: Final = re.compile(r"rv\d+\w*?v(?=_|\Z|h)")
#: A route is up, and the default one's destination.
_ROUTE_UP, _EVERYWHERE = 1, "00000000"
_ROUTE_CELLS: Final = 8


def parse_cpuinfo(text: str, architecture: str) -> Cpu:
    """``/proc/cpuinfo`` of x86, Arm or RISC-V."""
    threads, flags, models, cores = 0, set[str](), dict[str, None](), set[tuple[str, str]]()
    package = ""
    for key, value in pairs(text):
        match key.lower():
            case "processor" if value.isdigit():
                threads += 1
            case "model name" | "hardware" | "uarch" | "model":
                if not value.isdigit():  # x86 has a number of the same name
                    models[name(value)] = None
            case "cpu part":
                models[_ARM_PARTS.get(value.lower(), f"Arm {name(value)}")] = None
            case "flags" | "features":
                flags.update(FLAGS.intersection(value.lower().split()))
            case "isa":
                flags.update({"v"} if _RISCV_VECTOR.match(value.lower()) else ())
            case "physical id":
                package = value
            case "core id":
                cores.add((package, value))
    return Cpu(
        model=" + ".join(model for model in models if model)[:128],
        architecture=architecture,
        # Outside x86 threads are cores: none of these processors runs two on one.
        cores=len(cores) or threads,
        threads=threads,
        flags=tuple(sorted(flags)),
    )


def parse_meminfo(text: str) -> tuple[int, int]:
    """``/proc/meminfo``: bytes in all, and bytes that could be had."""
    told = dict(pairs(text))
    total = whole(told.get("MemTotal", ""), 1024)
    # Before Linux 3.14 nobody said what is available; free memory is a lower bound of it.
    available = whole(told.get("MemAvailable") or told.get("MemFree", ""), 1024)
    return total, min(available, total)


def parse_limit(text: str) -> int:
    """A control group's ``memory.max``: bytes, or 0 for no limit."""
    return whole(text) if text.strip().isdigit() else 0


def parse_supplies(supplies: Iterable[Mapping[str, str]]) -> Battery | None:
    """The ``uevent`` files of ``/sys/class/power_supply``, each as its pairs."""
    percents: list[float] = []
    discharging = on_mains = False
    for supply in supplies:
        kind = supply.get("POWER_SUPPLY_TYPE", "")
        # A mouse has a battery too; its scope says that it is not the device's.
        if kind == "Battery" and supply.get("POWER_SUPPLY_SCOPE", "System") == "System":
            if "POWER_SUPPLY_CAPACITY" not in supply:
                continue
            percents.append(min(number(supply["POWER_SUPPLY_CAPACITY"]), 100.0))
            discharging |= supply.get("POWER_SUPPLY_STATUS") == "Discharging"
        elif kind in ("Mains", "USB") and supply.get("POWER_SUPPLY_ONLINE") == "1":
            on_mains = True
    if not percents:
        return None
    return Battery(sum(percents) / len(percents), on_mains or not discharging)


def parse_route(text: str) -> str:
    """``/proc/net/route``: the interface of the default route with the least metric; or empty."""
    best: tuple[float, str] | None = None
    for line in text.splitlines()[1:]:
        cells = line.split()
        if len(cells) < _ROUTE_CELLS or cells[1] != _EVERYWHERE:
            continue
        if not cells[3].isdigit() or not int(cells[3][:8], 16) & _ROUTE_UP:
            continue
        found = (number(cells[6]), cells[0])
        best = found if best is None else min(best, found)
    return best[1] if best else ""


def kind_of_interface(interface: str, *, has_wireless: bool) -> NetworkKind:
    """What an interface is, by its name and whether the kernel calls it wireless."""
    if has_wireless or interface.startswith(("wl", "ath", "ra")):
        return "wireless"
    if interface.startswith(("ww", "rmnet", "ppp", "ccmni")):
        return "mobile"
    if interface.startswith(("en", "eth", "em", "bond", "br", "usb")):
        return "wired"
    return "unknown"
