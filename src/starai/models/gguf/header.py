"""The head of a GGUF file, read and checked: hostile files are refused before anything is reserved.

Format (github.com/ggml-org/ggml, docs/gguf.md), little-endian: ``GGUF``, u32 version, u64 tensors,
u64 settings; settings as name, type, value; tensors as name, dimensions (innermost first), type and
offset behind the head. Knows nothing about what a setting or a tensor means.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from starai.core.errors import ModelFileRefused
from starai.models.gguf.blocks import BLOCK_OF, NAME_OF, Block
from starai.models.weights import TENSORS_MAX

MAGIC: Final = b"GGUF"
#: Version 1 had 32-bit lengths and is no longer written; 3 only added big-endian files.
VERSIONS: Final = (2, 3)
ALIGNMENT: Final = 32

#: Bounds that no real file reaches: they protect memory from hostile numbers.
_SETTINGS_MAX: Final = 1 << 16
_STRING_BYTES_MAX: Final = 16 << 20
#: In all lists of a file together; a vocabulary of 256k with kinds, scores, merges has a million.
_ITEMS_MAX: Final = 1 << 22
_DIMENSIONS_MAX: Final = 4
_ELEMENTS_MAX: Final = 1 << 40
_ALIGNMENT_MAX: Final = 1 << 16
#: A vocabulary of 256k with its merges has about 20 MB.
_HEAD_BYTES_MAX: Final = 64 << 20

STRING: Final = 8
ARRAY: Final = 9
BOOL: Final = 7
#: Format of `struct` by the number of a type.
_NUMBERS: Final = (0, 1, 2, 3, 4, 5, 6, BOOL, 10, 11, 12)
SCALARS: Final = dict(zip(_NUMBERS, ("<" + form for form in "BbHhIif?Qqd"), strict=True))


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies: ``shape`` outermost first, ``begin`` in the file, ``block`` its type."""

    shape: tuple[int, ...]
    block: Block
    begin: int

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """How many bytes they take."""
        return self.num_elements // self.block.elements * self.block.num_bytes


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Settings by name (strings, numbers, booleans, lists of them) and tensors by name."""

    settings: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_header(path: Path) -> GgufHeader:
    """The head of a GGUF file.

    Raises:
        ModelFileRefused: with the reason: truncated, overlapping, of an unknown type, hostile.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _Reader(path.name, file, size).header()
    except OSError as error:
        raise ModelFileRefused(f"{path.name}: cannot be read: {error.strerror}") from error


class _Reader:
    def __init__(self, name: str, file: BinaryIO, size: int) -> None:
        self._name = name
        self._file = file
        self._size = size
        self._at = 0
        self._items = 0

    def header(self) -> GgufHeader:
        if self._take(4) != MAGIC:
            raise self._refused("is no GGUF file")
        version = self._number("<I")
        if version not in VERSIONS:
            raise self._refused(f"is GGUF of version {version}; 2 and 3 can be read")
        num_tensors, num_settings = self._number("<Q"), self._number("<Q")
        if num_tensors > TENSORS_MAX or num_settings > _SETTINGS_MAX:
            raise self._refused(f"claims {num_tensors} tensors and {num_settings} settings")
        settings: dict[str, Any] = {}
        for _ in range(num_settings):
            name = self._string()
            if name in settings:
                raise self._refused(f"has the setting {name[:80]!r} twice")
            settings[name] = self._value(self._number("<I"))
        raw = [self._tensor() for _ in range(num_tensors)]
        alignment = settings.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= _ALIGNMENT_MAX:
            raise self._refused(f"asks for an alignment of {repr(alignment)[:20]} bytes")
        start = -(-self._at // alignment) * alignment
        return GgufHeader(settings, self._checked(raw, start, alignment))

    def _checked(
        self, raw: list[tuple[str, tuple[int, ...], Block, int]], start: int, alignment: int
    ) -> dict[str, GgufTensor]:
        tensors: dict[str, GgufTensor] = {}
        end, before = start, "the head"
        for name, shape, block, offset in sorted(raw, key=lambda entry: entry[3]):
            tensor = GgufTensor(shape, block, start + offset)
            if name in tensors:
                raise self._refused(f"has the tensor {name[:80]!r} twice")
            if tensor.begin < end or offset % alignment:
                raise self._refused(f"tensor {name[:80]!r} overlaps {before[:80]!r}")
            end, before = tensor.begin + tensor.num_bytes, name
            if end > self._size:
                raise self._refused(
                    f"tensor {name[:80]!r} ends at byte {end} but the file has {self._size}: "
                    "truncated? fetch it again"
                )
            tensors[name] = tensor
        return tensors

    def _tensor(self) -> tuple[str, tuple[int, ...], Block, int]:
        name = self._string()
        dimensions = self._number("<I")
        if not 0 < dimensions <= _DIMENSIONS_MAX:
            raise self._refused(f"tensor {name[:80]!r} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        kind, offset = self._number("<I"), self._number("<Q")
        block = BLOCK_OF.get(kind)
        if block is None:
            raise self._refused(
                f"tensor {name[:80]!r} is of type {NAME_OF.get(kind, kind)}, which cannot be read "
                "here: take the model's Q8_0, Q4_0, F16 or BF16 file"
            )
        if not all(0 < size < _ELEMENTS_MAX for size in shape) or math.prod(shape) > _ELEMENTS_MAX:
            raise self._refused(f"tensor {name[:80]!r} has an impossible shape")
        if shape[-1] % block.elements:
            raise self._refused(f"tensor {name[:80]!r} has rows that are no whole blocks")
        return name, shape, block, offset

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._number(self._format(kind))
        inner, count = self._number("<I"), self._number("<Q")
        # Items are counted over the whole file: each costs many times what it takes in there.
        self._items += count
        if self._items > _ITEMS_MAX:
            raise self._refused(f"claims a list of {count} items, {self._items} in all lists")
        if inner == STRING:
            return [self._string() for _ in range(count)]
        form = self._format(inner)
        raw = self._take(struct.calcsize(form) * count)
        return [item for (item,) in struct.iter_unpack(form, raw)]

    def _format(self, kind: int) -> str:
        if kind not in SCALARS:
            raise self._refused(f"has a setting of unknown type {kind}")
        return SCALARS[kind]

    def _string(self) -> str:
        length = self._number("<Q")
        if length > _STRING_BYTES_MAX:
            raise self._refused(f"claims a text of {length} bytes")
        # Tokens may be cut inside a character: those bytes survive as surrogates.
        return self._take(length).decode("utf-8", "surrogateescape")

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _take(self, count: int) -> bytes:
        self._at += count
        if self._at > min(self._size, _HEAD_BYTES_MAX):
            raise self._refused("ends within its head: truncated? fetch it again")
        return self._file.read(count)

    def _refused(self, reason: str) -> ModelFileRefused:
        return ModelFileRefused(f"{self._name}: {reason}")
