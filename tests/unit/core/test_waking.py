"""The bell and the loop's clock, on asyncio and on trio."""

import threading

import anyio
import anyio.lowlevel
import pytest

from starai.core.waking import Bell, call_soon, loop_time

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


async def test_rings_add_up_to_one():
    """A bell that was rung twice before the wait lets one wait through at once, not two."""
    bell = Bell()
    bell.ring()
    bell.ring()
    assert await bell.wait()
    assert not await bell.wait(loop_time() + 0.01)


async def test_a_ring_wakes_the_reader():
    """A reader that waits without an end is woken by a ring from elsewhere."""
    bell, woken = Bell(), []

    async def read():
        woken.append(await bell.wait())

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await anyio.sleep(0.01)
        assert not woken
        bell.ring()
    assert woken == [True]


async def test_time_that_is_up():
    """Without a ring the wait ends when its time has come, and not before."""
    began_s = loop_time()
    assert not await Bell().wait(began_s + 0.05)
    assert 0.045 <= anyio.current_time() - began_s < 1


async def test_a_cancelled_reader_leaves_the_bell_in_order():
    """A wait can be cancelled; a ring afterwards is for the next one."""
    bell = Bell()
    with anyio.move_on_after(0.01) as scope:
        await bell.wait(loop_time() + 60)
    assert scope.cancelled_caught
    bell.ring()
    assert await bell.wait()


async def test_a_thread_calls_without_waiting():
    """A call from a thread is made by the loop's thread, after the thread went on."""
    bell, callers = Bell(), []

    def ring():
        callers.append(threading.current_thread())
        bell.ring()

    thread = threading.Thread(target=call_soon, args=(anyio.lowlevel.current_token(), ring))
    thread.start()
    thread.join(10)
    assert not callers
    assert await bell.wait(loop_time() + 10)
    assert callers == [threading.current_thread()]


def test_a_loop_that_has_ended_is_no_loop(anyio_backend):
    """Who calls a loop that is gone is told."""

    async def token():
        return anyio.lowlevel.current_token()

    with pytest.raises(RuntimeError):
        call_soon(anyio.run(token, backend=anyio_backend), print)
