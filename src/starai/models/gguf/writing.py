"""Writes GGUF files: settings, then tensors one at a time."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from starai.models.gguf.blocks import Block
from starai.models.gguf.header import ALIGNMENT, ARRAY, BOOL, MAGIC, STRING

_VERSION: Final = 3
_U32: Final = 4
_I32: Final = 5
_F32: Final = 6


def write_gguf(
    path: Path,
    settings: Mapping[str, Any],
    tensors: Mapping[str, tuple[tuple[int, ...], Block]],
    parts: Iterable[NDArray[np.uint8]],
) -> None:
    """Write a file; it appears whole, or not at all.

    Args:
        path: where.
        settings: texts, numbers, truths and lists of one kind of them, by name.
        tensors: shape (outermost first) and type by name.
        parts: their bytes, in the same order.
    """
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        head = struct.pack("<4sIQQ", MAGIC, _VERSION, len(tensors), len(settings))
        head += b"".join(_text(name) + _value(value) for name, value in settings.items())
        at = 0
        sizes = []
        for name, (shape, block) in tensors.items():
            dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
            head += _text(name) + dims + struct.pack("<IQ", block.number, at)
            sizes.append(int(np.prod(shape)) // block.elements * block.num_bytes)
            at += sizes[-1] + -sizes[-1] % ALIGNMENT
        file.write(head)
        _pad(file)
        for size, part in zip(sizes, parts, strict=True):
            if part.size != size:
                raise ValueError(f"a tensor has {part.size} bytes, {size} were announced")
            part.tofile(file)
            _pad(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        if value and isinstance(value[0], int):
            # llama.cpp wants lists of numbers signed, and single numbers not.
            kind, items = _I32, struct.pack(f"<{len(value)}i", *value)
        else:
            kind = _scalar(value[0])[0] if value else STRING
            items = b"".join(_scalar(item)[1] for item in value)
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + items
    kind, raw = _scalar(value)
    return struct.pack("<I", kind) + raw


def _scalar(value: Any) -> tuple[int, bytes]:
    if isinstance(value, str):
        return STRING, _text(value)
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, float):
        return _F32, struct.pack("<f", value)
    return _U32, struct.pack("<I", value)
