"""What computes here starts before the network's part, is replaced when it dies, never stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import anyio
import msgspec
import pytest
from tests.unit.local.test_supplying import MOCK, ticket

from starai.core.clock import SystemClock
from starai.core.errors import Unavailable
from starai.devices import Rates, profile
from starai.local import joining
from starai.local.computing import Computing
from starai.local.fitness import Fitness, fitness
from starai.local.home import Home
from starai.local.nodes import NodeOptions, engine_spec
from starai.local.supplying import join_and_serve
from starai.local.telling import Stage, Telling

_LIST = """
import sys, starai.cli.join
print([name for name in sys.argv[1:] if name in sys.modules])
"""


def children() -> set[int]:
    """The processes that this one has started and not seen end."""
    found = Path("/proc/self/task").glob("*/children")
    return {int(pid) for file in found for pid in file.read_text().split()}


def test_little_is_imported_before_the_engine_starts() -> None:
    """What the network, tables and rare models need comes later: each would make joining longer."""
    late = ("starai.local.supplier", "starai.wire.certificates", "cryptography.x509", "rich")
    late += ("urllib.request", "sentencepiece", "starai.node.service", "torch")
    command = [sys.executable, "-c", _LIST, *late]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.anyio
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for its children")
async def test_a_join_that_fails_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is there when the network is asked first, and gone when that came to nothing."""
    monkeypatch.setattr(joining, "FIRST_CONNECT_S", 0.2)
    before = children()
    seen: dict[Stage, set[int]] = {}
    telling = Telling(lambda stage, _detail: seen.update({stage: children() - before}))
    with pytest.raises(Unavailable):
        await join_and_serve(
            Home(tmp_path), "node", ticket("tls://127.0.0.1:1").text(), MOCK, telling=telling
        )
    assert seen[Stage.LOADING] == set()
    assert len(seen[Stage.CONNECTING]) == 1
    assert children() - before == set()


@pytest.mark.anyio
async def test_an_engine_that_dies_while_its_device_joins_is_replaced(tmp_path: Path) -> None:
    """Whoever waits for it gets the next one; when it is not wanted any more, that ends too."""
    home, clock = Home(tmp_path), SystemClock()
    computing = Computing(home, MOCK, engine_spec(home.models, MOCK), Telling(), clock)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(computing.run)
            await computing.started.wait()
            runner = await computing.runner()
            _, first = runner.pids()
            os.kill(first, signal.SIGKILL)
            while runner.info is None:
                await anyio.sleep(0.01)
            second = runner.engine_pid
            assert second != first
            group.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


@pytest.mark.anyio
@pytest.mark.skipif(find_spec("torch") is None, reason="only our own engine is measured for")
async def test_the_network_is_not_kept_waiting_by_a_device_that_is_slow_to_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here another node of the home does it: joining begins all the same, before the engine."""
    import_module("starai.local.supplier")  # which is not what is timed here
    monkeypatch.setattr(joining, "FIRST_CONNECT_S", 0.2)
    (tmp_path / "device.measuring").touch()
    known = msgspec.json.encode(Fitness(profile(tmp_path), Rates(1e10, 1e11)))
    neighbour = threading.Timer(1.0, (tmp_path / "device.json").write_bytes, (known,))
    neighbour.start()
    told: list[Stage] = []
    telling = Telling(lambda stage, _detail: told.append(stage))
    token = ticket("tls://127.0.0.1:1").text()
    with pytest.raises(Unavailable):
        await join_and_serve(
            Home(tmp_path), "node", token, NodeOptions("embedded"), telling=telling
        )
    neighbour.join()
    assert told[:2] == [Stage.MEASURING, Stage.CONNECTING]


def test_a_home_that_takes_no_file_hides_no_device(tmp_path: Path) -> None:
    """What was measured is known, though it must be measured again the next time."""
    (tmp_path / "home").write_text("a file")
    assert fitness(Home(tmp_path / "home"), SystemClock(), again=True).cpu.measured
