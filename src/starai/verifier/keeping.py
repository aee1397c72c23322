"""What a check keeps for the next one, which then begins at the day where this one ended.

A file of two lines: what it is and the SHA-256 of the second, which is all of it as JSON. That
finds damage, not forgery: whoever can write the file can have days pass that are wrong. Knows
nothing of what must hold.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

import msgspec

from starai.verifier.blocks import Block
from starai.verifier.books import BooksKept
from starai.verifier.days import DaysKept
from starai.verifier.hashing import LogKept
from starai.verifier.maturity import MaturityKept
from starai.verifier.work import WorkKept

_MAGIC: Final = b"starai/v1/checked "
#: Changes with what is kept; a file of another version is written anew.
_VERSION: Final = b"1"
#: Some millions of accounts. Reading it takes several times that memory, so more is left to a
#: check of everything, which needs less.
KEPT_BYTES_MAX: Final = 1 << 30


class KeptRefused(Exception):
    """The file is damaged, or of something else; the message says what to do."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """All that is carried from a closed day to the next, and what was counted so far."""

    network: str = ""
    key: bytes = b""
    counts: dict[str, int] = {}
    last: Block | None = None
    log: LogKept = LogKept()
    books: BooksKept = BooksKept()
    work: WorkKept = WorkKept()
    maturity: MaturityKept = MaturityKept()
    days: DaysKept = DaysKept()


#: What a check from the first block begins with.
NOTHING: Final = Kept()


def read_kept(path: Path) -> Kept | None:
    """What an earlier check kept; None if nothing is there, or of another version.

    Raises:
        KeptRefused: it is damaged, too large, no such file, or could not be there.
    """
    try:
        with path.open("rb") as file:
            data = file.read(KEPT_BYTES_MAX + 1)
    except FileNotFoundError:
        if path.parent.is_dir():
            return None
        raise KeptRefused(f"{path.parent} is no folder: make it, or name another file") from None
    except OSError as error:
        raise KeptRefused(f"{path} cannot be read: {error.strerror}") from error
    head, _, body = data.partition(b"\n")
    words = head.removeprefix(_MAGIC).split(b" ")
    if not head.startswith(_MAGIC) or len(words) != 2 or len(data) > KEPT_BYTES_MAX:
        raise KeptRefused(f"{path} is not what a check keeps: name another file")
    if words[0] != _VERSION:
        return None
    if words[1] != hashlib.sha256(body).hexdigest().encode():
        raise KeptRefused(_damaged(path))
    try:
        return msgspec.json.decode(body, type=Kept)
    except msgspec.MsgspecError as error:
        raise KeptRefused(_damaged(path)) from error


def _damaged(path: Path) -> str:
    return f"{path} is damaged: remove it, and the next check begins at the first block"


def written(kept: Kept) -> bytes | None:
    """What the file holds; None if that is more than one may."""
    body = msgspec.json.encode(kept)
    head = _MAGIC + _VERSION + b" " + hashlib.sha256(body).hexdigest().encode() + b"\n"
    return head + body if len(head) + len(body) <= KEPT_BYTES_MAX else None


def write_kept(path: Path, data: bytes) -> None:
    """Replace the file, at once and for the owner only: it says what each customer has.

    Raises:
        KeptRefused: it cannot be written.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise KeptRefused(f"{path} cannot be written: {error.strerror}") from error
