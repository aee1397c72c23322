"""The store: group commit, nothing acknowledged is lost, a failing disk is fatal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import apsw
import pytest

from starai.core.errors import ConfigurationRefused, InternalFault, InvalidRequest, StoreFailed
from starai.registry.schema import APPLICATION_ID, MIGRATIONS, integer
from starai.registry.store import Store, open_store

_CHILD = """
import sys, anyio
from pathlib import Path
from starai.registry.store import open_store

async def write(store, number):
    def work(connection):
        connection.execute(
            "INSERT INTO party VALUES (?, 'node', '', NULL, 0, NULL)", (str(number),)
        )
    await store.write(work)
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()

async def main():
    async with open_store(Path(sys.argv[1])) as store:
        number = int(sys.argv[2])
        while True:
            async with anyio.create_task_group() as tasks:
                for offset in range(8):
                    tasks.start_soon(write, store, number + offset)
            number += 8

anyio.run(main)
"""


def _insert(name: str):
    def work(connection: apsw.Connection) -> str:
        connection.execute("INSERT INTO party VALUES (?, 'node', '', NULL, 0, NULL)", (name,))
        return name

    return work


def _names(connection: apsw.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT party FROM party")}


@pytest.fixture(params=[False, True], ids=["threaded", "inline"])
async def store(request: pytest.FixtureRequest, tmp_path: Path):
    async with open_store(tmp_path / "registry.db", inline=request.param) as store:
        yield store


@pytest.mark.anyio
async def test_write_then_read(store: Store) -> None:
    """What a write returned from is what a read sees."""
    assert await store.write(_insert("a")) == "a"
    assert await store.read(_names) == {"a"}


@pytest.mark.anyio
async def test_failed_work_undoes_itself_alone(store: Store) -> None:
    """Work that raises is undone and raised in its caller; its neighbours are committed."""

    def half(connection: apsw.Connection) -> None:
        _insert("half")(connection)
        raise InvalidRequest("no")

    async def refused(work, error) -> None:
        with pytest.raises(error):
            await store.write(work)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.write, _insert("a"))
        tasks.start_soon(refused, half, InvalidRequest)
        tasks.start_soon(store.write, _insert("b"))
    await refused(_insert("a"), InternalFault)
    await store.write(_insert("c"))
    assert await store.read(_names) == {"a", "b", "c"}


@pytest.mark.anyio
async def test_many_writes_share_a_commit(tmp_path: Path) -> None:
    """A hundred waiting writes cost a few commits, not a hundred."""
    async with open_store(tmp_path / "registry.db") as store:
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(store.write, _insert(str(number)))
        assert store.num_commits <= 10
        assert len(await store.read(_names)) == 100


@pytest.mark.anyio
async def test_closing_commits_what_was_accepted(tmp_path: Path) -> None:
    """A cancelled wait does not cancel its write: what was accepted is there after closing."""
    path = tmp_path / "registry.db"
    async with open_store(path) as store, anyio.create_task_group() as tasks:
        tasks.start_soon(store.write, _insert("a"))
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    with pytest.raises(StoreFailed):
        await store.write(_insert("b"))
    async with open_store(path) as store:
        assert await store.read(_names) == {"a"}


@pytest.mark.anyio
async def test_second_writer_is_refused(tmp_path: Path) -> None:
    """A file that is open is refused to a second store and to another process, in plain words."""
    path = tmp_path / "registry.db"
    async with open_store(path) as store:
        with pytest.raises(ConfigurationRefused, match="another process writes"):
            async with open_store(path):
                pass
        child = await anyio.run_process([sys.executable, "-c", _CHILD, str(path), "0"], check=False)
        assert child.returncode != 0
        assert b"another process writes" in child.stderr
        await store.write(_insert("a"))
    async with open_store(path):
        pass


@pytest.mark.anyio
async def test_foreign_and_newer_files_are_refused_untouched(tmp_path: Path) -> None:
    """Another program's database, a newer version's and plain garbage are not written to."""
    foreign, newer, garbage = (tmp_path / name for name in ("foreign.db", "newer.db", "garbage.db"))
    connection = apsw.Connection(str(foreign))
    connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    connection = apsw.Connection(str(newer))
    connection.execute("CREATE TABLE ours (a)")
    connection.pragma("application_id", APPLICATION_ID)
    connection.pragma("user_version", len(MIGRATIONS) + 1)
    connection.close()
    garbage.write_bytes(b"not a database at all" * 100)
    for path, error in (
        (foreign, ConfigurationRefused),
        (newer, ConfigurationRefused),
        (garbage, StoreFailed),
    ):
        before = path.read_bytes()
        with pytest.raises(error):
            async with open_store(path):
                pass
        assert path.read_bytes() == before


@pytest.mark.anyio
@pytest.mark.parametrize("inline", [False, True])
async def test_full_disk_is_fatal_and_loses_nothing_acknowledged(
    tmp_path: Path, inline: bool
) -> None:
    """When the file cannot grow, that write and all later ones raise StoreFailed."""
    path = tmp_path / "registry.db"
    acknowledged: set[str] = set()
    async with open_store(path, inline=inline) as store:

        def shrink(connection: apsw.Connection) -> None:
            connection.pragma("max_page_count", connection.pragma("page_count") + 2)

        await store.write(shrink)

        async def fill() -> None:
            for number in range(10_000):
                acknowledged.add(await store.write(_insert(f"{number:0200d}")))

        with pytest.raises(StoreFailed, match="full"):
            await fill()
        with pytest.raises(StoreFailed, match="make room"):
            await store.write(_insert("later"))
        with pytest.raises(StoreFailed):
            await store.read(_names)
    async with open_store(path) as store:
        assert await store.read(_names) == acknowledged


class _Disk(apsw.VFS):
    """A disk whose sync fails on demand."""

    def __init__(self) -> None:
        super().__init__("failing", "")
        self.broken = False

    def xOpen(self, name, flags):  # noqa: N802 - SQLite's name
        return _File(self, name, flags)


class _File(apsw.VFSFile):
    def __init__(self, disk: _Disk, name, flags) -> None:
        super().__init__("", name, flags)
        self._disk = disk

    def xSync(self, flags):  # noqa: N802 - SQLite's name
        if self._disk.broken:
            raise apsw.IOError("sync failed")
        return super().xSync(flags)


@pytest.mark.anyio
async def test_failed_sync_is_fatal(tmp_path: Path) -> None:
    """One failed fsync ends the store, even if the disk seems well again: no silent retry."""
    disk = _Disk()
    try:
        async with open_store(tmp_path / "registry.db", inline=True, vfs="failing") as store:
            await store.write(_insert("a"))
            disk.broken = True
            with pytest.raises(StoreFailed):
                await store.write(_insert("b"))
            disk.broken = False
            with pytest.raises(StoreFailed, match="disk failed"):
                await store.write(_insert("c"))
    finally:
        disk.unregister()


def test_integers_are_checked_before_sqlite_sees_them() -> None:
    """True, strings, floats, negative and too large numbers are refused by name."""
    assert integer(7, "n") == 7
    for wrong in (True, "7", 7.0, None, -1, 1 << 63):
        with pytest.raises(InvalidRequest, match="n must be an integer"):
            integer(wrong, "n")


def test_killed_process_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """Twenty kills -9 in the middle of writing: every acknowledged write is there afterwards."""
    path = tmp_path / "registry.db"
    acknowledged: set[str] = set()
    for kill in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(path), str(kill * 1_000_000)],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        with child.stdout:
            for _ in range(10 + 7 * kill):
                acknowledged.add(child.stdout.readline().decode().strip())
            os.kill(child.pid, signal.SIGKILL)
            rest = child.stdout.read().decode()
        child.wait()
        acknowledged.update(line for line in rest.split("\n")[:-1])
    connection = apsw.Connection(str(path))
    assert acknowledged <= _names(connection)
    assert len(acknowledged) > 1000
    assert connection.pragma("integrity_check") == "ok"
    connection.close()
