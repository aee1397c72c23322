"""What the outbox has acknowledged is there after any crash, until it is settled."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import anyio
import apsw
import pytest

from starai.core.errors import ConfigurationRefused, Overloaded, RequestTooLarge, StoreFailed
from starai.wire import outbox as module
from starai.wire.outbox import GATHER_S, Outbox

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The outbox runs under both."""
    return str(request.param)


async def test_kept_until_settled(tmp_path: Path) -> None:
    """Items come back oldest first, by topic, across reopening, until they are settled."""
    path = tmp_path / "deep" / "outbox.db"
    async with Outbox(path) as outbox:
        ids = [await outbox.append("a", bytes([n])) for n in range(5)]
        await outbox.append("b", b"other")
        assert ids == sorted(ids)
        assert outbox.depth == 6
    async with Outbox(path) as outbox:
        assert outbox.depth == 6
        assert await outbox.pending("a", 3) == [(ids[n], bytes([n])) for n in range(3)]
        await outbox.settle(ids[:4])
        await outbox.settle([10**9])
        assert outbox.depth == 2
        assert await outbox.pending("a", 10) == [(ids[4], b"\x04")]
        await outbox.settle([ids[4]])
    async with Outbox(path) as outbox:
        assert await outbox.pending("a", 10) == []
        assert await outbox.append("a", b"new") > max(ids)
    assert path.stat().st_mode & 0o077 == 0


async def test_many_appends_share_commits(tmp_path: Path) -> None:
    """A thousand appends at once all become durable, in far fewer commits than items."""
    async with Outbox(tmp_path / "o.db") as outbox:
        ids: list[int] = []

        async def one(n: int) -> None:
            ids.append(await outbox.append("t", n.to_bytes(4, "big")))

        async with anyio.create_task_group() as tasks:
            for n in range(5000):
                tasks.start_soon(one, n)
        assert len(set(ids)) == 5000
        assert len(await outbox.pending("t", 10_000)) == 5000
        await outbox.settle(ids)
        assert outbox.depth == 0


async def test_what_nobody_waits_for_is_kept_too(tmp_path: Path) -> None:
    """It is there at once for whoever asks, and after the end; and it is written unasked."""
    path = tmp_path / "o.db"
    async with Outbox(path) as outbox:
        first = outbox.keep("t", b"first")
        assert await outbox.pending("t", 10) == [(first, b"first")]
        second = outbox.keep("t", b"second")
        with anyio.fail_after(5):
            while not (written := path.with_name("o.db-wal").read_bytes().count(b"second")):
                await anyio.sleep(GATHER_S)
        assert written
        last = outbox.keep("t", b"last")
        assert outbox.depth == 3
    async with Outbox(path) as outbox:
        assert [id_ for id_, _ in await outbox.pending("t", 10)] == [first, second, last]


async def test_none_is_lost_because_who_said_it_was_cancelled(tmp_path: Path) -> None:
    """What need not be flushed is kept before its wait, however full the next commit is."""
    async with Outbox(tmp_path / "o.db") as outbox:
        for _ in range(module._BATCH_MAX):
            outbox.keep("t", b"others'")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await outbox.append("t", b"mine", flushed=False)
        assert scope.cancelled_caught
        assert (await outbox.pending("t", 2 * module._BATCH_MAX))[-1][1] == b"mine"


async def test_none_is_lost_because_the_disk_is_slow(tmp_path: Path) -> None:
    """More than one commit holds can come while the disk is at work: all of it is kept."""
    async with Outbox(tmp_path / "o.db") as outbox:
        ids = [outbox.keep("t", b"paid") for _ in range(2 * module._BATCH_MAX)]
        assert [id_ for id_, _ in await outbox.pending("t", 10_000)] == ids


async def test_who_is_cancelled_may_still_keep_something(tmp_path: Path) -> None:
    """What runs inside it puts its work on record also while it is being ended from outside."""
    path, kept = tmp_path / "o.db", []

    async def work() -> None:
        async with Outbox(path) as outbox:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.move_on_after(5, shield=True):
                    kept.append(await outbox.append("t", b"done", flushed=False))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()
    async with Outbox(path) as outbox:
        assert [id_ for id_, _ in await outbox.pending("t", 10)] == kept != []


