"""What must not be lost on its way out: a durable queue of messages, each kept until settled.

At least once: an item is on disk before `Outbox.append` returns, and is given out again after any
crash until `Outbox.settle` says that its receiver has it. Who cannot wait for the disk has an item
written: what is written outlives this process, and is on disk `FLUSH_S` later, so that a power cut
loses no more than that. SQLite in WAL mode holds it; all that arrives during one flush of the disk
shares the next, in a thread of its own. Knows nothing of what the items mean or where they go.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio
import apsw

from starai.core.concurrency import task_group
from starai.core.errors import ConfigurationRefused, Overloaded, RequestTooLarge, StoreFailed
from starai.core.limits import FRAME_BYTES_MAX
from starai.core.threads import WorkThread
from starai.core.waking import Bell, loop_time

#: Items that wait at once: an hour of a busy node whose registry is away.
ROWS_MAX: Final = 200_000
#: Changes of one commit that others wait for, so that none keeps the disk for long.
_BATCH_MAX: Final = 2_000
#: How long what nobody waits for gathers before it is written, and before the disk is flushed. A
#: flush costs 0.2 ms of CPU and milliseconds of the disk, a write without one a tenth of that.
GATHER_S: Final = 0.005
FLUSH_S: Final = 0.05

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    item BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS outbox_by_topic ON outbox (topic, id);
"""


class _Batch:
    """What one commit will do; ``done`` is set when it has been done or has failed."""

    __slots__ = ("added", "done", "failure", "flushes", "has_kept", "settled")

    def __init__(self) -> None:
        self.added: list[tuple[int, str, bytes]] = []
        self.settled: list[tuple[int]] = []
        #: Whether somebody waits until it is on disk; and whether it holds what nobody waits for.
        self.flushes = self.has_kept = False
        self.done = anyio.Event()
        self.failure: str = ""

    def __len__(self) -> int:
        return len(self.added) + len(self.settled)


