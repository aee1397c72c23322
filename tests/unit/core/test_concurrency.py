"""What is stopped gently comes to its end by itself, but not for ever."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from starai.core.concurrency import stopped_gently

pytestmark = pytest.mark.anyio
GRACE_S = 10.0


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """No test here waits in real time."""
    return virtual_time


class Work:
    """Runs until it is told to stop, and then for ``more_s``."""

    def __init__(self, more_s: float, *, hears: bool = True) -> None:
        self.told = anyio.Event()
        self.ended_at_s: float | None = None
        self._more_s = more_s
        self._hears = hears

    async def run(self) -> None:
        await self.told.wait()
        await anyio.sleep(self._more_s)
        self.ended_at_s = anyio.current_time()

    def stop(self) -> bool:
        self.told.set()
        return self._hears


async def stopped_after(work: Work, began_s: float) -> float:
    """How long it took from the cancellation at 1 s on until all was over."""
    with anyio.move_on_after(1):
        await stopped_gently(work.run, work.stop, GRACE_S)
    return anyio.current_time() - began_s - 1


async def test_it_is_told_and_waited_for() -> None:
    """What ends within its time ends by itself."""
    work = Work(4)
    began_s = anyio.current_time()
    assert await stopped_after(work, began_s) == pytest.approx(4)
    assert work.ended_at_s is not None


async def test_its_time_is_bounded() -> None:
    """What does not end in time is cancelled."""
    work = Work(100)
    assert await stopped_after(work, anyio.current_time()) == pytest.approx(GRACE_S)
    assert work.ended_at_s is None


async def test_who_cannot_be_told_is_cancelled_at_once() -> None:
    """Nobody waits for what has not begun to listen."""
    work = Work(100, hears=False)
    assert await stopped_after(work, anyio.current_time()) == pytest.approx(0)
    assert work.ended_at_s is None


async def test_a_failure_comes_out_as_itself() -> None:
    """An error of the work is its caller's, and nobody is told to stop."""
    told: list[bool] = []

    async def fail() -> None:
        await anyio.sleep(1)
        raise ValueError("broken")

    def stop() -> bool:
        told.append(True)
        return True

    with pytest.raises(ValueError, match="broken"):
        await stopped_gently(fail, stop, GRACE_S)
    assert not told
