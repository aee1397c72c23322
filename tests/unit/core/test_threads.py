"""The thread for what blocks: jobs in order, their results and faults to those who gave them."""

from __future__ import annotations

import threading
import time

import anyio
import pytest

from starai.core.cutting import Cut
from starai.core.threads import WorkThread, in_thread

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """It works under both."""
    return str(request.param)


async def test_jobs_are_done_in_order_and_off_the_loop() -> None:
    """One after the other, in another thread; each caller gets what its own job returned."""
    thread, done = WorkThread(), []

    def job(number: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        time.sleep(0.001)
        done.append(number)
        return number * number

    async def give(number: int) -> None:
        assert await thread.run(lambda: job(number)) == number * number

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(give, number)
    assert sorted(done) == list(range(20))
    thread.close()


async def test_a_fault_belongs_to_its_job() -> None:
    """What a job raises comes out where it was given; the next one is done."""
    thread = WorkThread()
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 // 0)
    assert await thread.run(lambda: 1) == 1
    thread.close()


async def test_a_result_does_not_wait_for_a_long_line() -> None:
    """Who was first has its result while others' jobs are still being done."""
    thread, done, seen = WorkThread(), [], []

    def job() -> None:
        time.sleep(0.002)
        done.append(None)

    async def give() -> None:
        await thread.run(job)
        seen.append(len(done))

    async with anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(give)
    assert seen[0] < 20
    thread.close()


async def test_who_is_cancelled_leaves_the_others_alone() -> None:
    """A job whose giver is gone is done all the same, and the thread goes on."""
    thread, done = WorkThread(), []

    def slow() -> None:
        time.sleep(0.05)
        done.append("slow")

    with anyio.move_on_after(0.01):
        await thread.run(slow)
    assert await thread.run(lambda: "next") == "next"
    assert done == ["slow"]
    thread.close()


async def test_a_job_in_any_thread_tells_how_it_ended() -> None:
    """What it returns, and what it raises, comes out where it was given."""
    assert await in_thread(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


async def test_who_hangs_up_makes_no_room_for_more_jobs_at_once() -> None:
    """As many run as ever may, however many of those who gave them are cut off at once."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens = 2
    running, most = 0, 0

    def job() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.05)
        running -= 1

    async def work(cut: Cut) -> None:
        with cut:
            await in_thread(job)

    for _ in range(8):
        cut = Cut()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, cut)
            await anyio.sleep(0.01)
            cut.make()
    await in_thread(lambda: None)
    assert 0 < most <= 2
    with anyio.fail_after(5):
        while limiter.borrowed_tokens:
            await anyio.sleep(0.01)
