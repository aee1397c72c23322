"""AWQ checkpoints (AutoAWQ's "gemm" layout), dequantised.

For a layer of K inputs and N outputs: ``qweight`` int32 [K, N/8] and ``qzeros`` int32 [K/G, N/8]
hold eight neighbouring outputs in one word, in the order 0 2 4 6 1 3 5 7; ``scales`` [K/G, N]. The
value is ``(code - zero) * scale``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from starai.core.errors import ModelFileRefused
from starai.models.checkpoints.base import Array, Floats, Plain, Source, checked_bits, unpacked

_BITS: Final = 4
_FIELDS: Final = 8
#: Which field of a word output 0, 1, ... 7 lies in.
_FIELD_OF: Final = [0, 4, 1, 5, 2, 6, 3, 7]
_PARTS: Final = (".qweight", ".qzeros", ".scales")


class Awq(Plain):
    """See the module's text."""

    def __init__(self, source: Source, config: Mapping[str, Any]) -> None:
        """Take the settings that config.json declares."""
        checked_bits(config.get("bits", config.get("w_bit")), _BITS)
        version = str(config.get("version", "gemm")).lower()
        if version != "gemm":
            raise ModelFileRefused(f"AWQ's layout {version[:20]!r} cannot be read here; 'gemm' can")
        super().__init__(source, config)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, info in self.source.tensors.items():
            if name.endswith(".qweight"):
                if len(info.shape) != 2:
                    raise ModelFileRefused(f"tensor {name!r} is no AWQ weight")
                inputs, words = info.shape
                shapes[name.removesuffix("qweight") + "weight"] = (words * _FIELDS, inputs)
            elif not name.endswith(_PARTS):
                shapes[name] = info.shape
        return shapes

    def floats(self, name: str) -> Floats:
        """See `Checkpoint.floats`."""
        stem = name.removesuffix("weight")
        if stem + "qweight" not in self.source.tensors:
            return super().floats(name)
        outputs, inputs = self.shapes[name]
        words = self.source.integers(stem + "qweight", "I32", inputs, outputs // _FIELDS)
        scales = self.source.floats(stem + "scales")
        if scales.ndim != 2 or scales.shape[1] != outputs or not len(scales):
            raise ModelFileRefused(f"tensor {stem + 'scales'!r} does not fit its weight")
        groups = len(scales)
        if inputs % groups:
            raise ModelFileRefused(f"{stem}scales: {groups} groups do not divide {inputs}")
        zeros = self.source.integers(stem + "qzeros", "I32", groups, outputs // _FIELDS)
        steps = _in_order(words).astype(np.float32).reshape(groups, -1, outputs)
        steps -= _in_order(zeros).astype(np.float32)[:, None]
        steps *= scales[:, None]
        return np.ascontiguousarray(steps.reshape(inputs, outputs).T)


def _in_order(words: Array) -> NDArray[np.uint8]:
    """Codes [rows, N] of words [rows, N/8]."""
    fields = unpacked(words, _BITS).reshape(len(words), -1, _FIELDS)
    return fields[..., _FIELD_OF].reshape(len(words), -1)
