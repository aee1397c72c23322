"""Children that are watched: logged, restarted, stopped in order, and never left behind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from starai.core.clock import SystemClock
from starai.local import processes as module
from starai.local.processes import Processes, Service, as_child, processes

pytestmark = pytest.mark.anyio

#: A child is a few lines of Python: its arguments are the program.
PYTHON = (sys.executable, "-S", "-c")
SLEEPS = "import time; print('up', flush=True); time.sleep(60)"
POLITE = """
import signal, sys, time
def stop(*_):
    print(f'{sys.argv[1]} stopped {time.monotonic()}', flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, stop)
print('up', flush=True)
time.sleep(60)
"""
DEAF = f"import signal; signal.signal(15, signal.SIG_IGN); {SLEEPS}"


def service(folder: Path, name: str, *program: str, **secret: str) -> Service:
    return Service(name, program, folder / f"{name}.log", secret)


async def until(true: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not true():
            await anyio.sleep(0.01)


def said(folder: Path, name: str) -> str:
    path = folder / f"{name}.log"
    return path.read_text() if path.exists() else ""


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_logs_to_its_file_and_gets_its_secret_by_environment(tmp_path: Path) -> None:
    """What it prints is in its log; the secret is in no argument and in no repr."""
    code = "import os; print(os.environ['TOKEN'], os.environ['STARAI_CHILD'])"
    made = service(tmp_path, "one", code, TOKEN="hush")
    assert "hush" not in repr(made)
    async with processes(SystemClock(), PYTHON) as owned:
        await owned.start(made)
        await until(lambda: said(tmp_path, "one") == "hush 1\n")


async def test_a_child_that_dies_is_started_again_ever_more_slowly(tmp_path: Path) -> None:
    """Each death in a row doubles the pause."""
    code = "import time; print(time.monotonic(), flush=True); raise SystemExit(1)"
    async with processes(SystemClock(), PYTHON) as owned:
        await owned.start(service(tmp_path, "one", code))
        await until(lambda: len(said(tmp_path, "one").split()) >= 3)
        assert owned.restarts("one") >= 2
    first, second, third = map(float, said(tmp_path, "one").split()[:3])
    assert second - first >= 2 * module.RESTART_FIRST_S
    assert third - second >= 4 * module.RESTART_FIRST_S


async def test_a_child_that_leaves_of_its_own_accord_stays_away(tmp_path: Path) -> None:
    """Exit status 0 is no death: a node that was told to leave is not started again."""
    async with processes(SystemClock(), PYTHON) as owned:
        await owned.start(service(tmp_path, "one", "print('bye')"))
        await until(lambda: said(tmp_path, "one") and not owned.pid("one"))
        await anyio.sleep(3 * module.RESTART_FIRST_S)
        assert (owned.restarts("one"), said(tmp_path, "one")) == (0, "bye\n")


async def test_a_killed_child_is_back_with_another_pid(tmp_path: Path) -> None:
    """SIGKILL of a service is one restart."""
    async with processes(SystemClock(), PYTHON) as owned:
        await owned.start(service(tmp_path, "one", SLEEPS))
        await until(lambda: said(tmp_path, "one"))
        pid = owned.pid("one")
        os.kill(pid, signal.SIGKILL)
        await until(lambda: owned.pid("one") not in (0, pid))
        assert owned.restarts("one") == 1


async def test_children_stop_in_the_order_opposite_to_their_start(tmp_path: Path) -> None:
    """Each has ended before the next is told."""
    async with processes(SystemClock(), PYTHON) as owned:
        for name in ("first", "second", "third"):
            await owned.start(service(tmp_path, name, POLITE, name))
            await until(lambda name=name: said(tmp_path, name))
        assert list(owned.names) == ["first", "second", "third"]
    ends = [float(said(tmp_path, name).split()[-1]) for name in ("third", "second", "first")]
    assert ends == sorted(ends)


async def test_a_child_that_does_not_listen_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time to finish it is ended by force."""
    monkeypatch.setattr(module, "STOP_S", 0.2)
    async with processes(SystemClock(), PYTHON) as owned:
        await owned.start(service(tmp_path, "one", DEAF))
        await until(lambda: said(tmp_path, "one"))
        pid = owned.pid("one")
    assert not lives(pid)


async def test_a_child_that_is_between_two_lives_stops_at_once(tmp_path: Path) -> None:
    """Stopping does not wait for a pause before a restart to be over."""
    async with processes(SystemClock(), PYTHON) as owned:
        await owned.start(service(tmp_path, "one", "print('up'); raise SystemExit(1)"))
        await until(lambda: owned.restarts("one") >= 2 and not owned.pid("one"))
        began = anyio.current_time()
    assert anyio.current_time() - began < 1


async def test_a_program_that_is_not_there_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """The first start fails loudly; those that run already are stopped, and nothing hangs."""
    pids: list[int] = []

    async def start_two(owned: Processes) -> None:
        await owned.start(service(tmp_path, "one", SLEEPS))
        pids.append(owned.pid("one"))
        await owned.start(Service("two", (SLEEPS,), tmp_path / "no" / "folder" / "log"))

    with anyio.fail_after(10):
        with pytest.raises(FileNotFoundError):
            async with processes(SystemClock(), PYTHON) as owned:
                await start_two(owned)
    assert not lives(pids[0])


async def test_a_restart_that_fails_ends_the_owner_and_does_not_hang(tmp_path: Path) -> None:
    """A service that cannot be started again is an error of its owner, who can still stop."""
    folder = tmp_path / "logs"
    folder.mkdir()

    async def start_and_lose_the_folder(owned: Processes) -> None:
        await owned.start(service(folder, "one", "print('up'); raise SystemExit(1)"))
        (folder / "one.log").unlink()
        folder.rmdir()
        await anyio.sleep_forever()

    with anyio.fail_after(10):
        with pytest.raises(FileNotFoundError):
            async with processes(SystemClock(), PYTHON) as owned:
                await start_and_lose_the_folder(owned)


async def test_a_log_that_has_grown_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs are bounded over restarts."""
    monkeypatch.setattr(module, "LOG_BYTES_MAX", 10)
    (tmp_path / "one.log").write_text("x" * 11)
    async with processes(SystemClock(), PYTHON) as owned:
        await owned.start(service(tmp_path, "one", SLEEPS))
        await until(lambda: said(tmp_path, "one") == "up\n")


async def test_a_service_ends_on_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    """`as_child` turns the signal into an orderly cancellation."""
    monkeypatch.delenv(module.CHILD_MARK, raising=False)
    with anyio.fail_after(5):
        async with as_child() as scope:
            await anyio.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)
            await anyio.sleep_forever()
    assert scope.cancel_called
