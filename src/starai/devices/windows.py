"""Windows: one PowerShell command that prints JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starai.devices.base import Battery, Cpu, Device, Gpu, NetworkKind, Vendor
from starai.devices.fields import document, field, name, rows, whole

#: Each part fails for itself: what a machine does not have is null in the answer.
_SCRIPT: Final = """
$ErrorActionPreference = 'SilentlyContinue'
$r = Get-NetRoute -DestinationPrefix '0.0.0.0/0' | Sort-Object RouteMetric | Select-Object -First 1
[pscustomobject]@{
  cpu = @(Get-CimInstance Win32_Processor |
    Select-Object Name, NumberOfCores, NumberOfLogicalProcessors)
  system = Get-CimInstance Win32_OperatingSystem |
    Select-Object TotalVisibleMemorySize, FreePhysicalMemory
  video = @(Get-CimInstance Win32_VideoController | Select-Object Name, AdapterRAM, DriverVersion)
  sizes = @(Get-ItemProperty ('HKLM:/SYSTEM/CurrentControlSet/Control/Class/' +
    '{4d36e968-e325-11ce-bfc1-08002be10318}/0*') |
    Select-Object DriverDesc, 'HardwareInformation.qwMemorySize')
  battery = @(Get-CimInstance Win32_Battery | Select-Object EstimatedChargeRemaining, BatteryStatus)
  network = Get-NetAdapter -InterfaceIndex $r.ifIndex | Select-Object Name, PhysicalMediaType
} | ConvertTo-Json -Depth 4 -Compress
"""
COMMAND: Final = ("powershell", "-NoProfile", "-NonInteractive", "-Command", _SCRIPT)
_SIZE: Final = "HardwareInformation.qwMemorySize"
#: ``Win32_Battery.BatteryStatus``: only 1 means that nothing feeds it.
_DISCHARGING: Final = 1
#: A processor's own graphics claims a piece of memory of at most this.
_OWN_BYTES_MAX: Final = 1 << 30


def parse(text: str, architecture: str) -> Device:
    """Everything but the free disk space and the instruction sets, which Windows does not tell."""
    told = document(text)
    return Device(
        system="windows",
        cpu=_cpu(rows(field(told, "cpu")), architecture),
        memory_bytes=whole(field(told, "system", "TotalVisibleMemorySize"), 1024),
        available_bytes=whole(field(told, "system", "FreePhysicalMemory"), 1024),
        gpus=_gpus(told),
        battery=_battery(told),
        network=_network(told),
    )


def _cpu(sockets: list[Mapping[str, Any]], architecture: str) -> Cpu:
    if not sockets:
        return Cpu(architecture=architecture)
    return Cpu(
        model=name(sockets[0].get("Name", "")),
        architecture=architecture,
        cores=sum(whole(socket.get("NumberOfCores")) for socket in sockets),
        threads=sum(whole(socket.get("NumberOfLogicalProcessors")) for socket in sockets),
    )


def _gpus(told: object) -> tuple[Gpu, ...]:
    # AdapterRAM has 32 bits and ends at 4 GiB; the driver's own entry in the registry has 64.
    sizes = {
        name(row.get("DriverDesc")): whole(row.get(_SIZE)) for row in rows(field(told, "sizes"))
    }
    found = []
    for row in rows(field(told, "video")):
        model = name(row.get("Name"))
        vendor = vendor_of(model)
        size = sizes.get(model) or whole(row.get("AdapterRAM"))
        if vendor is not None and size > _OWN_BYTES_MAX:
            found.append(Gpu(vendor, model, size, driver=name(row.get("DriverVersion"))))
    return tuple(found)


def vendor_of(model: str) -> Vendor | None:
    """Who made a GPU, by its name."""
    lower = model.lower()
    if "nvidia" in lower or "geforce" in lower or "quadro" in lower:
        return "nvidia"
    if "amd" in lower or "radeon" in lower:
        return "amd"
    return "intel" if "intel" in lower else None


def _battery(told: object) -> Battery | None:
    for row in rows(field(told, "battery")):
        percent = min(whole(row.get("EstimatedChargeRemaining")), 100)
        return Battery(float(percent), whole(row.get("BatteryStatus")) != _DISCHARGING)
    return None


def _network(told: object) -> NetworkKind:
    medium = str(field(told, "network", "PhysicalMediaType") or "").lower()
    if "802.11" in medium or "wireless lan" in medium:
        return "wireless"
    if "wwan" in medium or "wireless wan" in medium:
        return "mobile"
    return "wired" if "802.3" in medium else "unknown"
