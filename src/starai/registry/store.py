"""Durable state in one SQLite file: one writer thread, group commit, one process at a time.

Work is a function of a connection. `Store.write` returns once its work is committed and synced
(WAL, ``synchronous=FULL``); everything that waits at that moment shares one commit, so one write
costs one fsync and a thousand cost hardly more (ledger design, section 3.3). A disk that fails is
fatal: from then on every call raises `StoreFailed`, because after a failed fsync nobody knows
what is on disk. The store knows nothing of what is written.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import apsw

from starai.core.errors import ConfigurationRefused, InternalFault, Overloaded, StoreFailed
from starai.registry.schema import migrate, refuse_foreign

T = TypeVar("T")
Work = Callable[[apsw.Connection], T]

#: Writes that wait for the writer; beyond it callers are told to come back.
WAITING_WRITES_MAX: Final = 4096
#: Writes in one commit: bounds how long the first of them waits for the last.
COMMIT_WRITES_MAX: Final = 512
#: Reads at once: a long integrity check leaves room for short questions.
READERS: Final = 3
#: How long a reader waits for a lock; the writer never holds one that long.
_BUSY_MS: Final = 5000

#: Faults of the work itself (a broken constraint, bad SQL): they fail that work alone. Whatever
#: else SQLite raises (full, I/O error, corrupt, read-only, locked) fails the store.
_FAULTS_OF_WORK: Final = (
    apsw.BindingsError,
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.RangeError,
    apsw.SQLError,
    apsw.TooBigError,
)


class _Job(Generic[T]):
    """One write: what to do, and what came of it."""

    __slots__ = ("done", "error", "result", "work")

    def __init__(self, work: Work[T]) -> None:
        self.work = work
        self.done = anyio.Event()
        self.error: BaseException | None = None
        self.result: T | None = None


class Store:
    """An open file; made by `open_store`. Safe for any number of tasks of one event loop."""

    def __init__(self, writer: apsw.Connection, readers: Sequence[apsw.Connection]) -> None:
        """Take the connections; without ``readers`` everything runs on the caller's thread."""
        self._writer = writer
        self._readers = list(readers)
        self._inline = not readers
        self._queue: queue.Queue[_Job[Any] | None] = queue.Queue(WAITING_WRITES_MAX)
        self._reading = anyio.CapacityLimiter(max(1, len(readers)))
        self._failure: BaseException | None = None
        self._closed = False
        self._token = anyio.lowlevel.current_token()
        self._thread = threading.Thread(target=self._write_until_closed, name="registry-store")
        self.num_commits = 0
        if not self._inline:
            self._thread.start()

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` inside a transaction; return its result once that is durable.

        What ``work`` raises undoes ``work`` alone and is raised here. Cancelling the wait does
        not cancel the write.

        Raises:
            Overloaded: `WAITING_WRITES_MAX` writes wait already.
            InternalFault: ``work`` broke a constraint of the schema.
            StoreFailed: the disk failed, now or before.
        """
        self._check_open()
        job = _Job(work)
        if self._inline:
            self._commit([job])
        else:
            try:
                self._queue.put_nowait(job)
            except queue.Full:
                raise Overloaded("the registry's store is behind", retry_after_s=1.0) from None
            await job.done.wait()  # no deadline of its own: the disk answers or fails
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]

    async def read(self, work: Work[T]) -> T:
        """Run ``work``, which only reads, on a snapshot of what is committed.

        Raises:
            StoreFailed: the file cannot be read.
        """
        self._check_open()
        if self._inline:
            return self._read(self._writer, work)
        return await anyio.to_thread.run_sync(self._read_apart, work, limiter=self._reading)

    def _read_apart(self, work: Work[T]) -> T:
        connection = self._readers.pop()  # there is one: the limiter counts them
        try:
            return self._read(connection, work)
        finally:
            self._readers.append(connection)

    def _read(self, connection: apsw.Connection, work: Work[T]) -> T:
        try:
            connection.execute("BEGIN")
            try:
                return work(connection)
            finally:
                connection.execute("ROLLBACK")
        except _FAULTS_OF_WORK as error:
            raise _as_fault(error) from error
        except apsw.Error as error:
            raise StoreFailed(f"the registry cannot read its file: {error}") from error

    def _check_open(self) -> None:
        if self._closed:
            raise StoreFailed("the registry's store is closed")
        self._check_alive()

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise StoreFailed(
                f"the registry's disk failed ({self._failure}): make room or replace it, restart"
            )

    async def close(self) -> None:
        """Commit what was accepted, then close the file; `open_store` calls it."""
        self._closed = True
        if not self._inline:
            # Shielded and without a deadline: what was accepted is committed before we leave.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._queue.put, None)
                await anyio.to_thread.run_sync(self._thread.join)
        for reader in self._readers:
            reader.close()
        self._writer.close()

    # From here on: the writer's thread.

    def _write_until_closed(self) -> None:
        last = False
        while not last:
            batch, last = self._next_batch()
            if batch:
                self._commit(batch)
                self._hand_back(batch)

    def _next_batch(self) -> tuple[list[_Job[Any]], bool]:
        """What waits now, and whether the store closes behind it; waits for the first."""
        batch: list[_Job[Any]] = []
        while job := self._queue.get():
            batch.append(job)
            if len(batch) == COMMIT_WRITES_MAX or self._queue.empty():
                return batch, False
        return batch, True

    def _commit(self, batch: list[_Job[Any]]) -> None:
        try:
            self._check_alive()
            self._writer.execute("BEGIN IMMEDIATE")
            for job in batch:
                self._run(job)
            self._writer.execute("COMMIT")
            self.num_commits += 1
        except (apsw.Error, StoreFailed) as error:
            self._failure = self._failure or error
            for job in batch:
                job.error = StoreFailed(f"the registry cannot write its file: {error}")

    def _run(self, job: _Job[Any]) -> None:
        self._writer.execute("SAVEPOINT work")
        try:
            job.result = job.work(self._writer)
        except Exception as error:  # the boundary: raised again in its caller
            if isinstance(error, apsw.Error) and not isinstance(error, _FAULTS_OF_WORK):
                raise
            job.error = _as_fault(error) if isinstance(error, apsw.Error) else error
            self._writer.execute("ROLLBACK TO work")
        self._writer.execute("RELEASE work")

    def _hand_back(self, batch: list[_Job[Any]]) -> None:
        try:
            anyio.from_thread.run_sync(_wake, batch, token=self._token)
        except anyio.RunFinishedError:
            return  # the loop is gone, and with it whoever waited


def _wake(batch: list[_Job[Any]]) -> None:
    for job in batch:
        job.done.set()


def _as_fault(error: apsw.Error) -> InternalFault:
    fault = InternalFault(f"the registry asked its database something wrong: {error}")
    fault.__cause__ = error
    return fault


def _connect(path: Path, vfs: str | None) -> apsw.Connection:
    connection = apsw.Connection(str(path), vfs=vfs)
    connection.set_busy_timeout(_BUSY_MS)
    refuse_foreign(connection)
    # NORMAL never corrupts, but it forgets acknowledged writes on power loss (section 0, point 5).
    for name, value in (("journal_mode", "wal"), ("synchronous", "full"), ("fullfsync", "on")):
        connection.pragma(name, value)
    if connection.pragma("synchronous") != 2 or connection.pragma("journal_mode") != "wal":
        raise ConfigurationRefused(f"{path.parent} is on a file system without SQLite's WAL")
    return connection


def _claim(path: Path) -> apsw.Connection:
    """Hold a lock that the system drops with this process, however that ends."""
    lock = apsw.Connection(f"{path}.lock")
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except apsw.BusyError:
        lock.close()
        raise ConfigurationRefused(
            f"another process writes {path}: stop it, or choose another folder"
        ) from None
    return lock


def _open(
    path: Path, inline: bool, vfs: str | None
) -> tuple[apsw.Connection, apsw.Connection, list[apsw.Connection]]:
    """The lock, the writer and the readers of ``path``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        lock = _claim(path)
        try:
            writer = _connect(path, vfs)
            migrate(writer)
            return lock, writer, [_connect(path, vfs) for _ in range(0 if inline else READERS)]
        except BaseException:
            lock.close()
            raise
    except (OSError, apsw.Error) as error:
        raise StoreFailed(f"the registry cannot open {path}: {error}") from error


@asynccontextmanager
async def open_store(
    path: Path, *, inline: bool = False, vfs: str | None = None
) -> AsyncIterator[Store]:
    """The store in ``path``, made if absent; closed, with all accepted writes, on leaving.

    Args:
        path: the database; its folder is made too. Only its owner may read it.
        inline: run everything on the caller's thread, one commit a write: for simulations, whose
            virtual clock would run away while a thread works.
        vfs: SQLite's virtual file system, for tests of failing disks.

    Raises:
        ConfigurationRefused: another process has it open, or it is not a file of ours.
        StoreFailed: it cannot be opened.
    """
    lock, writer, readers = (
        _open(path, inline, vfs)
        if inline
        else await anyio.to_thread.run_sync(_open, path, inline, vfs)
    )
    try:
        store = Store(writer, readers)
        try:
            yield store
        finally:
            await store.close()
    finally:
        lock.close()
