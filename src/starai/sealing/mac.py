"""HMAC-SHA256 under one key, many times (RFC 2104).

The same bytes as `hmac.digest` gives, for half of its time: OpenSSL looks its algorithms up anew
for every MAC, while two plain hashes with the padded keys before them need no such thing.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

_BLOCK: Final = 64
_INNER: Final = bytes(value ^ 0x36 for value in range(256))
_OUTER: Final = bytes(value ^ 0x5C for value in range(256))


class Mac:
    """Makes the MACs of one key of at most 64 bytes."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        """Pad the key once."""
        if len(key) > _BLOCK:
            raise AssertionError("longer keys are hashed first; none of ours is")
        padded = key.ljust(_BLOCK, b"\0")
        self._inner = padded.translate(_INNER)
        self._outer = padded.translate(_OUTER)

    def tag(self, message: bytes) -> bytes:
        """The 32-byte MAC of ``message``."""
        return sha256(self._outer + sha256(self._inner + message).digest()).digest()
