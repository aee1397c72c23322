"""Whether an engine counts as ready: asked by a token, not when busy, not believed for ever."""

from __future__ import annotations

import os
import signal

import anyio
import pytest

from starai.core.clock import SystemClock
from starai.engines.base import EngineSpec
from starai.node import readiness as module, runner as runner_module
from starai.node.readiness import Readiness
from starai.node.runner import Runner


class Scripted:
    """An engine whose answers a test decides."""

    def __init__(self) -> None:
        self.engine_pid = 7
        self.answers = True
        self.takes_s = 0.01
        self.probes = 0

    async def probe(self) -> bool:
        self.probes += 1
        await anyio.sleep(self.takes_s)
        return self.answers


@pytest.fixture
def anyio_backend(virtual_time: object, request: pytest.FixtureRequest) -> object:
    """Virtual time, but for the test with a real engine."""
    return "asyncio" if "real" in request.node.name else virtual_time


@pytest.mark.anyio
async def test_an_engine_is_ready_once_it_has_drawn_a_token() -> None:
    """Not before, and it is asked again only after a while."""
    engine = Scripted()
    readiness = Readiness(engine)
    async with anyio.create_task_group() as group:
        assert not readiness.is_ready
        group.start_soon(readiness.run)
        await anyio.sleep(0.1)
        assert readiness.is_ready
        await anyio.sleep(2 * module.PROBE_EVERY_S + 1)
        assert (readiness.is_ready, engine.probes) == (True, 3)
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_an_engine_that_fails_is_not_ready_until_it_answers_again() -> None:
    """It is asked often while it is not ready."""
    engine = Scripted()
    readiness = Readiness(engine)
    async with anyio.create_task_group() as group:
        group.start_soon(readiness.run)
        await anyio.sleep(0.1)
        engine.answers = False
        await anyio.sleep(module.PROBE_EVERY_S + 1)
        assert not readiness.is_ready
        engine.answers = True
        await anyio.sleep(1)
        assert readiness.is_ready
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_an_engine_that_hangs_is_doubted_before_it_is_given_up() -> None:
    """Its answer may still come; until then nobody is sent to it."""
    engine = Scripted()
    engine.takes_s = module.SLOW_S + 3
    readiness = Readiness(engine)
    async with anyio.create_task_group() as group:
        group.start_soon(readiness.run)
        await anyio.sleep(engine.takes_s + 0.1)
        assert readiness.is_ready
        await anyio.sleep(module.PROBE_EVERY_S + module.SLOW_S + 1)
        assert not readiness.is_ready
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_another_engine_process_has_to_show_it_itself() -> None:
    """What the one before could do says nothing."""
    engine = Scripted()
    readiness = Readiness(engine)
    async with anyio.create_task_group() as group:
        group.start_soon(readiness.run)
        await anyio.sleep(0.1)
        engine.engine_pid = 0
        assert not readiness.is_ready
        engine.engine_pid = 8
        assert not readiness.is_ready
        await anyio.sleep(1)
        assert readiness.is_ready
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_real_engine_that_hangs_while_idle_is_found_out_and_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stopped worker draws no token: it is not ready, killed, and its successor is."""
    monkeypatch.setattr(module, "PROBE_EVERY_S", 0.2)
    monkeypatch.setattr(module, "SLOW_S", 0.3)
    monkeypatch.setattr(runner_module, "HANG_S", 0.8)
    runner = Runner(EngineSpec("mock", "mock", slots=1), SystemClock())
    readiness = Readiness(runner)

    async def until(ready: bool) -> None:
        with anyio.fail_after(20):
            while readiness.is_ready is not ready:
                await anyio.sleep(0.01)

    async with anyio.create_task_group() as group:
        group.start_soon(runner.run)
        group.start_soon(readiness.run)
        await until(ready=True)
        first = runner.engine_pid
        assert runner.num_running == 0
        os.kill(first, signal.SIGSTOP)
        await until(ready=False)
        await until(ready=True)
        assert runner.engine_pid not in (0, first)
        group.cancel_scope.cancel()
