"""What must not be lost on its way out: a durable queue of messages, each kept until settled.

At least once: an item is on disk before `Outbox.append` returns, and is given out again after any
crash until `Outbox.settle` says that its receiver has it. SQLite in WAL mode with
``synchronous=FULL`` holds it; all appends and settlements that arrive during one fsync share the
next. Knows nothing of what the items mean or where they go.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.to_thread
import apsw

from starai.core.concurrency import task_group
from starai.core.errors import ConfigurationRefused, Overloaded, RequestTooLarge, StoreFailed
from starai.core.limits import FRAME_BYTES_MAX

#: Items that wait at once: an hour of a busy node whose registry is away.
ROWS_MAX: Final = 200_000
#: Changes of one commit, so that none keeps the disk for long.
_BATCH_MAX: Final = 2_000

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

    __slots__ = ("added", "done", "failure", "settled")

    def __init__(self) -> None:
        self.added: list[tuple[int, str, bytes]] = []
        self.settled: list[tuple[int]] = []
        self.done = anyio.Event()
        self.failure: str = ""

    def __len__(self) -> int:
        return len(self.added) + len(self.settled)


class Outbox:
    """A durable queue in the file ``path``, made if it is not there; one process at a time.

    An async context manager. Entering it raises:
        ConfigurationRefused: another process has it open.
        StoreFailed: the file cannot be opened or is damaged.
    """

    def __init__(self, path: Path, *, rows_max: int = ROWS_MAX) -> None:
        """Take the file, and how many items may wait at once."""
        self._path = path
        self._rows_max = rows_max
        # One statement at a time: whoever holds the limiter has the database.
        self._turn = anyio.CapacityLimiter(1)
        self._wake = anyio.Event()
        self._batch = _Batch()
        self._depth = self._last_id = 0
        self._broken = "it is not open"
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
        self._database = await anyio.to_thread.run_sync(_open, self._path)
        try:
            self._depth = _number(self._database, "SELECT count(*) FROM outbox")
            # Not max(id): an id stays used when its item is settled.
            self._last_id = _number(
                self._database, "SELECT max(seq) FROM sqlite_sequence WHERE name = 'outbox'"
            )
            self._broken = ""
            async with task_group() as tasks:
                tasks.start_soon(self._write)
                try:
                    yield
                finally:
                    tasks.cancel_scope.cancel()
                    self._end()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._database.close)

    @property
    def depth(self) -> int:
        """How many items wait, those included that are being written."""
        return self._depth

    async def append(self, topic: str, item: bytes) -> int:
        """Keep ``item``; its id, once it is on disk.

        Cancelling the wait does not take the item back.

        Raises:
            Overloaded: the outbox is full: its receiver has been away for too long.
            RequestTooLarge: the item is larger than a message may be.
            StoreFailed: the disk did not take it, or has failed before.
        """
        if len(item) > FRAME_BYTES_MAX:
            raise RequestTooLarge(f"an item has at most {FRAME_BYTES_MAX} bytes")
        if self._depth >= self._rows_max:
            raise Overloaded("the outbox is full: its receiver does not take its messages")
        batch = await self._open_batch()
        self._last_id += 1
        id_ = self._last_id
        batch.added.append((id_, topic, item))
        self._depth += 1
        await self._committed(batch)
        return id_

    async def pending(self, topic: str, limit: int) -> list[tuple[int, bytes]]:
        """Up to ``limit`` items of ``topic`` with their ids, oldest first.

        Raises:
            StoreFailed: the file cannot be read.
        """
        query = "SELECT id, item FROM outbox WHERE topic = ? ORDER BY id LIMIT ?"

        def read() -> list[tuple[int, bytes]]:
            return [(int(id_), bytes(item)) for id_, item in
                    self._database.execute(query, (topic, limit))]  # fmt: skip

        try:
            return await anyio.to_thread.run_sync(read, limiter=self._turn)
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
        if self._broken:
            raise StoreFailed(f"the outbox failed before: {self._broken}; restart the service")
        return self._batch

    async def _committed(self, batch: _Batch) -> None:
        self._wake.set()
        await batch.done.wait()
        if batch.failure:
            raise StoreFailed(f"the outbox could not be written: {batch.failure}")

    async def _write(self) -> None:
        """Commit batch after batch."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            # What comes from here on joins the next batch, while this one is written.
            batch, self._batch = self._batch, _Batch()
            # Shielded: a batch that has begun ends, and its waiters learn how.
            with anyio.CancelScope(shield=True):
                removed = 0
                try:
                    removed = await anyio.to_thread.run_sync(
                        self._commit, batch, limiter=self._turn
                    )
                except apsw.FullError as error:
                    # SQLite has rolled back; with more room the next batch may succeed.
                    batch.failure = f"the disk is full ({error})"
                except apsw.Error as error:
                    # After a failed fsync nobody knows what is on disk: only reopening tells.
                    batch.failure = self._broken = str(error)
                self._depth -= len(batch.added) if batch.failure else removed
            batch.done.set()

    def _commit(self, batch: _Batch) -> int:
        """Do all that ``batch`` says in one transaction; the number of items settled."""
        database = self._database
        with database:
            database.executemany("INSERT INTO outbox VALUES (?, ?, ?)", batch.added)
            before = database.total_changes()
            database.executemany("DELETE FROM outbox WHERE id = ?", batch.settled)
        return database.total_changes() - before

    def _end(self) -> None:
        self._broken = self._broken or "it was closed"
        if not self._batch.done.is_set():
            self._batch.failure = "it was closed"
            self._batch.done.set()


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
