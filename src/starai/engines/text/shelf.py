"""Where blocks lie while others have their place: in memory, or in a file behind a thread.

A block is a row of bytes here, in a numbered slot. A file is written behind the steps: rows wait in
memory, up to a bound, and are found there until they are written; beyond the bound they are
refused, because nobody waits for a slow disk. Reads go before writes. The thread lives only while
there is something to carry, and it alone touches the file. A row that could not be written or read
is lost, and that is no error: it can be computed. Knows neither sequences nor what is in a row.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor

from starai.core.clock import Clock
from starai.core.errors import ConfigurationRefused
from starai.engines.paging.memory import Copy

#: A read from which nothing came for this long is given up: the disk hangs. Long against any
#: block, short against a client's patience.
_PATIENCE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Arrived:
    """Rows [copies, bytes] that were read for ``key``; None if they are lost."""

    key: bytes
    copies: Sequence[Copy]
    rows: Tensor | None


class Carried:
    """What was carried one way since somebody asked, from any thread."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._lock = threading.Lock()
        self._bytes, self._seconds = 0, 0.0

    def add(self, num_bytes: int, seconds: float) -> None:
        """So many bytes more, in so many seconds more."""
        with self._lock:
            self._bytes += num_bytes
            self._seconds += seconds

    def reset(self) -> tuple[int, float]:
        """Bytes and seconds since the last call."""
        with self._lock:
            # A clock may be too coarse for little; nothing is infinitely fast.
            told = self._bytes, max(self._seconds, 1e-6)
            self._bytes, self._seconds = 0, 0.0
        return told


class Shelf(Protocol):
    """Slots of rows.

    Where rows are carried ``behind`` the steps, ``written`` and ``read`` say what was; else whoever
    calls can time it, and may use them for that.
    """

    behind: bool
    written: Carried
    read: Carried

    def put(self, slots: Sequence[int], rows: Tensor) -> list[int]:
        """Keep rows uint8 [slots, bytes]; returns the slots of those that it does not take."""
        ...

    def ask(self, key: bytes, copies: Sequence[Copy]) -> None:
        """Begin to read the sources' slots; `take` has them later, in any order."""
        ...

    def forget(self, key: bytes) -> None:
        """Nobody wants what was asked for by this key any more."""
        ...

    def take(self) -> list[Arrived]:
        """What was read or lost since."""
        ...

    def wait(self, seconds: float) -> None:
        """Until there is something to take, nothing to wait for, or the time is over."""
        ...

    @property
    def asked_rows(self) -> int:
        """How many rows are still to be read."""
        ...


class InMemory:
    """Slots in ordinary memory, whose pages are taken when they are first written."""

    behind = False

    def __init__(self, slots: int, row_bytes: int) -> None:
        """Set so many slots aside."""
        self.written, self.read = Carried(), Carried()
        self._rows = torch.empty((slots, row_bytes), dtype=torch.uint8)
        self._asked: list[tuple[bytes, Sequence[Copy]]] = []

    def put(self, slots: Sequence[int], rows: Tensor) -> list[int]:
        """See `Shelf.put`; it takes all."""
        self._rows.index_copy_(0, torch.as_tensor(slots), rows)
        return []

    def ask(self, key: bytes, copies: Sequence[Copy]) -> None:
        """See `Shelf.ask`."""
        self._asked.append((key, copies))

    def forget(self, key: bytes) -> None:
        """See `Shelf.forget`."""
        self._asked = [(one, copies) for one, copies in self._asked if one != key]

    def take(self) -> list[Arrived]:
        """See `Shelf.take`: all that was asked for."""
        asked, self._asked = self._asked, []
        return [
            Arrived(key, copies, self._rows[torch.as_tensor([copy.source for copy in copies])])
            for key, copies in asked
        ]

    def wait(self, seconds: float) -> None:
        """See `Shelf.wait`: there is nothing to wait for."""

    @property
    def asked_rows(self) -> int:
        """See `Shelf.asked_rows`."""
        return sum(len(copies) for _, copies in self._asked)


