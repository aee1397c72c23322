"""The header of a safetensors file, read and checked without torch: hostile files are refused.

Format: u64 little-endian header length, a JSON header, then the tensors' bytes without holes
(the safetensors format description, https://huggingface.co/docs/safetensors). Knows nothing about
what a tensor means.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import msgspec

from starai.core.errors import ModelFileRefused

#: Protects memory: hostile JSON takes 25 times its size. 100,000 tensors in one file take 14 MB;
#: the format itself allows 100.
HEADER_BYTES_MAX: Final = 32 << 20
#: More dimensions than any model uses; protects arithmetic from hostile shapes.
DIMENSIONS_MAX: Final = 8
#: The largest MoE models have about 100,000 tensors.
TENSORS_MAX: Final = 1 << 20

_BITS_OF: Final = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}


class TensorInfo(msgspec.Struct, frozen=True):
    """Where a tensor lies: ``begin`` and ``end`` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name, in the order of their bytes.

    Raises:
        ModelFileRefused: with the reason: truncated, overlapping, of unknown type, hostile.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_BYTES_MAX):
                raise _refused(
                    path, f"its header claims {length} bytes but the file has {size}: truncated?"
                )
            raw = file.read(length)
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}") from error
    return _checked(path, _parsed(path, raw), data_start=8 + length, size=size)


def _parsed(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(path, "its header is not the JSON object of a safetensors file") from error
    header.pop("__metadata__", None)
    if not 0 < len(header) <= TENSORS_MAX:
        raise _refused(path, f"it holds {len(header)} tensors; 1 to {TENSORS_MAX} make sense")
    return header


def _checked(
    path: Path, header: dict[str, Any], *, data_start: int, size: int
) -> dict[str, TensorInfo]:
    try:
        tensors = {name: _tensor(entry, data_start) for name, entry in header.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(path, f"a tensor's entry is malformed ({error})") from error
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    expected = data_start
    for name, tensor in ordered.items():
        if tensor.begin != expected:
            raise _refused(path, f"tensor {name!r} overlaps another or leaves a hole")
        if (tensor.end - tensor.begin) * 8 != tensor.num_elements * _BITS_OF[tensor.dtype]:
            raise _refused(path, f"tensor {name!r} has other than its shape's number of bytes")
        expected = tensor.end
    if expected != size:
        raise _refused(path, f"its header describes {expected} bytes but the file has {size}")
    return ordered


def _tensor(entry: dict[str, Any], data_start: int) -> TensorInfo:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _BITS_OF:
        raise ValueError(f"unknown type {str(dtype)[:20]!r}")
    if len(shape) > DIMENSIONS_MAX or not all(_is_size(number) for number in (*shape, begin, end)):
        raise ValueError("shape and offsets are small natural numbers")
    if end < begin:
        raise ValueError("a tensor ends before it begins")
    return TensorInfo(dtype, tuple(shape), data_start + begin, data_start + end)


def _is_size(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 48


def _refused(path: Path, reason: str) -> ModelFileRefused:
    return ModelFileRefused(f"{path.name}: {reason}")
