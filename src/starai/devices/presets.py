"""Known devices by name: what their makers say of memory, bandwidth and arithmetic.

A table is only where measuring is impossible: for a device that is not there (`starai node fit
--device`), and for a GPU that no program on the machine can measure.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from starai.core.errors import ConfigurationRefused
from starai.devices.base import Battery, Cpu, Device, Gpu, Rates, Vendor

_GIGA: Final = 1e9
_GIB: Final = 1 << 30
#: A machine of which nothing else is said has this much memory beside its GPU.
_MEMORY_GIB: Final = 32.0
#: Words of a GPU's name that not every tool writes.
_NOISE: Final = frozenset(
    (
        *("nvidia", "geforce", "rtx", "gtx", "quadro", "tesla", "amd", "radeon", "rx", "ai"),
        *("intel", "intel(r)", "arc", "arc(tm)", "graphics", "apple", "gpu"),
    )
)
#: Words that make another device of a name, whatever else is the same.
_VARIANTS: Final = frozenset(("ti", "super", "xt", "xtx", "gre", "pro", "max", "ultra", "laptop"))

Positive = Annotated[float, Meta(gt=0)]


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device as its data sheet has it.

    Attributes:
        id: what one types.
        name: as the driver or the processor writes it.
        kind: a GPU's vendor, or ``cpu``.
        memory_gib: a GPU's own; of a ``cpu`` or a unified one the machine's.
        read_gb_per_s: peak bandwidth of that memory.
        tflops: dense arithmetic in 16-bit floats with 32-bit sums, of a ``cpu`` in 32-bit floats.
        unified: a GPU with the machine's memory.
        battery: a device that people carry.
    """

    id: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]+\Z")]
    name: str
    kind: Literal["nvidia", "amd", "intel", "apple", "cpu"]
    memory_gib: Positive
    read_gb_per_s: Positive
    tflops: Positive
    unified: bool = False
    battery: bool = False

    @property
    def rates(self) -> Rates:
        """Looked up, not measured."""
        return Rates(self.read_gb_per_s * _GIGA, self.tflops * 1e12, measured=False)

    @property
    def memory_bytes(self) -> int:
        """Of the GPU, or of the machine."""
        return int(self.memory_gib * _GIB)

    def device(self) -> Device:
        """A device that has this and nothing remarkable else."""
        if self.kind == "cpu":
            gpus: tuple[Gpu, ...] = ()
            cpu = Cpu(model=self.name)
        else:
            vendor: Vendor = self.kind
            gpus = (Gpu(vendor, self.name, self.memory_bytes, unified=self.unified),)
            cpu = Cpu()
        shared = not gpus or self.unified
        memory = self.memory_bytes if shared else int(_MEMORY_GIB * _GIB)
        battery = Battery(100.0, on_mains=True) if self.battery else None
        return Device("preset", cpu, memory, memory, memory * 8, gpus, battery)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device: tuple[Preset, ...]


@cache
def presets() -> tuple[Preset, ...]:
    """All of them, in the order of the file."""
    text = resources.files(__package__).joinpath("presets.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), _File).device


def find_preset(wanted: str) -> Preset:
    """The preset with an id.

    Raises:
        ConfigurationRefused: there is none; the message names those that are like it.
    """
    for preset in presets():
        if preset.id == wanted.lower():
            return preset
    like = [preset.id for preset in presets() if wanted.lower()[:4] in preset.id]
    known = ", ".join(like or [preset.id for preset in presets()])
    raise ConfigurationRefused(f"no device {wanted!r} is known; there are: {known}")


def look_up(gpu: Gpu) -> Preset | None:
    """The preset whose name a GPU bears; of several memory sizes the nearest."""
    words = _words(gpu.name)
    found = [
        preset
        for preset in presets()
        if preset.kind == gpu.vendor
        and (named := _words(preset.name)) <= words
        and named & _VARIANTS == words & _VARIANTS
    ]
    return min(found, key=lambda one: abs(one.memory_bytes - gpu.memory_bytes), default=None)


def _words(name: str) -> frozenset[str]:
    return frozenset(name.lower().replace("-", " ").replace(",", " ").split()) - _NOISE
