"""Token ids on the wire: packed little-endian u32, four bytes a token. Text never travels."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence

from starai.core.errors import MalformedFrame

_CODE = "I" if array("I").itemsize == 4 else "L"


def pack(ids: Iterable[int]) -> bytes:
    """Ids as canonical bytes; raises OverflowError for an id outside u32."""
    packed = array(_CODE)
    packed.extend(ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack(data: bytes) -> Sequence[int]:
    """Canonical bytes as ids.

    Raises:
        MalformedFrame: the length is not a multiple of four.
    """
    if len(data) % 4:
        raise MalformedFrame("packed token ids come in groups of four bytes")
    ids = array(_CODE)
    ids.frombytes(data)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tolist()


def count(data: bytes) -> int:
    """How many ids ``data`` holds."""
    return len(data) // 4