class Outbox:
    """A durable queue in the file ``path``, made if it is not there; one process at a time.

    An async context manager. Entering it raises:
        ConfigurationRefused: another process has it open.
        StoreFailed: the file cannot be opened or is damaged.
    Its body is cancelled, and it raises:
        StoreFailed: the disk did not take what was promised to be kept.
    """

    def __init__(self, path: Path, *, rows_max: int = ROWS_MAX) -> None:
        """Take the file, and how many items may wait at once."""
        self._path = path
        self._rows_max = rows_max
        # One statement at a time: whatever is done with the database is done there.
        self._thread = WorkThread()
        #: Something is to be written; and somebody waits for it.
        self._work, self._hurry = Bell(), Bell()
        self._batch = _Batch()
        self._depth = self._last_id = 0
        self._broken = "it is not open"
        #: What is raised where the context ends: what was to be kept could not be written.
        self._lost: StoreFailed | None = None
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._opened.enter_async_context(self._open())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return await self._opened.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        try:
            with anyio.CancelScope(shield=True):  # or nobody would let go of the file
                self._database = await self._thread.run(partial(_open, self._path))
        except BaseException:
            self._thread.close()
            raise
        try:
            self._depth = _number(self._database, "SELECT count(*) FROM outbox")
            # Not max(id): an id stays used when its item is settled.
            self._last_id = _number(
                self._database, "SELECT max(seq) FROM sqlite_sequence WHERE name = 'outbox'"
            )
            self._broken = ""
            async with task_group() as tasks:
                # Shielded: a body that is cancelled may wait for what it must still keep.
                writing = anyio.CancelScope(shield=True)
                tasks.start_soon(self._write, writing, tasks.cancel_scope)
                try:
                    yield
                finally:
                    writing.cancel()
            if self._lost is not None:
                raise self._lost
        finally:
            with anyio.CancelScope(shield=True):
                await self._end()

    @property
    def depth(self) -> int:
        """How many items wait, those included that are being written."""
        return self._depth

    async def append(self, topic: str, item: bytes, *, flushed: bool = True) -> int:
        """Keep ``item``; its id, once it is on disk, or at least written if not ``flushed``.

        Cancelling the wait does not take the item back; what is not ``flushed`` is kept before
        there is any. Should the disk not take what was written, this outbox's context ends with
        `StoreFailed`.

        Raises:
            Overloaded: the outbox is full: its receiver has been away for too long.
            RequestTooLarge: the item is larger than a message may be.
            StoreFailed: the disk did not take it, or has failed before.
        """
        self._check_room(item)
        if flushed:
            batch = await self._open_batch()
        else:  # in it before anything waits: whoever is cancelled loses nothing
            self._check_sound()
            batch = self._batch
        id_ = self._add(batch, topic, item)
        await self._committed(batch, flushed=flushed)
        return id_

    def keep(self, topic: str, item: bytes) -> int:
        """Keep ``item``, without waiting: written `GATHER_S` later, and then as in `append`.

        Raises:
            Overloaded: the outbox is full: its receiver has been away for too long.
            RequestTooLarge: the item is larger than a message may be.
            StoreFailed: the disk has failed before.
        """
        self._check_room(item)
        self._check_sound()
        self._work.ring()
        self._batch.has_kept = True
        return self._add(self._batch, topic, item)

    def _check_room(self, item: bytes) -> None:
        if len(item) > FRAME_BYTES_MAX:
            raise RequestTooLarge(f"an item has at most {FRAME_BYTES_MAX} bytes")
        if self._depth >= self._rows_max:
            raise Overloaded("the outbox is full: its receiver does not take its messages")

    def _add(self, batch: _Batch, topic: str, item: bytes) -> int:
        self._last_id += 1
        batch.added.append((self._last_id, topic, item))
        self._depth += 1
        return self._last_id

    async def pending(self, topic: str, limit: int) -> list[tuple[int, bytes]]:
        """Up to ``limit`` items of ``topic`` with their ids, oldest first; all are on disk.

        Raises:
            StoreFailed: the file cannot be read, or the disk did not take what was to be kept.
        """
        if self._batch.added:
            await self._committed(self._batch)
        query = "SELECT id, item FROM outbox WHERE topic = ? ORDER BY id LIMIT ?"

        def read() -> list[tuple[int, bytes]]:
            return [(int(id_), bytes(item)) for id_, item in
                    self._database.execute(query, (topic, limit))]  # fmt: skip

        try:
            return await self._thread.run(read)
        except apsw.Error as error:
            raise StoreFailed(f"the outbox cannot be read: {error}") from error

    async def settle(self, ids: Sequence[int]) -> None:
        """Forget items that their receiver has acknowledged; unknown ids are none.

        Raises:
            StoreFailed: the disk did not take it; the items will be given out again.
        """
        if ids:
            batch = await self._open_batch()
            batch.settled.extend((id_,) for id_ in ids)
            await self._committed(batch)

    # -- the one writer ---------------------------------------------------------------------

    async def _open_batch(self) -> _Batch:
        """The batch to join; waits while the present one is full."""
        while len(self._batch) >= _BATCH_MAX and not self._broken:
            await self._batch.done.wait()
        self._check_sound()
        return self._batch

    def _check_sound(self) -> None:
        if self._broken:
            raise StoreFailed(f"the outbox failed before: {self._broken}; restart the service")

    async def _committed(self, batch: _Batch, *, flushed: bool = True) -> None:
        batch.flushes |= flushed
        self._work.ring()
        self._hurry.ring()
        await batch.done.wait()
        if batch.failure:
            raise _not_written(batch)

    async def _write(self, writing: anyio.CancelScope, body: anyio.CancelScope) -> None:
        """Commit batch after batch, and flush the disk soon after what nobody waits for."""
        flush_at_s = math.inf
        with writing:
            while True:
                await self._work.wait(flush_at_s)
                if len(self._batch):
                    await self._hurry.wait(min(flush_at_s, loop_time() + GATHER_S))
                now_s = loop_time()
                is_due = now_s >= flush_at_s
                # What comes from here on joins the next batch, while this one is written.
                batch, self._batch = self._batch, _Batch()
                if not is_due and not len(batch):
                    continue  # it went with the one before
                flushes = is_due or batch.flushes
                await self._commit(batch, flushes=flushes)
                if batch.failure and (batch.has_kept or flush_at_s < math.inf):
                    self._lost = _not_written(batch)
                    body.cancel()
                flush_at_s = math.inf if flushes else min(flush_at_s, now_s + FLUSH_S)

    async def _commit(self, batch: _Batch, *, flushes: bool) -> None:
        # Shielded: a batch that has begun ends, and its waiters learn how.
        with anyio.CancelScope(shield=True):
            removed = 0
            try:
                removed = await self._thread.run(
                    partial(_commit, self._database, batch, flushes=flushes)
                )
            except apsw.FullError as error:
                # SQLite has rolled back; with more room the next batch may succeed.
                batch.failure = f"the disk is full ({error})"
            except apsw.Error as error:
                # After a failed fsync nobody knows what is on disk: only reopening tells.
                batch.failure = self._broken = str(error)
            self._depth -= len(batch.added) if batch.failure else removed
        batch.done.set()

    async def _end(self) -> None:
        """Write what was to be kept, tell those who still wait, and let go of the file."""
        try:
            if len(self._batch) and not self._broken:
                await self._commit(self._batch, flushes=True)
                if self._batch.failure and self._batch.has_kept:
                    raise _not_written(self._batch)
        finally:
            self._broken = self._broken or "it was closed"
            if not self._batch.done.is_set():
                self._batch.failure = "it was closed"
                self._batch.done.set()
            await self._thread.run(self._database.close)
            self._thread.close()


def _commit(database: apsw.Connection, batch: _Batch, *, flushes: bool) -> int:
    """Do all that ``batch`` says in one transaction; the number of items settled.

    The flush of one transaction is that of all before it too: they are in the same file.
    """
    database.execute(f"PRAGMA synchronous = {'FULL' if flushes else 'NORMAL'}")
    with database:
        if flushes and not len(batch):
            database.execute("PRAGMA user_version = 1")  # only a transaction that writes flushes
        database.executemany("INSERT INTO outbox VALUES (?, ?, ?)", batch.added)
        before = database.total_changes()
        database.executemany("DELETE FROM outbox WHERE id = ?", batch.settled)
    return database.total_changes() - before


def _not_written(batch: _Batch) -> StoreFailed:
    return StoreFailed(f"the outbox could not be written: {batch.failure}")


def _open(path: Path) -> apsw.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        database = apsw.Connection(str(path))
        # Exclusive: a second process would see ids of the first one as its own.
        database.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        database.execute("PRAGMA journal_mode = WAL").fetchall()
        database.execute("PRAGMA synchronous = FULL")
        database.execute(_SCHEMA)
    except apsw.BusyError as error:
        raise ConfigurationRefused(
            f"{path} is in use by another process; is this service already running?"
        ) from error
    except (apsw.Error, OSError) as error:
        raise StoreFailed(f"cannot open the outbox {path}: {error}") from error
    return database


def _number(database: apsw.Connection, query: str) -> int:
    ((number,),) = database.execute(query).fetchall()
    return number if isinstance(number, int) else 0
