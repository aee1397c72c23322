"""Checkpoints of a log, signed by the log and cosigned by witnesses, as text.

The formats are C2SP's: signed-note, tlog-checkpoint and tlog-cosignature (cosignature/v1), so that
other programs can read and check them. A checkpoint's first lines are the log's origin, size and
root; further ones are the log's own and mean nothing here. Signing is a function that is handed
in. Knows nothing of trees, and nothing of who may be a witness.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from starai.core.errors import MalformedFrame, SealBroken
from starai.ledger.merkle_log import HASH_BYTES

#: A note is some hundred characters and a line a witness; what is far longer is not read.
NOTE_CHARS_MAX: Final = 16_384
_SIZE_MAX: Final = (1 << 63) - 1
_MARK: Final = "\u2014 "
#: What a key signs by (signed-note, tlog-cosignature): the byte in its key id.
_LOG: Final = b"\x01"
_WITNESS: Final = b"\x04"
_COSIGNED: Final = struct.Struct(">Q64s")

#: Makes the Ed25519 signature of some bytes.
Sign = Callable[[bytes], bytes]


class Checkpoint(msgspec.Struct, frozen=True):
    """What a log says of itself: at ``size`` leaves its root is ``root``."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """The note's text: what is signed, with its last newline."""
        lines = (self.origin, str(self.size), _text64(self.root), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """The checkpoint in a note's text.

        Raises:
            MalformedFrame: it is none.
        """
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1]:
            raise MalformedFrame("not a checkpoint: it has fewer than three lines")
        origin, size, root, *extensions = lines[:-1]
        if not size.isascii() or not size.isdigit() or len(size) > len(str(_SIZE_MAX)):
            raise MalformedFrame("not a checkpoint: its second line is no size")
        checkpoint = cls(origin, int(size), _bytes64(root), tuple(extensions))
        if len(checkpoint.root) != HASH_BYTES or checkpoint.size > _SIZE_MAX:
            raise MalformedFrame("not a checkpoint: its size or root is out of range")
        if not origin or "" in extensions or checkpoint.text() != text:
            raise MalformedFrame("not a checkpoint: it is not canonical")
        return checkpoint


class Signature(msgspec.Struct, frozen=True):
    """A signature line of a note: whose, which key's, and the signature itself."""

    name: str
    key_id: bytes
    signature: bytes

    def line(self) -> str:
        """The line, without its newline."""
        return f"{_MARK}{self.name} {_text64(self.key_id + self.signature)}"

    @classmethod
    def parse(cls, line: str) -> Signature:
        """The signature in a line.

        Raises:
            MalformedFrame: it is none.
        """
        name, space, rest = line.removeprefix(_MARK).partition(" ")
        raw = _bytes64(rest)
        found = cls(name, raw[:4], raw[4:])
        if not space or not name or not found.signature or found.line() != line:
            raise MalformedFrame("not a note: a signature line is malformed")
        return found


class Note(msgspec.Struct, frozen=True):
    """A signed note: a text and signatures, of which some may be anybody's."""

    text: str
    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        return "\n".join((self.text, *(one.line() for one in self.signatures), ""))

    @classmethod
    def parse(cls, note: str) -> Note:
        """The parts of a note; nothing is verified.

        Raises:
            MalformedFrame: it is none.
        """
        if len(note) > NOTE_CHARS_MAX or not note.endswith("\n"):
            raise MalformedFrame("not a note: too long, or cut off")
        text, blank, lines = note.rpartition("\n\n")
        if not blank or any(ord(char) < 0x20 and char != "\n" for char in note):
            raise MalformedFrame("not a note: it has no signatures, or control characters")
        found = cls(text + "\n", tuple(Signature.parse(one) for one in lines[:-1].split("\n")))
        if str(found) != note:
            raise MalformedFrame("not a note: it is not canonical")
        return found


def sign_checkpoint(checkpoint: Checkpoint, public: bytes, sign: Sign) -> str:
    """The note of a checkpoint, signed by its log; ``public`` is the log's raw key."""
    text, name = checkpoint.text(), checkpoint.origin
    made = Signature(name, _key_id(name, _LOG, public), sign(text.encode()))
    return str(Note(text, (made,)))


def open_checkpoint(note: str, origin: str, public: bytes) -> Checkpoint:
    """The checkpoint in a note, once it is seen to be signed by the log ``origin``.

    Raises:
        MalformedFrame: it is no note of a checkpoint.
        SealBroken: the log did not sign it.
    """
    parsed = Note.parse(note)
    checkpoint = Checkpoint.parse(parsed.text)
    key_id = _key_id(origin, _LOG, public)
    for one in parsed.signatures:
        if (one.name, one.key_id) == (origin, key_id) and checkpoint.origin == origin:
            _verify(public, parsed.text.encode(), one.signature)
            return checkpoint
    raise SealBroken(f"a checkpoint is not signed by {origin}")


def cosign(text: str, name: str, public: bytes, unix_s: int, sign: Sign) -> str:
    """A witness's line under a checkpoint's text, made at ``unix_s`` (Unix seconds)."""
    signature = sign(_cosigned_bytes(text, unix_s))
    return Signature(
        name, _key_id(name, _WITNESS, public), _COSIGNED.pack(unix_s, signature)
    ).line()


def verify_cosignature(text: str, line: str, name: str, public: bytes) -> int:
    """When a witness cosigned a checkpoint's text, in Unix seconds, once that is seen to hold.

    Raises:
        MalformedFrame: it is no signature line.
        SealBroken: it is another's, or does not verify.
    """
    found = Signature.parse(line)
    if (found.name, found.key_id) != (name, _key_id(name, _WITNESS, public)):
        raise SealBroken(f"a cosignature is not {name}'s")
    if len(found.signature) != _COSIGNED.size:
        raise SealBroken("a cosignature has the wrong length")
    unix_s, signature = _COSIGNED.unpack(found.signature)
    _verify(public, _cosigned_bytes(text, unix_s), signature)
    return int(unix_s)


def with_cosignatures(note: str, lines: Sequence[str]) -> str:
    """The note with witnesses' lines under it."""
    return note + "".join(f"{line}\n" for line in lines)


def _cosigned_bytes(text: str, unix_s: int) -> bytes:
    return f"cosignature/v1\ntime {unix_s}\n{text}".encode()


def _key_id(name: str, kind: bytes, public: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + kind + public).digest()[:4]


def _verify(public: bytes, message: bytes, signature: bytes) -> None:
    try:
        VerifyKey(public).verify(message, signature)
    except (BadSignatureError, ValueError) as error:
        raise SealBroken("a signature under a checkpoint does not verify") from error


def _text64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _bytes64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedFrame("not a note: its base64 is damaged") from error
    if _text64(raw) != text:
        raise MalformedFrame("not a note: its base64 is not canonical")
    return raw
