"""GPTQ checkpoints (AutoGPTQ's layout; GPTQModel writes it too), dequantised.

For a layer of K inputs and N outputs: ``qweight`` int32 [K / (32/bits), N] holds the codes of
neighbouring inputs in one word, ``qzeros`` int32 [G, N / (32/bits)] those of neighbouring outputs,
``scales`` [G, N], ``g_idx`` int32 [K] says which group an input belongs to (act-order). The value
is ``(code - zero) * scale``; version 1 stores ``zero - 1``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from starai.core.errors import ModelFileRefused
from starai.models.checkpoints.base import Array, Floats, Plain, Source, checked_bits, unpacked

_PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")


class Gptq(Plain):
    """See the module's text."""

    def __init__(self, source: Source, config: Mapping[str, Any]) -> None:
        """Take the settings that config.json declares."""
        self._bits = checked_bits(config.get("bits"), 2, 4, 8)
        self._stored_less_one = config.get("checkpoint_format", "gptq") != "gptq_v2"
        super().__init__(source, config)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, info in self.source.tensors.items():
            if name.endswith(".qweight"):
                if len(info.shape) != 2:
                    raise ModelFileRefused(f"tensor {name!r} is no GPTQ weight")
                height, outputs = info.shape
                dense = name.removesuffix("qweight") + "weight"
                shapes[dense] = (outputs, height * 32 // self._bits)
            elif not name.endswith(_PARTS):
                shapes[name] = info.shape
        return shapes

    def floats(self, name: str) -> Floats:
        """See `Checkpoint.floats`."""
        stem = name.removesuffix("weight")
        if stem + "qweight" not in self.source.tensors:
            return super().floats(name)
        outputs, inputs = self.shapes[name]
        fields = 32 // self._bits
        words = self.source.integers(stem + "qweight", "I32", inputs // fields, outputs)
        codes = unpacked(np.ascontiguousarray(words.T), self._bits)
        scales = self.source.floats(stem + "scales")
        if scales.ndim != 2 or scales.shape[1] != outputs or not len(scales):
            raise ModelFileRefused(f"tensor {stem + 'scales'!r} does not fit its weight")
        groups = len(scales)
        zeros = self.source.integers(stem + "qzeros", "I32", groups, -(-outputs // fields))
        zero = unpacked(zeros, self._bits)[:, :outputs]
        if self._stored_less_one:
            zero = (zero + np.uint8(1)) & np.uint8((1 << self._bits) - 1)
        group_of = self._groups(stem, inputs, groups)
        steps = codes.astype(np.float32) - zero.T.astype(np.float32)[:, group_of]
        steps *= np.ascontiguousarray(scales.T)[:, group_of]
        return steps

    def _groups(self, stem: str, inputs: int, groups: int) -> Array:
        """Which group each input belongs to."""
        if stem + "g_idx" not in self.source.tensors:
            if inputs % groups:
                raise ModelFileRefused(f"{stem}scales: {groups} groups do not divide {inputs}")
            return np.arange(inputs) // (inputs // groups)
        group_of = self.source.integers(stem + "g_idx", "I32", inputs)
        if group_of.min() < 0 or group_of.max() >= groups:
            raise ModelFileRefused(f"tensor {stem + 'g_idx'!r} names groups that are not there")
        return group_of
