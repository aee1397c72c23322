"""One writer thread, group commit, readers apart: a `Store` over any database that has sessions.

Work is a function of a `Connection`. `Store.write` returns once its work is committed and synced;
everything that waits at that moment shares one commit, so one write costs one fsync and a thousand
cost hardly more (ledger design, section 3.3). A disk that fails is fatal: from then on every call
raises `StoreFailed`, because after a failed fsync nobody knows what is on disk. Knows nothing of
what is written, nor of which database writes it: a `Session` does.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, ClassVar, Final, Protocol, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from starai.core.errors import InternalFault, Overloaded, StarAIError, StoreFailed
from starai.core.threads import WorkThread
from starai.core.waking import Bell, call_soon

Item = TypeVar("Item")
T = TypeVar("T")
Row = tuple[Any, ...]

#: Writes that wait for the writer; beyond it callers are told to come back.
WAITING_WRITES_MAX: Final = 4096
#: Writes in one commit, and what they count for together: both bound how long the first of them
#: waits for the last. A thousand records by one write take as long as a hundred writes of one.
COMMIT_WRITES_MAX: Final = 512
COMMIT_SIZE_MAX: Final = 4096
#: Reads at once: a long integrity check leaves room for short questions.
READERS: Final = 3


class Connection(Protocol):
    """What work may do. SQL is the subset that SQLite and PostgreSQL share.

    Placeholders are ``?`` (or ``?1``, ``?2``); integers and bytes come back as such. No rowid, no
    PRAGMA, no ``min`` or ``max`` of two arguments, no arithmetic on truth values: ``RETURNING``,
    ``CASE`` and ``FILTER`` do the same in both.
    """

    #: Everything that the database raises.
    errors: ClassVar[tuple[type[Exception], ...]]

    def execute(self, sql: str, bindings: Sequence[Any] = (), /) -> Iterator[Row]:
        """Run one statement; its rows."""
        ...

    def executemany(self, sql: str, bindings: Iterable[Sequence[Any]], /) -> object:
        """Run one statement that returns nothing, once for each of ``bindings``."""
        ...

    def changes(self) -> int:
        """How many rows the last INSERT, UPDATE or DELETE by `execute` changed."""
        ...

    def damage(self, most: int, /) -> Iterator[str]:
        """What the database finds wrong with its own files, in words; at most ``most`` lines."""
        ...


class Session(Connection, Protocol):
    """A connection as the `Store` holds it."""

    #: Of `errors`, the faults of the work itself (a broken constraint, bad SQL): they fail that
    #: work alone. Whatever else is raised (full, I/O error, connection lost) fails the store.
    faults: ClassVar[tuple[type[Exception], ...]]

    def begin(self, *, writing: bool) -> None:
        """Start a transaction: the only one that writes, or a snapshot that only reads."""
        ...

    def commit(self) -> None:
        """Make the transaction durable; it is on disk when this returns."""
        ...

    def rollback(self) -> None:
        """Undo the transaction, if there still is one."""
        ...

    def close(self) -> None:
        """End the session."""
        ...


Work = Callable[[Connection], T]
#: Work on several items at once: of each, in their order, what came of it or the error to raise.
WorkOnEach = Callable[[Connection, Sequence[Item]], Sequence[T | StarAIError]]


class _Job:
    """One write: what to do, and what came of it."""

    __slots__ = ("done", "error", "item", "result", "size", "work")

    def __init__(self, work: WorkOnEach[Any, Any], item: object = None, size: int = 1) -> None:
        self.work = work
        self.item = item
        self.size = size
        self.done = Bell()
        self.error: BaseException | None = None
        self.result: Any = None


class Store:
    """An open database; made by `open_store`. Safe for any number of tasks of one event loop."""

    def __init__(self, writer: Session, readers: Sequence[Session]) -> None:
        """Take the sessions; without ``readers`` everything runs on the caller's thread."""
        self._writer = writer
        self._readers = list(readers)
        self._inline = not readers
        self._fatal: tuple[type[Exception], ...] = (*writer.errors, StoreFailed)
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._reading = anyio.CapacityLimiter(max(1, len(readers)))
        self._failure: BaseException | None = None
        self._closed = False
        self._token = anyio.lowlevel.current_token()
        self._thread = threading.Thread(target=self._write_until_closed, name="registry-store")
        self._beside = WorkThread()
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
        return await self._write(_Job(lambda connection, _: [work(connection)]))  # type: ignore[no-any-return]

    async def write_each(self, work: WorkOnEach[Item, T], item: Item, *, size: int = 1) -> T:
        """Like `write`, for ``work`` that many ask for: who waits at the same time shares it.

        ``work`` gets the items of all that wait for it, and returns of each a result or an error.
        If it raises instead, all that it did is undone, and it gets each item alone. ``size`` is
        how many rows or so the item makes (`COMMIT_SIZE_MAX`).

        Raises:
            StarAIError: what ``work`` returned or raised for this item; and see `write`.
        """
        return await self._write(_Job(work, item, size))  # type: ignore[no-any-return]

    async def _write(self, job: _Job) -> Any:
        self._check_open()
        if self._inline:
            self._commit([job])
        else:
            if self._queue.qsize() >= WAITING_WRITES_MAX:
                raise Overloaded("the registry's store is behind", retry_after_s=1.0)
            self._queue.put(job)
            await job.done.wait()  # no deadline of its own: the disk answers or fails
        if job.error is not None:
            raise job.error
        if isinstance(job.result, StarAIError):
            raise job.result
        return job.result

    async def read(self, work: Work[T]) -> T:
        """Run ``work``, which only reads, on a snapshot of what is committed.

        Raises:
            StoreFailed: the database cannot be read.
        """
        self._check_open()
        if self._inline:
            return self._read(self._writer, work)
        return await anyio.to_thread.run_sync(self._read_apart, work, limiter=self._reading)

    async def beside(self, job: Callable[[], T]) -> T:
        """Have a job that needs no database done off the event loop, in the order of asking.

        Where everything runs on the caller's thread, this does too.

        Raises:
            StoreFailed: it is closed, or the disk failed before; and what ``job`` raises.
        """
        self._check_open()
        return job() if self._inline else await self._beside.run(job)

    def _read_apart(self, work: Work[T]) -> T:
        session = self._readers.pop()  # there is one: the limiter counts them
        try:
            return self._read(session, work)
        finally:
            self._readers.append(session)

    def _read(self, session: Session, work: Work[T]) -> T:
        try:
            session.begin(writing=False)
            try:
                return work(session)
            finally:
                session.rollback()
        except session.faults as error:
            raise _as_fault(error) from error
        except session.errors as error:
            raise StoreFailed(f"the registry cannot read its database: {error}") from error

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
        """Commit what was accepted, and take no more; `open_store` calls it, and ends sessions."""
        self._closed = True
        if not self._inline:
            # Shielded and without a deadline: what was accepted is committed before we leave.
            with anyio.CancelScope(shield=True):
                self._queue.put(None)
                await anyio.to_thread.run_sync(self._thread.join)
        self._beside.close()

    # From here on: the writer's thread.

    def _write_until_closed(self) -> None:
        last = False
        while not last:
            batch, last = self._next_batch()
            if batch:
                self._commit(batch)
                self._hand_back(batch)

    def _next_batch(self) -> tuple[list[_Job], bool]:
        """What waits now, and whether the store closes behind it; waits for the first."""
        batch: list[_Job] = []
        size = 0
        while job := self._queue.get():
            batch.append(job)
            size += job.size
            is_full = len(batch) == COMMIT_WRITES_MAX or size >= COMMIT_SIZE_MAX
            if is_full or self._queue.empty():
                return batch, False
        return batch, True

    def _commit(self, batch: list[_Job]) -> None:
        try:
            self._check_alive()
            self._writer.begin(writing=True)
            for _, jobs in groupby(batch, key=attrgetter("work")):
                self._run(list(jobs))
            self._writer.commit()
            self.num_commits += 1
        except self._fatal as error:
            self._failure = self._failure or error
            for job in batch:
                job.error = StoreFailed(f"the registry cannot write its database: {error}")

    def _run(self, jobs: Sequence[_Job]) -> None:
        """Do the work that these jobs have in common: together, or one by one if that fails."""
        failure = self._try(jobs)
        if failure is not None and len(jobs) == 1:
            jobs[0].error = failure
        elif failure is not None:
            for job in jobs:
                self._run([job])

    def _try(self, jobs: Sequence[_Job]) -> Exception | None:
        """Do their work; if it raises, undo it and return what it raised."""
        failure: Exception | None = None
        self._writer.execute("SAVEPOINT work")
        try:
            results = jobs[0].work(self._writer, [job.item for job in jobs])
            for job, result in zip(jobs, results, strict=True):
                job.result = result
        except Exception as error:  # the boundary: raised again in its caller
            is_ours = isinstance(error, self._writer.errors)
            if is_ours and not isinstance(error, self._writer.faults):
                raise
            failure = _as_fault(error) if is_ours else error
            self._writer.execute("ROLLBACK TO work")
        self._writer.execute("RELEASE work")
        return failure

    def _hand_back(self, batch: list[_Job]) -> None:
        try:
            call_soon(self._token, partial(_wake, batch))
        except RuntimeError:
            return  # the loop is gone, and with it whoever waited


def _wake(batch: list[_Job]) -> None:
    for job in batch:
        job.done.ring()


def _as_fault(error: Exception) -> InternalFault:
    fault = InternalFault(f"the registry asked its database something wrong: {error}")
    fault.__cause__ = error
    return fault