async def test_the_disk_is_flushed_soon_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items that nobody waits for share one flush, which comes unasked."""
    commits: list[tuple[int, bool]] = []

    def watched(database: apsw.Connection, batch: module._Batch, *, flushes: bool) -> int:
        commits.append((len(batch), flushes))
        return real(database, batch, flushes=flushes)

    real = module._commit
    monkeypatch.setattr(module, "_commit", watched)
    async with Outbox(tmp_path / "o.db") as outbox:
        with anyio.fail_after(5):
            for n in range(20):
                outbox.keep("t", bytes([n]))
                await anyio.sleep(0.001)
            while sum(number for number, _ in commits) < 20 or not commits[-1][1]:
                await anyio.sleep(0.01)
        assert not commits[0][1]  # what is flushed later was written before
        before = len(commits)
        await outbox.append("t", b"waited for")
        await outbox.append("t", b"written", flushed=False)
        assert commits[before:] == [(1, True), (1, False)]


async def test_bounds(tmp_path: Path) -> None:
    """A full outbox says so, and takes items again once some are settled; none may be huge."""
    async with Outbox(tmp_path / "o.db", rows_max=2) as outbox:
        first = await outbox.append("t", b"1")
        await outbox.append("t", b"2")
        with pytest.raises(Overloaded):
            await outbox.append("t", b"3")
        await outbox.settle([first])
        await outbox.append("t", b"3")
        with pytest.raises(RequestTooLarge):
            await outbox.append("t", bytes(2 << 20))


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A second owner is turned away, because both would hand out the same items."""
    async with Outbox(tmp_path / "o.db"):
        with pytest.raises(ConfigurationRefused, match="in use"):
            async with Outbox(tmp_path / "o.db"):
                pass


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """A file that is no database is refused, not overwritten."""
    (tmp_path / "o.db").write_bytes(b"not a database, surely" * 100)
    with pytest.raises(StoreFailed):
        async with Outbox(tmp_path / "o.db"):
            pass
    assert (tmp_path / "o.db").read_bytes().startswith(b"not a database")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_one_that_does_not_open_leaves_no_thread(tmp_path: Path) -> None:
    """Its thread ends too, however often it is tried."""
    (tmp_path / "o.db").write_bytes(b"not a database, surely" * 100)
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(StoreFailed):
            async with Outbox(tmp_path / "o.db"):
                pass
    with anyio.fail_after(5):
        while threading.active_count() > before:
            await anyio.sleep(0.001)


async def test_no_more_room(tmp_path: Path) -> None:
    """When the disk takes no more, appending fails aloud and keeps what it had acknowledged."""
    path = tmp_path / "o.db"
    kept: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        async with Outbox(path) as outbox:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))

            async def fill() -> None:
                while True:
                    kept.append(await outbox.append("t", bytes(50_000)))

            with pytest.raises(StoreFailed):
                await fill()
            with pytest.raises(StoreFailed):
                await outbox.append("t", bytes(50_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    async with Outbox(path) as outbox:
        assert [id_ for id_, _ in await outbox.pending("t", 1000)] == kept


async def test_a_promise_that_the_disk_breaks_ends_the_service(tmp_path: Path) -> None:
    """Nobody waits for what was to be kept, so its loss is told by ending the context."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def keep_on() -> None:
        async with Outbox(tmp_path / "o.db") as outbox:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
            while True:
                outbox.keep("t", bytes(50_000))
                await anyio.sleep(0.001)

    try:
        with anyio.fail_after(10), pytest.raises(StoreFailed):
            await keep_on()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


CHILD = """
import sys, anyio, pathlib
from starai.wire.outbox import Outbox

async def main():
    async with Outbox(pathlib.Path(sys.argv[1])) as outbox:
        async def forever(name):
            n = 0
            while True:
                n += 1
                item = b"%d-%d" % (name, n)
                id_ = await outbox.append("t", item, flushed=name % 2 == 0)
                sys.stdout.write(f"{id_} {item.decode()}\\n")
                sys.stdout.flush()
        async with anyio.create_task_group() as tasks:
            for name in range(8):
                tasks.start_soon(forever, name)
anyio.run(main)
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_survives_kill_9(tmp_path: Path) -> None:
    """After each of 20 kills in the middle of appending, every acknowledged item is there.

    Every second one was only written, not flushed: that outlives the process.
    """
    path = tmp_path / "o.db"
    said: dict[int, bytes] = {}
    for kill in range(20):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(0.01 + 0.002 * kill)
        os.kill(child.pid, signal.SIGKILL)
        lines = [first, *child.stdout.read().split(b"\n")[:-1]]
        child.wait()
        child.stdout.close()
        for line in lines:
            id_, item = line.split()
            assert int(id_) not in said
            said[int(id_)] = item
    async with Outbox(path) as outbox:
        found = dict(await outbox.pending("t", 10**6))
    assert len(said) >= 20
    assert {id_: found.get(id_) for id_ in said} == said
