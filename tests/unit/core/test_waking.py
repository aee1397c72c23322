"""The bell and the loop's clock, on asyncio and on trio."""

import anyio
import pytest

from starai.core.waking import Bell, loop_time

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
