"""One key, one name: an Ed25519 identity written as a NATS nkey.

An nkey is base32 of (prefix byte, 32 key bytes, CRC-16/XMODEM, little-endian), as NATS defines it
(ADR-14 "JWT Identities" of nats-architecture-and-design). A party's public nkey is its name
everywhere: in subjects, records and logs. Knows nothing of permissions or of the network.
"""

from __future__ import annotations

import base64
import binascii
import enum
from functools import lru_cache
from typing import Final, NewType

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from starai.core.errors import ConfigurationRefused, MalformedFrame, SealBroken
from starai.core.randomness import Randomness

#: A party's public nkey, for example ``UAB3…``: 56 characters of base32.
PartyId = NewType("PartyId", str)

#: Names that are kept decoded: a network's parties come up in every message.
NAMES_KEPT: Final = 16_384

_SEED = 18 << 3


class KeyKind(enum.IntEnum):
    """What an nkey stands for; the value is its prefix byte."""

    OPERATOR = 14 << 3
    ACCOUNT = 0
    USER = 20 << 3


def _encode(body: bytes) -> str:
    checked = body + binascii.crc_hqx(body, 0).to_bytes(2, "little")
    return base64.b32encode(checked).decode().rstrip("=")


def _decode(text: str) -> bytes:
    try:
        checked = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError) as error:
        raise MalformedFrame("not an nkey: it is not base32") from error
    body, crc = checked[:-2], checked[-2:]
    if len(checked) < 35 or binascii.crc_hqx(body, 0).to_bytes(2, "little") != crc:
        raise MalformedFrame("not an nkey: its checksum is wrong")
    return body


def public_nkey(kind: KeyKind, raw: bytes) -> str:
    """The nkey text of 32 raw public key bytes."""
    if len(raw) != 32:
        raise MalformedFrame("a public key has 32 bytes")
    return _encode(bytes([kind]) + raw)


@lru_cache(NAMES_KEPT)
def raw_public(nkey: str, kind: KeyKind = KeyKind.USER) -> bytes:
    """The 32 raw bytes of a public nkey.

    Raises:
        MalformedFrame: the text is no public nkey of that kind.
    """
    body = _decode(nkey)
    if len(body) != 33 or body[0] != kind:
        raise MalformedFrame(f"not the public nkey of {kind.name.lower()}")
    return body[1:]


def party_id(text: str) -> PartyId:
    """``text`` as a party's name, once it is seen to be a public user nkey."""
    raw_public(text)
    return PartyId(text)


def verify(nkey: str, message: bytes, signature: bytes, kind: KeyKind = KeyKind.USER) -> None:
    """Check an Ed25519 signature (RFC 8032).

    Raises:
        SealBroken: the signature is not that of ``nkey`` over ``message``.
    """
    try:
        VerifyKey(raw_public(nkey, kind)).verify(message, signature)
    except (BadSignatureError, ValueError) as error:
        raise SealBroken("a signature does not verify") from error


class Identity:
    """A key pair that signs. Its ``seed`` is secret: keep it in a file only its owner can read."""

    def __init__(self, raw_seed: bytes, kind: KeyKind = KeyKind.USER) -> None:
        """Take 32 secret bytes."""
        self._key = SigningKey(raw_seed)
        self.kind = kind
        self.raw = bytes(self._key.verify_key)
        self.nkey = public_nkey(kind, self.raw)
        #: The public nkey as a party's name.
        self.party = PartyId(self.nkey)

    @classmethod
    def create(cls, randomness: Randomness, kind: KeyKind = KeyKind.USER) -> Identity:
        """A new identity."""
        return cls(randomness.take(32), kind)

    @classmethod
    def from_seed(cls, seed: str) -> Identity:
        """The identity of a seed nkey (``SU…``, ``SA…``, ``SO…``)."""
        body = _decode(seed.strip())
        kind_value = ((body[0] & 7) << 5) | ((body[1] & 0xF8) >> 3)
        if len(body) != 34 or body[0] & 0xF8 != _SEED or kind_value not in list(KeyKind):
            raise ConfigurationRefused("not an nkey seed: expected a line that begins with S")
        return cls(body[2:], KeyKind(kind_value))

    @property
    def seed(self) -> str:
        """The secret seed nkey."""
        first = _SEED | (self.kind >> 5)
        second = (self.kind & 31) << 3
        return _encode(bytes([first, second]) + bytes(self._key))

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of ``message``."""
        return bytes(self._key.sign(message).signature)

    def __repr__(self) -> str:
        return f"Identity({self.nkey})"