class File:
    """Rows in a file that has no name and is gone with the process: KV is as secret as prompts."""

    def __init__(self, slots: int, row_bytes: int) -> None:
        """Take the room now.

        Raises:
            ConfigurationRefused: there is none.
        """
        self._row_bytes = row_bytes
        try:
            self._file = tempfile.TemporaryFile(prefix="starai-kv-", buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            if slots and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, slots * row_bytes)
        except OSError as error:
            raise ConfigurationRefused(
                f"no room to swap {slots * row_bytes} bytes to: lower swap_gib"
            ) from error

    def write(self, slot: int, row: memoryview) -> None:
        """Write a row.

        Raises:
            OSError: the disk cannot.
        """
        self._file.seek(slot * self._row_bytes)
        while row:
            row = row[self._file.write(row) :]

    def read(self, slot: int, row: memoryview) -> None:
        """Read a row into ``row``.

        Raises:
            OSError: the disk cannot, or ended.
        """
        self._file.seek(slot * self._row_bytes)
        while row:
            count = self._file.readinto(row)
            if not count:
                raise OSError("the file ends before its rows do")
            row = row[count:]


@dataclass(slots=True, eq=False)
class _Asked:
    """What one key asked for and is still in the file; ``since_s`` is when something last came."""

    key: bytes
    left: list[Copy]
    since_s: float
    wanted: bool = True


@dataclass(slots=True)
class _Here:
    """Of one key: rows that were read, and copies that are lost."""

    copies: list[Copy] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    lost: list[Copy] = field(default_factory=list)


