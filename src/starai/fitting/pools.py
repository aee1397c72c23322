"""What of a device models may use, and how fast that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from starai.devices.base import Device, Gpu, Rates
from starai.fitting.base import Pool, PoolKind

#: Shares of memory that models may have, by default. A GPU also draws its owner's desktop; a
#: computer is also used for something else; whoever carries a device needs most of it.
GPU_SHARE: Final = 0.92
UNIFIED_SHARE: Final = 0.70
MEMORY_SHARE: Final = 0.50
CARRIED_SHARE: Final = 0.25
#: Bandwidth and arithmetic of a processor that was neither measured nor looked up: an old one.
_UNKNOWN_CPU: Final = Rates(10e9, 0.04e12, measured=False)
#: Processors with fewer threads keep a GPU waiting, and so do the small Arm boards.
_HOST_THREADS_MIN: Final = 2
_SLOW_HOSTS: Final = ("Cortex-A53", "Cortex-A55", "Cortex-A72", "Cortex-A76", "riscv64")


def pools(
    device: Device, cpu: Rates | None = None, gpus: Mapping[str, Rates] | None = None
) -> tuple[Pool, ...]:
    """The pools of a device: its GPUs by name, the one with most memory first, else the processor.

    Equal GPUs are one pool, because the layers of one model can be spread over them. A processor
    beside a GPU is left to the owner.

    Args:
        device: its profile.
        cpu: rates of the processor.
        gpus: rates of GPUs by name; those without are left out.
    """
    rates = gpus or {}
    carried = device.battery is not None
    counted = Counter((gpu.name, gpu.memory_bytes) for gpu in device.gpus)
    known = {(gpu.name, gpu.memory_bytes): gpu for gpu in device.gpus}
    found = [
        _gpu_pool(known[key], number, rates[key[0]], slow_host=_is_slow(device), carried=carried)
        for key, number in counted.items()
        if key[0] in rates
    ]
    if found:
        return tuple(sorted(found, key=lambda pool: (-pool.memory_bytes, pool.name)))
    told = cpu or _UNKNOWN_CPU
    share = CARRIED_SHARE if carried else MEMORY_SHARE
    return (
        Pool(
            name=device.cpu.model or "processor",
            kind="cpu",
            memory_bytes=int(device.memory_bytes * share),
            read_bytes_per_s=told.read_bytes_per_s,
            operations_per_s=told.operations_per_s,
            measured=told.measured,
        ),
    )


def _gpu_pool(gpu: Gpu, number: int, rates: Rates, *, slow_host: bool, carried: bool) -> Pool:
    share = (CARRIED_SHARE if carried else UNIFIED_SHARE) if gpu.unified else GPU_SHARE
    kind: PoolKind = gpu.vendor
    return Pool(
        name=gpu.name if number == 1 else f"{number} x {gpu.name}",
        kind=kind,
        memory_bytes=int(gpu.memory_bytes * share) * number,
        read_bytes_per_s=rates.read_bytes_per_s,
        operations_per_s=rates.operations_per_s,
        slow_host=slow_host and not gpu.unified,
        measured=rates.measured,
    )


def _is_slow(device: Device) -> bool:
    cpu = device.cpu
    if 0 < cpu.threads < _HOST_THREADS_MIN:
        return True
    return any(word in f"{cpu.model} {cpu.architecture}" for word in _SLOW_HOSTS)
