"""A crew's work is done beside each other and ends with its context, on asyncio and on trio."""

import anyio
import pytest

from starai.core.crew import crew

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


async def test_leaving_cancels_what_is_not_done_and_waits_for_its_end():
    """Work that is done is forgotten; the rest is cancelled, and clears up before the end."""
    seen = []

    async def work(name, seconds):
        try:
            await anyio.sleep(seconds)
            seen.append(f"{name} done")
        finally:
            seen.append(f"{name} over")

    async with crew() as made:
        made.start(work, "short", 0)
        made.start(work, "long", 100)
        await anyio.sleep(0.02)
        assert seen == ["short done", "short over"]
    assert seen[2:] == ["long over"]


async def test_a_mistake_comes_out_of_the_context():
    """What work raises ends the body and is raised as itself."""

    async def work():
        raise ValueError("a mistake")

    async def run():
        async with crew() as made:
            made.start(work)
            await anyio.sleep_forever()

    with pytest.raises(ValueError, match="a mistake"):
        await run()


async def test_a_mistake_while_it_ends_is_not_lost():
    """Nor is what work raises once it is cancelled."""

    async def work():
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("while it ended")

    async def run():
        async with crew() as made:
            made.start(work)
            await anyio.sleep(0.01)

    with pytest.raises(ValueError, match="while it ended"):
        await run()