class Behind:
    """Slots in a file, carried to and from by a thread."""

    behind = True

    def __init__(
        self, file: File, row_bytes: int, most_bytes: int, clock: Clock, trial_rows: int = 0
    ) -> None:
        """Take the file, and how many bytes may wait in memory each way: at least a row.

        So many ``trial_rows`` are written and read at once, to know the file's speed.

        Raises:
            ConfigurationRefused: the disk fails.
        """
        self.written, self.read = Carried(), Carried()
        self._file = file
        self._row_bytes = row_bytes
        self._most_rows = max(1, most_bytes // row_bytes)
        self._clock = clock
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._writes: dict[int, Tensor] = {}
        self._lost: set[int] = set()
        self._asked: list[_Asked] = []
        self._here: dict[bytes, _Here] = {}
        row = memoryview(bytearray(row_bytes))
        try:
            for carried, carry in ((self.written, file.write), (self.read, file.read)):
                for slot in range(trial_rows):
                    begun = clock.monotonic_s()
                    carry(slot, row)
                    carried.add(row_bytes, clock.monotonic_s() - begun)
        except OSError as error:
            raise ConfigurationRefused(f"the disk to swap to fails: {error}") from error

    def put(self, slots: Sequence[int], rows: Tensor) -> list[int]:
        """See `Shelf.put`: it refuses what does not fit into the memory set aside."""
        refused = []
        with self._change:
            # A row that stays without the others would hold the memory of all.
            fit = len(self._writes) + len(slots) <= self._most_rows
            for slot, row in zip(slots, rows, strict=True):
                # What the slot had is of no use any more. The newest is written last.
                self._writes.pop(slot, None)
                if len(self._writes) < self._most_rows:
                    self._writes[slot] = row if fit else row.clone()
                    self._lost.discard(slot)
                else:
                    self._lost.add(slot)
                    refused.append(slot)
            self._go()
        return refused

    def ask(self, key: bytes, copies: Sequence[Copy]) -> None:
        """See `Shelf.ask`: what is not written yet is here at once."""
        left = []
        with self._change:
            for copy in copies:
                row = self._writes.get(copy.source)
                if row is not None or copy.source in self._lost:
                    self._deliver(key, copy, row)
                else:
                    left.append(copy)
            if left:
                self._asked.append(_Asked(key, left, self._clock.monotonic_s()))
            self._go()

    def forget(self, key: bytes) -> None:
        """See `Shelf.forget`."""
        with self._change:
            self._here.pop(key, None)
            for asked in self._asked:
                asked.wanted = asked.wanted and asked.key != key
            self._asked = [asked for asked in self._asked if asked.wanted]

    def take(self) -> list[Arrived]:
        """See `Shelf.take`; what does not come is given up."""
        with self._change:
            for late in [one for one in self._asked if self._is_late(one)]:
                late.wanted = False
                self._asked.remove(late)
                self._here.setdefault(late.key, _Here()).lost += late.left
            found, self._here = self._here, {}
            self._go()
        taken = [Arrived(key, one.lost, None) for key, one in found.items() if one.lost]
        return taken + [
            Arrived(key, one.copies, torch.stack(one.rows))
            for key, one in found.items()
            if one.copies
        ]

    def wait(self, seconds: float) -> None:
        """See `Shelf.wait`."""
        with self._change:
            self._change.wait_for(lambda: self._here or not self._asked, seconds)

    @property
    def asked_rows(self) -> int:
        """See `Shelf.asked_rows`."""
        return sum(len(asked.left) for asked in self._asked)

    def _is_late(self, asked: _Asked) -> bool:
        # Those behind it in the line are not late: the disk has not come to them.
        waits_s = self._clock.monotonic_s() - asked.since_s
        return asked is self._asked[0] and waits_s > _PATIENCE_S

    # -- the thread

    def _go(self) -> None:
        """See that somebody carries, if there is something to carry."""
        if self._thread is None and (self._writes or self._can_read()):
            self._thread = threading.Thread(target=self._carry, name="kv-shelf", daemon=True)
            self._thread.start()

    def _can_read(self) -> bool:
        here = sum(len(one.rows) for one in self._here.values())
        return bool(self._asked) and here < self._most_rows

    def _carry(self) -> None:
        while True:
            with self._change:
                asked = self._asked[0] if self._can_read() else None
                slot = next(iter(self._writes), None)
                if asked is None and slot is None:
                    self._thread = None
                    return
                row = None if slot is None else self._writes[slot]
            if asked is not None:
                self._read_for(asked)
            elif slot is not None and row is not None:
                self._write(slot, row)

    def _deliver(self, key: bytes, copy: Copy, row: Tensor | None) -> None:
        here = self._here.setdefault(key, _Here())
        if row is None:
            here.lost.append(copy)
        else:
            here.copies.append(copy)
            here.rows.append(row)

    def _read_for(self, asked: _Asked) -> None:
        copy = asked.left[-1]
        read = torch.empty(self._row_bytes, dtype=torch.uint8)
        row: Tensor | None = read
        begun = self._clock.monotonic_s()
        try:
            self._file.read(copy.source, read.numpy().data)
        except OSError:
            row = None
        ended = self._clock.monotonic_s()
        with self._change:
            if not asked.wanted:
                return
            asked.left.pop()
            asked.since_s = ended
            self._deliver(asked.key, copy, row)
            if row is not None:
                self.read.add(self._row_bytes, ended - begun)
            if not asked.left:
                self._asked.remove(asked)
                for other in self._asked[:1]:
                    other.since_s = ended
            self._change.notify_all()

    def _write(self, slot: int, row: Tensor) -> None:
        begun = self._clock.monotonic_s()
        try:
            self._file.write(slot, row.numpy().data)
            written = True
        except OSError:
            written = False
        with self._change:
            if written:
                self.written.add(self._row_bytes, self._clock.monotonic_s() - begun)
            # Another row for the slot may have come meanwhile.
            if self._writes.get(slot) is row:
                del self._writes[slot]
                if not written:
                    self._lost.add(slot)
