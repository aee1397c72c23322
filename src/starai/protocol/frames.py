"""How a message becomes bytes and back, and nothing else becomes a message.

A frame is ``"SA" | version 1 | type 1 | check 8 | MessagePack``. The check is a BLAKE2b-64 over
everything else: it catches damage and foreign bytes before they are parsed. It is no signature;
who may speak is settled by NATS permissions, seals and signatures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from starai.core.errors import MalformedFrame
from starai.core.limits import FRAME_BYTES_MAX

_MAGIC: Final = b"SA\x01"
_HEAD: Final = 12

M = TypeVar("M", bound="Message")


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A message of the protocol; each class takes one type number, forever."""


_NUMBER_OF: dict[type[Message], int] = {}
_KIND_OF: dict[int, type[Message]] = {}
#: Keyed and ready: to copy one costs half of keying it anew.
_CHECK_OF: dict[int, hashlib.blake2b] = {}
_DECODER_OF: dict[type[Message], msgspec.msgpack.Decoder[Message]] = {}
_ENCODE: Final = msgspec.msgpack.Encoder().encode


def message_types() -> tuple[type[Message], ...]:
    """Every class that can travel, by type number."""
    return tuple(_KIND_OF[number] for number in sorted(_KIND_OF))


def travels(number: int) -> Callable[[type[M]], type[M]]:
    """Class decorator: give a message its type number."""

    def claim(kind: type[M]) -> type[M]:
        if number in _KIND_OF or not 0 < number < 256:
            raise AssertionError(f"type number {number} is taken or out of range")
        _NUMBER_OF[kind] = number
        _KIND_OF[number] = kind
        _CHECK_OF[number] = hashlib.blake2b(digest_size=8, key=_MAGIC + bytes([number]))
        _DECODER_OF[kind] = msgspec.msgpack.Decoder(kind)
        return kind

    return claim


def _check(kind: int, payload: bytes) -> bytes:
    check = _CHECK_OF[kind].copy()
    check.update(payload)
    return check.digest()


def encode(message: Message) -> bytes:
    """The frame of a message.

    Raises:
        MalformedFrame: the message is larger than a frame may be.
    """
    number = _NUMBER_OF[type(message)]
    payload = _ENCODE(message)
    if len(payload) + _HEAD > FRAME_BYTES_MAX:
        raise MalformedFrame(
            f"a message of {len(payload)} bytes exceeds the frame limit of {FRAME_BYTES_MAX}"
        )
    return _MAGIC + bytes([number]) + _check(number, payload) + payload


def decode(frame: bytes, kind: type[M]) -> M:
    """The message of type ``kind`` in ``frame``.

    Raises:
        MalformedFrame: anything else is in it.
    """
    number = _NUMBER_OF[kind]
    if not _HEAD < len(frame) <= FRAME_BYTES_MAX:
        raise MalformedFrame(f"a frame has {_HEAD + 1} to {FRAME_BYTES_MAX} bytes")
    if frame[:3] != _MAGIC or frame[3] != number:
        raise MalformedFrame(f"not a frame of {kind.__name__}")
    payload = frame[_HEAD:]
    if _check(number, payload) != frame[4:_HEAD]:
        raise MalformedFrame("the frame is damaged")
    try:
        return _DECODER_OF[kind].decode(payload)  # type: ignore[return-value]
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise MalformedFrame(f"not a valid {kind.__name__}") from error


def peek(frame: bytes) -> type[Message] | None:
    """Which message a frame claims to hold, or None; costs no parsing."""
    if len(frame) <= _HEAD or frame[:3] != _MAGIC:
        return None
    return _KIND_OF.get(frame[3])
