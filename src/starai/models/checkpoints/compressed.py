"""compressed-tensors checkpoints (llm-compressor's), dequantised: pack-quantized and int-quantized.

pack-quantized: ``weight_packed`` int32 [N, K / (32/bits)], lowest field first, of codes that were
made positive by adding half their range; ``weight_shape`` int64 [2]; ``weight_scale`` [N, G], with
G = 1 for one scale a row; optionally ``weight_zero_point`` int32 [N / (32/bits), G] packed along N,
and ``weight_g_idx`` [K]. int-quantized: ``weight`` int8 [N, K], ``weight_scale`` [N, 1] or [1],
optionally ``weight_zero_point`` int8. The value is ``(code - zero) * scale``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from starai.core.errors import ModelFileRefused
from starai.models.checkpoints.base import Array, Floats, Plain, Source, checked_bits, unpacked

_FORMATS: Final = ("pack-quantized", "int-quantized", "naive-quantized", "dense")
#: Codes of 4 bits in a word: the most that are read here.
_FIELDS_MAX: Final = 8
_PARTS: Final = (
    ".weight_packed",
    ".weight_shape",
    ".weight_scale",
    ".weight_zero_point",
    ".weight_g_idx",
    ".input_scale",
    ".input_zero_point",
)


class CompressedTensors(Plain):
    """See the module's text."""

    def __init__(self, source: Source, config: Mapping[str, Any]) -> None:
        """Take the settings that config.json declares."""
        declared = config.get("format")
        sparsity = config.get("sparsity_config") or {"format": "dense"}
        dense = isinstance(sparsity, dict) and sparsity.get("format", "dense") == "dense"
        if declared not in _FORMATS or not dense:
            raise ModelFileRefused(
                f"compressed-tensors of format {str(declared)[:40]!r} cannot be read here; dense "
                f"{' and '.join(_FORMATS[:2])} can"
            )
        super().__init__(source, config)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, info in self.source.tensors.items():
            if name.endswith(".weight_packed"):
                stem = name.removesuffix("_packed")
                shape = self.source.integers(stem + "_shape", "I64", 2)
                outputs, inputs = (int(size) for size in shape)
                words = info.shape[1] if len(info.shape) == 2 else 0
                if (
                    not words
                    or info.shape[0] != outputs
                    or not words <= inputs <= _FIELDS_MAX * words
                ):
                    raise ModelFileRefused(f"tensor {name!r} does not fit its 'weight_shape'")
                shapes[stem] = (outputs, inputs)
            elif not name.endswith(_PARTS):
                shapes[name] = info.shape
        return shapes

    def floats(self, name: str) -> Floats:
        """See `Checkpoint.floats`."""
        tensors = self.source.tensors
        if name + "_packed" in tensors:
            return self._packed_floats(name)
        if name in tensors and tensors[name].dtype == "I8":
            codes = self.source.integers(name, "I8", -1, -1)
            zero: Array | float = 0.0
            if name + "_zero_point" in tensors:
                zero = self.source.integers(name + "_zero_point", "I8", len(codes), -1)
            return self._scaled(name, codes, zero)
        return super().floats(name)

    def _packed_floats(self, name: str) -> Floats:
        outputs, inputs = self.shapes[name]
        width = self.source.tensors[name + "_packed"].shape[1]
        bits = checked_bits(next((b for b in (4, 8) if -(-inputs * b // 32) == width), None), 4, 8)
        half = 1 << (bits - 1)
        words = self.source.integers(name + "_packed", "I32", outputs, width)
        codes = unpacked(words, bits)[:, :inputs].astype(np.int16) - half
        zero: Array | float = 0.0
        if name + "_zero_point" in self.source.tensors:
            rows = -(-outputs * bits // 32)
            packed = self.source.integers(name + "_zero_point", "I32", rows, -1)
            fields = unpacked(np.ascontiguousarray(packed.T), bits)[:, :outputs]
            zero = fields.T.astype(np.int16) - half
        return self._scaled(name, codes, zero)

    def _scaled(self, name: str, codes: Array, zero: Array | float) -> Floats:
        scale = self.source.floats(name + "_scale")
        outputs, inputs = codes.shape
        scale = np.broadcast_to(scale.reshape(-1, 1), (outputs, 1)) if scale.size == 1 else scale
        if scale.ndim != 2 or len(scale) != outputs or not 0 < scale.shape[1] <= inputs:
            raise ModelFileRefused(f"tensor {name + '_scale'!r} does not fit its weight")
        groups = scale.shape[1]
        if isinstance(zero, np.ndarray) and zero.shape != scale.shape:
            raise ModelFileRefused(f"tensor {name + '_zero_point'!r} does not fit its weight")
        group_of = self._groups(name, inputs, groups)
        steps = codes.astype(np.float32)
        if isinstance(zero, np.ndarray):
            steps -= zero.astype(np.float32)[:, group_of]
        steps *= scale[:, group_of]
        return steps

    def _groups(self, name: str, inputs: int, groups: int) -> Array:
        if name + "_g_idx" in self.source.tensors:
            group_of = self.source.integers(name + "_g_idx", "I32", inputs)
            if group_of.max() >= groups:
                raise ModelFileRefused(f"tensor {name + '_g_idx'!r} names groups that are missing")
            if group_of.min() >= 0:  # -1 throughout means: in order
                return group_of
        sizes = [size for size in self._group_sizes() if -(-inputs // size) == groups]
        if not sizes and inputs % groups:
            raise ModelFileRefused(f"{name}_scale: {groups} groups do not divide {inputs}")
        return np.arange(inputs) // (sizes[0] if sizes else inputs // groups)

    def _group_sizes(self) -> list[int]:
        """The sizes of groups that config.json declares; a row's last group may be short."""
        declared = self.config.get("config_groups")
        entries = declared.values() if isinstance(declared, dict) else ()
        weights = [entry.get("weights") or {} for entry in entries if isinstance(entry, dict)]
        sizes = [entry.get("group_size") for entry in weights if isinstance(entry, dict)]
        return [size for size in sizes if isinstance(size, int) and size > 0]
