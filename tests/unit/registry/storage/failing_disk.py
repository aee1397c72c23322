"""A disk that forgets: an APSW VFS that keeps apart what was written and what was synced.

What a program reads back is what it wrote, as with a real kernel. `FailingDisk.crash` makes the
files as a power cut may leave them: of the writes since a file's last sync some are lost, some are
torn at sectors of 512 bytes, and they reach the disk in any order (ledger design, section 3.3).
Knows nothing of the registry.
"""

from __future__ import annotations

from pathlib import Path

import apsw

from starai.core.randomness import SeededRandomness

SECTOR = 512


class FailingDisk(apsw.VFS):
    """Counts operations; at number ``crash_at`` the power fails and everything raises.

    ``fault`` breaks it otherwise, from that operation on: ``full`` (no room), ``sync`` (a sync
    fails once and, as Linux does, drops what it should have written), ``readonly``.
    """

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name, "")
        self.name = name
        self.chance = SeededRandomness(seed)
        self.files: dict[str, _Image] = {}
        self.operations = 0
        self.crash_at: int | None = None
        self.fault = ""
        self.dead = False
        self.silent = False

    def xOpen(self, name, flags):  # noqa: N802 - SQLite's name
        return _File(self, name, flags)

    def tick(self) -> None:
        """One operation that changes the disk."""
        self.operations += 1
        if self.crash_at is not None and self.operations >= self.crash_at and not self.fault:
            self.dead = True
        if self.dead:
            raise apsw.IOError("the power failed")

    def is_faulty(self, fault: str) -> bool:
        """Whether this fault has begun."""
        begun = self.crash_at is not None and self.operations >= self.crash_at
        return begun and self.fault == fault

    def crash(self, folder: Path) -> None:
        """Write into ``folder`` what is left of each file."""
        for name, image in self.files.items():
            (folder / Path(name).name).write_bytes(image.after_power_cut(self.chance))


class _Image:
    """One file: what is surely on disk, and the writes since."""

    def __init__(self, path: Path) -> None:
        self.durable = bytearray(path.read_bytes() if path.exists() else b"")
        self.pending: list[tuple[int, bytes | None]] = []

    def sync(self) -> None:
        for one in self.pending:
            _apply(self.durable, *one)
        self.pending.clear()

    def after_power_cut(self, chance: SeededRandomness) -> bytes:
        left = bytearray(self.durable)
        kept = [one for one in self.pending if chance.fraction() < 0.5]
        if chance.fraction() < 0.5:
            kept.sort(key=lambda _: chance.fraction())
        for offset, data in kept:
            if data is None or chance.fraction() < 0.7:
                _apply(left, offset, data)
                continue
            for start in range(0, len(data), SECTOR):
                if chance.fraction() < 0.5:
                    _apply(left, offset + start, data[start : start + SECTOR])
        return bytes(left)


def _apply(image: bytearray, offset: int, data: bytes | None) -> None:
    """A write, or (no data) a truncation to ``offset``."""
    if data is None:
        del image[offset:]
        return
    if len(image) < offset:
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data


class _File(apsw.VFSFile):
    def __init__(self, disk: FailingDisk, name, flags) -> None:
        super().__init__("", name, flags)
        self._disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._image = disk.files.setdefault(path or "", _Image(Path(path or "/nonexistent")))

    def xWrite(self, data, offset):  # noqa: N802 - SQLite's name
        disk = self._disk
        if disk.silent:
            return None
        disk.tick()
        if disk.is_faulty("full"):
            raise apsw.FullError("no room on the disk")
        if disk.is_faulty("readonly"):
            raise apsw.ReadOnlyError("the file system is read-only")
        self._image.pending.append((offset, bytes(data)))
        return super().xWrite(data, offset)

    def xTruncate(self, newsize):  # noqa: N802 - SQLite's name
        if self._disk.silent:
            return None
        self._disk.tick()
        self._image.pending.append((newsize, None))
        return super().xTruncate(newsize)

    def xSync(self, flags):  # noqa: N802 - SQLite's name
        disk = self._disk
        if disk.silent:
            return
        disk.tick()
        if disk.is_faulty("sync"):
            disk.fault = "healed"
            self._image.pending.clear()
            raise apsw.IOError("the sync failed")
        self._image.sync()  # the real file need not be synced: this image is what survives
