"""Threads for what blocks: one of its own that does jobs in order, or one of a few for any job.

A round trip to one of its own costs a quarter of `anyio.to_thread.run_sync`'s, which keeps a pool,
copies contexts and wakes a task more on the way back. Elsewhere than on asyncio (trio, virtual
time) both are that.
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


async def in_thread(job: Callable[[], T]) -> T:
    """Have ``job`` done in one of a few threads; what it returns or raises.

    Its place is taken until it has ended, even if whoever waits for it is cancelled: clients that
    hang up (see `starai.core.cutting.Cut`) cannot have more jobs done at once than stay.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return await anyio.to_thread.run_sync(job)
    limiter, place = anyio.to_thread.current_default_thread_limiter(), object()
    await limiter.acquire_on_behalf_of(place)
    done = loop.run_in_executor(None, job)
    done.add_done_callback(lambda _: limiter.release_on_behalf_of(place))
    return await asyncio.shield(done)
