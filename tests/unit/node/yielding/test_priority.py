"""An engine's process stands behind everything else, from its first moment on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from starai.engines.base import EngineSpec
from starai.engines.process import engine_process
from starai.node.yielding import Limits
from starai.node.yielding.priority import lower_engine, tamed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")


@pytest.fixture
def sleeper() -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield child.pid
    child.kill()
    child.wait()


def test_an_engine_computes_when_nobody_else_wants_to(sleeper):
    """Idle scheduling, the lowest nice value, and the last core."""
    tamed(Limits(max_cores=1))(sleeper)
    assert os.sched_getscheduler(sleeper) == os.SCHED_IDLE
    assert os.getpriority(os.PRIO_PROCESS, sleeper) == 19
    assert os.sched_getaffinity(sleeper) == {max(os.sched_getaffinity(0))}


def test_the_session_of_an_engine_is_lowered_and_no_other():
    """Linux shares between sessions first: a worker's own is lowered, ours is not."""
    ours = Path("/proc/self/autogroup")
    if not ours.exists():
        pytest.skip("this kernel has no autogroups")
    before = ours.read_text()
    for alone in (True, False):
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=alone
        )
        try:
            lower_engine(child.pid)
            told = Path(f"/proc/{child.pid}/autogroup").read_text()
            assert told.endswith("nice 19\n") == alone
        finally:
            child.kill()
            child.wait()
    assert ours.read_text() == before


def test_without_politeness_nothing_is_lowered(sleeper):
    """--no-polite leaves the scheduler alone."""
    tamed(Limits(polite=False))(sleeper)
    assert os.sched_getscheduler(sleeper) == os.SCHED_OTHER


def test_a_process_that_is_gone_is_no_error():
    """It may die while it is being lowered."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    lower_engine(child.pid)


@pytest.mark.anyio
async def test_all_threads_of_a_worker_are_lowered():
    """Done at the start, it reaches the threads that come later."""
    async with engine_process(EngineSpec("mock", "mock"), on_spawned=tamed(Limits())) as worker:
        await anyio.sleep(0)
        threads = [int(one.name) for one in Path(f"/proc/{worker.pid}/task").iterdir()]
        assert len(threads) > 1
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_IDLE}
