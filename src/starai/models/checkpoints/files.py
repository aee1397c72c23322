"""Tensors in safetensors files, read one at a time and written one after another; without torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from starai.core.errors import ModelFileRefused
from starai.models.checkpoints.base import Array, Source
from starai.models.weights import TensorInfo, read_safetensors_header

#: numpy's types; it has none for bfloat16.
_TYPES: Final = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
_ALIGNMENT: Final = 8


class SafetensorsSource(Source):
    """The tensors of some safetensors files in one folder."""

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        """Read and check the headers.

        Raises:
            ModelFileRefused: a file is truncated or hostile.
        """
        self.tensors: dict[str, TensorInfo] = {}
        self._path_of: dict[str, Path] = {}
        for file in files:
            found = read_safetensors_header(folder / file)
            self.tensors.update(found)
            self._path_of.update(dict.fromkeys(found, folder / file))

    def raw(self, name: str) -> Array:
        """See `Source.raw`."""
        info, path = self.tensors[name], self._path_of[name]
        if info.dtype not in _TYPES:
            raise ModelFileRefused(f"{path.name}: tensor {name!r} is {info.dtype}: not supported")
        try:
            array = np.fromfile(path, _TYPES[info.dtype], info.num_elements, offset=info.begin)
        except OSError as error:
            raise ModelFileRefused(f"{path.name}: cannot be read: {error.strerror}") from error
        if array.size != info.num_elements:
            raise ModelFileRefused(f"{path.name}: it shrank while it was read")
        return array.reshape(info.shape)


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], parts: Iterable[Array]
) -> None:
    """Write a file whose tensors come one at a time.

    Args:
        path: where; replaced whole, or not at all.
        tensors: type (``BF16``, ...) and shape by name.
        parts: the arrays, in the order of ``tensors``.
    """
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(_TYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (at, at + size)}
        at += size
    raw = msgspec.json.encode({"__metadata__": {"format": "pt"}, **header})
    raw += b" " * (-len(raw) % _ALIGNMENT)
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for (name, (dtype, shape)), array in zip(tensors.items(), parts, strict=True):
            if array.shape != shape or array.dtype.itemsize != np.dtype(_TYPES[dtype]).itemsize:
                raise ValueError(f"tensor {name!r} is not what was announced")
            np.ascontiguousarray(array).tofile(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
