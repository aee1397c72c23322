"""A device as its profile describes it. What is not known is 0, empty or None, never a guess."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

#: Who made a GPU; it decides which programs can use it.
Vendor = Literal["nvidia", "amd", "intel", "apple"]
#: What the default route goes over.
NetworkKind = Literal["wired", "wireless", "mobile", "unknown"]


class Cpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A processor.

    Attributes:
        model: as it names itself.
        architecture: ``x86_64``, ``aarch64``, ``riscv64`` and so on.
        cores: physical ones of all sockets; 0 when not told.
        threads: that run at once.
        flags: instruction sets that make kernels fast, sorted (``avx2``, ``asimddp``).
    """

    model: str = ""
    architecture: str = ""
    cores: int = 0
    threads: int = 0
    flags: tuple[str, ...] = ()


class Gpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A GPU; with ``unified``, its memory is the machine's own.

    ``free_bytes`` is what nobody used when it was looked at; None when not told.
    """

    vendor: Vendor
    name: str
    memory_bytes: int = 0
    free_bytes: int | None = None
    unified: bool = False
    driver: str = ""


class Battery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A battery: how full in percent, and whether the mains feed the device."""

    percent: float
    on_mains: bool


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a profile tells.

    Attributes:
        system: ``linux``, ``windows``, ``darwin`` or what Python calls it.
        cpu: the processor.
        memory_bytes: of the machine.
        available_bytes: of it what could be had at once.
        disk_free_bytes: where models would lie.
        gpus: in the order that their driver numbers them, NVIDIA's first.
        battery: None on a device without.
        network: what the default route goes over.
    """

    system: str
    cpu: Cpu = Cpu()
    memory_bytes: int = 0
    available_bytes: int = 0
    disk_free_bytes: int = 0
    gpus: tuple[Gpu, ...] = ()
    battery: Battery | None = None
    network: NetworkKind = "unknown"


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What memory and arithmetic do in a second.

    ``operations_per_s`` counts a multiply-add as two, in the numbers that prompts are worked
    through with. ``measured`` is False for figures that were looked up under the device's name.
    """

    read_bytes_per_s: float
    operations_per_s: float
    measured: bool = True


def fingerprint(device: Device) -> str:
    """16 hexadecimal digits that change when the hardware does, and with nothing else."""
    lasting = (
        device.system,
        device.cpu,
        # The kernel keeps a little for itself, and not always the same.
        round(device.memory_bytes / (1 << 28)),
        [(gpu.vendor, gpu.name, gpu.memory_bytes, gpu.driver) for gpu in device.gpus],
    )
    return hashlib.sha256(msgspec.json.encode(lasting)).hexdigest()[:16]
