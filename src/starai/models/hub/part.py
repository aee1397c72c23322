"""The bytes of a file that have come so far, on the disk, with their running checksum.

They lie in ``NAME.<checksum>.part``. The checksum is the hub's identity of the content (its
ETag), so a file that changed on the hub has another part and starts from the beginning. All
methods block: call them in a thread. Knows no HTTP.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from starai.core.errors import StoreFailed
from starai.models.hub.listing import RemoteFile

if sys.platform != "win32":
    import fcntl

_CHUNK_BYTES: Final = 1 << 20


def new_checksum(file: RemoteFile) -> hashlib._Hash:
    """The running checksum of the kind that the file has, before its first byte."""
    if len(file.digest) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def checksum_of(path: Path, file: RemoteFile) -> hashlib._Hash:
    """The running checksum over all that ``path`` holds."""
    checksum = new_checksum(file)
    with path.open("rb") as stored:
        while chunk := stored.read(_CHUNK_BYTES):
            checksum.update(chunk)
    return checksum


def holds(path: Path, file: RemoteFile) -> bool:
    """Whether ``path`` holds exactly this file; reads it all."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return checksum_of(path, file).hexdigest() == file.digest


def bytes_there(target: Path, file: RemoteFile) -> int:
    """How much of the file need not be stored again, by sizes alone."""
    if target.is_file() and target.stat().st_size == file.size:
        return file.size
    part = _path(target, file)
    return min(file.size, part.stat().st_size) if part.is_file() else 0


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Be the only one who fills ``folder``: two that append to the same part would ruin it.

    On Windows, and on disks without locks, nobody is kept out.

    Raises:
        StoreFailed: somebody else fills it now.
    """
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise StoreFailed(
                    f"another pull is filling {folder}: wait for it, or end it"
                ) from error
        yield
    finally:
        os.close(handle)  # and the lock goes


class Part:
    """An open part of one file."""

    def __init__(self, target: Path, file: RemoteFile) -> None:
        """Take up what came of ``file`` before; parts of other contents of it are dropped."""
        self.file = file
        self._target = target
        self._path = _path(target, file)
        for other in target.parent.glob(f"{target.name}.*.part"):
            if other != self._path:
                other.unlink(missing_ok=True)
        self._sink = self._path.open("ab")
        self._checksum = checksum_of(self._path, file)
        self.have = self._path.stat().st_size

    def append(self, chunk: bytes) -> None:
        """Add the bytes that came next."""
        self._sink.write(chunk)
        self._checksum.update(chunk)
        self.have += len(chunk)

    def clear(self) -> None:
        """Start from the beginning."""
        self._sink.truncate(0)
        self._checksum = new_checksum(self.file)
        self.have = 0

    def checksum(self) -> str:
        """The checksum of what is there, in hex."""
        return self._checksum.hexdigest()

    def put_in_place(self) -> None:
        """Make the part the file: whole on the disk first, then under its name at once."""
        self._sink.flush()
        os.fsync(self._sink.fileno())
        self._sink.close()
        self._path.replace(self._target)

    def close(self) -> None:
        """Let go of the file; what came stays for the next time, if anything did."""
        self._sink.close()
        if not self.have:
            self._path.unlink(missing_ok=True)


def _path(target: Path, file: RemoteFile) -> Path:
    return target.with_name(f"{target.name}.{file.digest[:16]}.part")
