"""The files of an export: frames, lines, and what cannot be read at all.

A binary file is frames of 4 bytes of length (big-endian) and that many bytes. Knows nothing of what
is in them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_LENGTH: Final = struct.Struct(">I")
#: No frame is larger: a confirmation of 2,000 records has 64 KB of leaves.
FRAME_BYTES_MAX: Final = 1 << 20
#: Complaints that are kept: one broken block already says that the export is broken.
PROBLEMS_MAX: Final = 100


class Unreadable(Exception):
    """The export is not one, or is cut off; the message says where."""


class Findings:
    """What is wrong, in words, and how much was looked at."""

    def __init__(self) -> None:
        """Start with nothing wrong."""
        self.problems: list[str] = []
        self.counts: dict[str, int] = {}

    def complain(self, what: str) -> None:
        """Note one thing that is wrong."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(what)

    def check(self, is_right: bool, what: str) -> bool:
        """Note ``what`` unless it is right; returns whether it is."""
        if not is_right:
            self.complain(what)
        return is_right

    def count(self, what: str, more: int = 1) -> None:
        """Count what was looked at."""
        self.counts[what] = self.counts.get(what, 0) + more


def frames(path: Path) -> Iterator[bytes]:
    """The frames of a file, in order.

    Raises:
        Unreadable: it is missing, cut off, or has a frame that is too long.
    """
    try:
        with path.open("rb", buffering=1 << 20) as file:
            while head := file.read(4):
                length = _LENGTH.unpack(head)[0] if len(head) == 4 else FRAME_BYTES_MAX + 1
                body = file.read(length) if length <= FRAME_BYTES_MAX else b""
                if len(body) != length:
                    raise Unreadable(f"{path.name} is cut off or damaged")
                yield body
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read: {error.strerror}") from error


def text(path: Path) -> str:
    """A text file.

    Raises:
        Unreadable: it is missing, or not UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{path.name} cannot be read: {error}") from error


def table(path: Path, num_columns: int) -> Iterator[list[str]]:
    """The lines of a text file, each as its words.

    Raises:
        Unreadable: it is missing, or a line has another number of words.
    """
    for number, line in enumerate(text(path).splitlines(), 1):
        words = line.split(" ")
        if len(words) != num_columns:
            raise Unreadable(f"{path.name}, line {number}: expected {num_columns} words")
        yield words
