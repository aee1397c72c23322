"""The folders that ``starai models quantize`` writes.

Beside the tensors that stay floats, a weight NAME is ``NAME`` int8 [N, K] with ``NAME_scale``
float32 [N], or ``NAME`` uint8 [N, K/2] (inputs 2j and 2j+1 in the low and high half of byte j) with
``NAME_scale`` float16 [N, K/32]. What the codes mean is told by `Packed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from starai.core.errors import ModelFileRefused
from starai.models.checkpoints.base import INT4_GROUP, Array, Floats, Packed, Plain, Source

METHOD: Final = "starai"
#: Raised when a reader of before could misread what is written.
VERSION: Final = 1
_SCALE: Final = "_scale"


class Ours(Plain):
    """See the module's text."""

    def __init__(self, source: Source, config: Mapping[str, Any]) -> None:
        """Take the settings that config.json declares."""
        if config.get("version") != VERSION:
            raise ModelFileRefused(
                f"written in version {repr(config.get('version'))[:20]} of StarAI's format; this "
                f"program reads {VERSION}: quantise the model again"
            )
        super().__init__(source, config)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, info in self.source.tensors.items():
            if name.endswith(_SCALE) and name.removesuffix(_SCALE) in self.source.tensors:
                continue
            if info.dtype == "U8":
                if len(info.shape) != 2 or info.shape[1] * 2 % INT4_GROUP:
                    raise ModelFileRefused(f"tensor {name!r} holds no groups of {INT4_GROUP}")
                shapes[name] = (info.shape[0], 2 * info.shape[1])
            else:
                shapes[name] = info.shape
        return shapes

    def floats(self, name: str) -> Floats:
        """See `Checkpoint.floats`."""
        packed = self.packed(name)
        return super().floats(name) if packed is None else packed.floats()

    def is_packed(self, name: str) -> bool:
        """See `Checkpoint.is_packed`."""
        info = self.source.tensors.get(name)
        return info is not None and info.dtype in ("I8", "U8") and len(info.shape) == 2

    def packed(self, name: str) -> Packed | None:
        """See `Checkpoint.packed`."""
        if not self.is_packed(name):
            return None
        info = self.source.tensors[name]
        count, width = self.shapes[name]
        if info.dtype == "I8":
            scale = self.source.integers(name + _SCALE, "F32", count)
            found = Packed("int8", self.source.raw(name), scale)
        else:
            scale = self.source.integers(name + _SCALE, "F16", count, width // INT4_GROUP)
            found = Packed("int4", _split(self.source.raw(name)), scale)
        if not np.isfinite(scale).all():
            raise ModelFileRefused(f"tensor {name + _SCALE!r} holds what is no number")
        return found


def stored(name: str, packed: Packed) -> list[tuple[str, Array]]:
    """The tensors to write for a weight: the inverse of reading one."""
    if packed.kind == "int8":
        return [(name, packed.codes), (name + _SCALE, packed.scale)]
    halves = packed.codes[:, 0::2] | packed.codes[:, 1::2] << 4
    return [(name, halves), (name + _SCALE, packed.scale)]


def _split(halves: Array) -> Array:
    codes = np.empty((len(halves), 2 * halves.shape[1]), dtype=np.uint8)
    codes[:, 0::2] = halves & 15
    codes[:, 1::2] = halves >> 4
    return codes
