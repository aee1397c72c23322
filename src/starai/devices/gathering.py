"""Looks at the machine: runs the tools that are there, reads the files, and has them parsed.

Nothing here fails: a tool that is missing, hangs, ends badly or prints rubbish tells nothing.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from starai.devices import amd, drm, intel, linux, macos, nvidia, windows
from starai.devices.base import Device, Gpu
from starai.devices.fields import pairs

#: A tool that takes longer hangs: drivers do when a GPU has fallen off its bus.
TOOL_S: Final = 5.0
#: PowerShell takes seconds to start on a slow machine.
_POWERSHELL_S: Final = 20.0
#: More than any of these tools prints, or any of these files holds.
_OUTPUT_MAX: Final = 1 << 20
#: Devices that xpu-smi is asked about one by one.
_INTEL_MAX: Final = 8

#: Runs a tool and gives what it prints; empty when it cannot be run.
Run = Callable[[Sequence[str]], str]


def run_tool(command: Sequence[str]) -> str:
    """What a tool prints; empty when it is missing, fails or hangs."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    timeout_s = _POWERSHELL_S if command[0] == "powershell" else TOOL_S
    try:
        done = subprocess.run(  # noqa: S603 - fixed commands, given as lists
            [program, *command[1:]],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout[:_OUTPUT_MAX].decode("utf-8", "replace")


def profile(
    folder: Path, *, root: Path = Path("/"), run: Run = run_tool, system: str = ""
) -> Device:
    """The device that this program runs on.

    Args:
        folder: where models would lie; its disk is looked at.
        root: of the file system, for Linux's ``/proc`` and ``/sys``.
        run: runs a tool.
        system: ``linux``, ``darwin`` or ``windows``; empty: this machine's.
    """
    system = system or platform.system().lower()
    architecture = platform.machine().lower()
    if system == "darwin":
        device = _macos(run, architecture)
    elif system == "windows":
        device = windows.parse(run(windows.COMMAND), architecture)
        # Windows' own list has NVIDIA's GPUs too, but not what is free of them.
        others = tuple(gpu for gpu in device.gpus if gpu.vendor != "nvidia")
        known = nvidia.parse(run(nvidia.COMMAND))
        device = msgspec.structs.replace(device, gpus=(*known, *others) if known else device.gpus)
    else:
        device = _linux(root, run, system, architecture)
    gpus = tuple(_with_memory(gpu, device.memory_bytes) for gpu in device.gpus)
    return msgspec.structs.replace(device, gpus=gpus, disk_free_bytes=_disk_free(folder))


def _linux(root: Path, run: Run, system: str, architecture: str) -> Device:
    total, available = linux.parse_meminfo(_read(root / "proc/meminfo"))
    limit = linux.parse_limit(_read(root / "sys/fs/cgroup/memory.max"))
    if 0 < limit < total:
        total, available = limit, min(available, limit)
    interface = linux.parse_route(_read(root / "proc/net/route"))
    return Device(
        system=system,
        cpu=linux.parse_cpuinfo(_read(root / "proc/cpuinfo"), architecture),
        memory_bytes=total,
        available_bytes=available,
        gpus=_linux_gpus(root, run),
        battery=linux.parse_supplies(
            dict(pairs(_read(supply / "uevent"), "="))
            for supply in _folders(root / "sys/class/power_supply")
        ),
        network=linux.kind_of_interface(
            interface, has_wireless=(root / "sys/class/net" / interface / "wireless").is_dir()
        )
        if interface
        else "unknown",
    )


def _linux_gpus(root: Path, run: Run) -> tuple[Gpu, ...]:
    """By each vendor's tool; the kernel speaks for vendors whose tools said nothing."""
    found = list(nvidia.parse(run(nvidia.COMMAND)))
    found += amd.parse(run(amd.COMMAND)) or amd.parse_rocm(run(amd.ROCM_COMMAND))
    for number in intel.parse_list(run(intel.COMMAND))[:_INTEL_MAX]:
        gpu = intel.parse_one(run(intel.device_command(number)))
        found += [] if gpu is None else [gpu]
    spoken = {gpu.vendor for gpu in found}
    cards = {}
    for card in _folders(root / drm.FOLDER):
        if drm.is_card(card.name):
            files = {name: _read(card / "device" / name) for name in drm.FILES}
            cards[card.name] = {name: text for name, text in files.items() if text}
    found += [gpu for gpu in drm.parse(cards) if gpu.vendor not in spoken]
    return tuple(found)


def _macos(run: Run, architecture: str) -> Device:
    cpu, memory = macos.parse_sysctl(run(macos.SYSCTL), architecture)
    return Device(
        system="darwin",
        cpu=cpu,
        memory_bytes=memory,
        available_bytes=min(macos.parse_vm_stat(run(macos.VM_STAT)), memory),
        gpus=macos.parse_displays(run(macos.DISPLAYS), memory),
        battery=macos.parse_power(run(macos.POWER)),
        network=macos.parse_network(run(macos.ROUTE), run(macos.PORTS)),
    )


def _with_memory(gpu: Gpu, memory_bytes: int) -> Gpu:
    """A GPU without memory of its own has the machine's."""
    if gpu.memory_bytes or not gpu.unified:
        return gpu
    return msgspec.structs.replace(gpu, memory_bytes=memory_bytes)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_OUTPUT_MAX).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _disk_free(folder: Path) -> int:
    """Free bytes where ``folder`` is or will be."""
    for place in (folder, *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return 0
