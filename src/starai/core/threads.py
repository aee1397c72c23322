"""A thread of its own for what blocks: jobs in order, one at a time, for one event loop.

A round trip costs a quarter of `anyio.to_thread.run_sync`'s, which keeps a pool, copies contexts
and wakes a task more on the way back. Elsewhere than on asyncio (trio, virtual time) it is that.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - what the road waits on
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")

#: Results of jobs that wait behind each other share a wake-up of the loop, if they take no longer.
SHARE_S: Final = 0.001

_Result = tuple[Any, BaseException | None]
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
        given = self._jobs.get()
        while given is not None:
            loop, results = given[1], []
            until_s = time.monotonic() + SHARE_S
            while given is not None:
                results.append((given[2], *_do(given[0])))
                if self._jobs.empty() or time.monotonic() > until_s:
                    break
                given = self._jobs.get()
            try:
                loop.call_soon_threadsafe(_end, results)
            except RuntimeError:
                return  # the loop was closed: nobody waits any more
            given = given and self._jobs.get()


def _do(job: Callable[[], Any]) -> _Result:
    try:
        return job(), None
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever gave the job
        return None, error


def _end(results: list[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
    for done, result, failure in results:
        if done.done():
            continue  # cancelled
        if failure is None:
            done.set_result(result)
        else:
            done.set_exception(failure)
