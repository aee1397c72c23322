"""A cut ends the work inside it and nothing else, on asyncio and on trio."""

import anyio
import pytest

from starai.core.cutting import Cut

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


async def test_what_is_cut_ends_and_what_comes_after_it_does_not():
    """The work ends where it waits, its clearing up is done, and its task goes on behind it."""
    cut, seen = Cut(), []

    async def work():
        with cut:
            try:
                await anyio.sleep_forever()
            finally:
                seen.append("cleared")
        await anyio.sleep(0)
        seen.append("after")

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        await anyio.sleep(0.01)
        assert not cut.made
        cut.make()
        cut.make()
    assert cut.made
    assert seen == ["cleared", "after"]


async def test_work_that_is_cut_before_its_first_turn_ends_where_it_first_waits():
    """A cut that comes before the work has begun is not forgotten."""
    cut, seen = Cut(), []
    cut.make()
    with cut:
        seen.append("begun")
        await anyio.sleep(0)
        seen.append("went on")
    assert seen == ["begun"]
    await anyio.sleep(0)


async def test_work_that_is_not_cut_is_left_alone():
    """Its result and its errors come out as they are; a cut afterwards does nothing."""
    cut = Cut()

    async def work():
        with cut:
            await anyio.sleep(0)
            raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        await work()
    cut.make()
    await anyio.sleep(0)


async def test_a_cut_does_not_swallow_a_cancellation_from_outside():
    """A task that is both cut and cancelled with its group ends behind the cut."""
    cut, seen = Cut(), []

    async def work():
        with cut:
            await anyio.sleep_forever()
        await anyio.sleep(60)
        seen.append("went on")

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await anyio.sleep(0.01)
            cut.make()
            group.cancel_scope.cancel()
    assert not seen


async def test_scopes_inside_a_cut_work_as_ever():
    """A deadline inside it passes by itself, and a group inside it ends with the cut."""
    cut, ended = Cut(), []

    async def child():
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("child")

    async def work():
        with cut:
            with anyio.move_on_after(0.01) as scope:
                await anyio.sleep_forever()
            assert scope.cancelled_caught
            async with anyio.create_task_group() as inner:
                inner.start_soon(child)
        ended.append("work")

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        await anyio.sleep(0.05)
        cut.make()
    assert ended == ["child", "work"]


@pytest.mark.parametrize("cut_first", [True, False])
async def test_a_scope_that_ends_at_the_same_moment_does_not_swallow_the_cut(*, cut_first: bool):
    """A deadline inside it may pass just as the work is cut off: the work ends all the same."""
    cut, inner, seen = Cut(), anyio.CancelScope(), []

    async def work():
        with cut:
            with inner:
                await anyio.sleep_forever()
            await anyio.sleep(60)
            seen.append("went on")
        seen.append("after")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await anyio.sleep(0.01)
            for end in (cut.make, inner.cancel) if cut_first else (inner.cancel, cut.make):
                end()
    assert seen == ["after"]
