"""A thread of its own for what blocks: jobs in order, one at a time, for one event loop.

A round trip costs a quarter of `anyio.to_thread.run_sync`'s, which keeps a pool, copies contexts
and wakes a task more on the way back. Elsewhere than on asyncio (trio, virtual time) it is that.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - what the road waits on
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class WorkThread:
    """Does jobs in the order in which they were given. Its owner calls `close` after the last."""

    def __init__(self) -> None:
        """Begin with the first job."""
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._turn: anyio.CapacityLimiter | None = None

    async def run(self, job: Callable[[], T]) -> T:
        """Have ``job`` done; what it returns or raises. Being cancelled does not stop it."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._turn = self._turn or anyio.CapacityLimiter(1)
            return await anyio.to_thread.run_sync(job, limiter=self._turn)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.put((job, loop, done))
        return await done

    def close(self) -> None:
        """End the thread when all jobs are done."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (given := self._jobs.get()) is not None:
            job, loop, done = given
            result: Any = None
            failure: BaseException | None = None
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever gave the job
                failure = error
            try:
                loop.call_soon_threadsafe(_end, done, result, failure)
            except RuntimeError:
                return  # the loop was closed: nobody waits any more


def _end(done: asyncio.Future[Any], result: object, failure: BaseException | None) -> None:
    if done.done():
        return  # cancelled
    if failure is None:
        done.set_result(result)
    else:
        done.set_exception(failure)
