"""Nothing acknowledged is lost: power cuts, failing disks, killed processes, copies; and controls.

A killed process proves nothing of power cuts, for the system keeps what it was given (ledger
design, section 0, point 5): hence a disk that forgets. The controls show that these tests can see
a loss: with less syncing there is one.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.from_thread
import apsw
import pytest
from tests.unit.registry.storage.failing_disk import FailingDisk

from starai.core.clock import SystemClock
from starai.core.errors import StoreFailed
from starai.core.randomness import SeededRandomness
from starai.protocol.registry import Confirm, Side
from starai.protocol.subjects import Role
from starai.registry.integrity import Integrity, check_integrity
from starai.registry.parties import Parties
from starai.registry.reconciling.confirmations import Confirmations
from starai.registry.schema import bind_network
from starai.registry.storage import Connection, Store, open_store
from starai.testing.records import BLOCK_MS, DISTRIBUTOR, NETWORK, NODES, confirm, record

ROLES = {DISTRIBUTOR.party: Role.DISTRIBUTOR, NODES[0].party: Role.NODE}
FULL, NORMAL, OFF = 2, 1, 0
_NAMES = itertools.count(1)


def _said(num: int) -> list[Confirm]:
    """Confirmations of both sides, two records each; numbered from 1 in the order of saying."""
    said = []
    for first in range(1, num + 1, 2):
        records = [record(first), record(first + 1)]
        said.append(confirm(Side.NODE, records, NODES[0]))
        said.append(confirm(Side.DISTRIBUTOR, records, DISTRIBUTOR))
    return said


SAID = _said(40)


class Trial(NamedTuple):
    """What came of one crash."""

    acknowledged: int
    lost: int
    damaged: bool


def confirmations_of(store: Store) -> Confirmations:
    """What hears confirmations, over ``store``."""
    return Confirmations(store, Parties(store, ROLES), NETWORK, BLOCK_MS, SystemClock())


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty registry of the network."""
    folder = tmp_path_factory.mktemp("template")

    async def make() -> None:
        async with open_store(folder / "registry.db", inline=True) as store:
            await store.write(lambda connection: bind_network(connection, NETWORK, BLOCK_MS))

    anyio.run(make)
    return folder


def _check(connection: Connection) -> Integrity:
    return check_integrity(connection, DISTRIBUTOR.raw)  # nothing here closes blocks


def _confirmed(connection: Connection) -> set[bytes]:
    return {root for (root,) in connection.execute("SELECT root FROM confirm")}


async def _until_the_disk_fails(
    path: Path, disk: FailingDisk, synchronous: int, crash_after: int
) -> list[Confirm]:
    """Say things until the disk fails; what was acknowledged."""
    acknowledged = []
    async with open_store(path, inline=True, vfs=disk.name) as store:
        writer = store._writer  # only a test asks for less than durability
        writer.pragma("synchronous", synchronous)  # type: ignore[attr-defined]
        writer.wal_autocheckpoint(20)  # type: ignore[attr-defined]
        disk.crash_at = disk.operations + crash_after
        heard = confirmations_of(store)
        try:
            for one in SAID:
                await heard.handle(one.signer, one)
                acknowledged.append(one)
        except StoreFailed:
            with pytest.raises(StoreFailed):  # and never again, whatever the disk does now
                await heard.handle(SAID[-1].signer, SAID[-1])
        disk.silent = True
    return acknowledged


async def trial(
    template: Path, folder: Path, seed: int, synchronous: int = FULL, fault: str = ""
) -> Trial:
    """One life of a registry that ends in a power cut."""
    before, after = folder / "before", folder / "after"
    for one in (before, after):
        shutil.rmtree(one, ignore_errors=True)
    shutil.copytree(template, before)
    after.mkdir()
    disk = FailingDisk(f"failing-{next(_NAMES)}", seed)
    disk.fault = fault
    try:
        crash_after = 1 + int(disk.chance.fraction() * 400)
        said = await _until_the_disk_fails(before / "registry.db", disk, synchronous, crash_after)
        disk.crash(after)
    finally:
        disk.unregister()
    try:
        async with open_store(after / "registry.db", inline=True) as store:
            kept = await store.read(_confirmed)
            problems = (await store.read(_check)).problems
            lost = sum(one.root not in kept for one in said)
            if not problems:  # and it serves on
                await confirmations_of(store).handle(SAID[-1].signer, SAID[-1])
    except StoreFailed:
        return Trial(len(said), len(said), damaged=True)
    return Trial(len(said), lost, damaged=bool(problems))


async def trials(
    template: Path, folder: Path, num: int, synchronous: int = FULL, fault: str = ""
) -> list[Trial]:
    """``num`` lives; each seed another crash."""
    return [await trial(template, folder, seed, synchronous, fault) for seed in range(num)]


@pytest.mark.anyio
@pytest.mark.parametrize("num", [40, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", ["", "full", "sync", "readonly"])
async def test_a_power_cut_loses_nothing_acknowledged(
    template: Path, tmp_path: Path, num: int, fault: str
) -> None:
    """Dropped, torn and reordered writes, alone or after a disk that is full or fails to sync."""
    done = await trials(template, tmp_path, num if not fault else num // 4, fault=fault)
    assert sum(one.lost for one in done) == 0
    assert not any(one.damaged for one in done)
    assert len({one.acknowledged for one in done}) > 5  # they ended at many different moments
    assert sum(one.acknowledged for one in done) > 5 * len(done)


@pytest.mark.anyio
@pytest.mark.parametrize("num", [40, pytest.param(500, marks=pytest.mark.slow)])
async def test_control_less_syncing_is_seen_to_lose(
    template: Path, tmp_path: Path, num: int
) -> None:
    """The same crashes with NORMAL forget acknowledged records, and with OFF ruin the file too."""
    normal = await trials(template, tmp_path, num, NORMAL)
    assert sum(bool(one.lost) for one in normal) > num / 10
    assert not any(one.damaged for one in normal)
    off = await trials(template, tmp_path, num, OFF)
    assert sum(bool(one.lost) for one in off) > num / 10
    assert any(one.damaged for one in off)


_WRITER = """
import sys, anyio
from starai.protocol.registry import Side
from starai.registry.storage import open_store
from starai.registry.schema import bind_network
from starai.testing.records import BLOCK_MS, NETWORK, NODES, confirm, record
from tests.unit.registry.storage.test_durability import confirmations_of

async def say(heard, number):
    one = confirm(Side.NODE, [record(number)], NODES[0])
    await heard.handle(one.signer, one)
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()

async def main():
    async with open_store(sys.argv[1]) as store:
        await store.write(lambda connection: bind_network(connection, NETWORK, BLOCK_MS))
        heard, number = confirmations_of(store), int(sys.argv[2])
        while True:
            async with anyio.create_task_group() as tasks:
                for offset in range(8):
                    tasks.start_soon(say, heard, number + offset)
            number += 8

anyio.run(main)
"""


def kill(database: Path | str, run: int, least: int) -> set[int]:
    """Have a process write, kill it after ``least`` acknowledgements; all that it gave."""
    child = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(database), str(1 + run * 100_000)],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    with child.stdout:
        lines = [child.stdout.readline() for _ in range(least)]
        os.kill(child.pid, signal.SIGKILL)
        lines += child.stdout.read().split(b"\n")
    child.wait()
    return {int(line) for line in lines if line.strip()}


def _tasks(connection: Connection) -> set[int]:
    return {int.from_bytes(task) for (task,) in connection.execute("SELECT task_id FROM task")}


@pytest.mark.anyio
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
async def test_a_killed_process_loses_nothing_acknowledged(
    database: Path | str, kills: int
) -> None:
    """A process killed -9 while it writes, again and again: every acknowledged record is there."""
    acknowledged: set[int] = set()
    for run in range(kills):
        acknowledged |= kill(database, run, 10 + 37 * run % 300)
    async with open_store(database) as store:
        assert acknowledged <= await store.read(_tasks)
        assert (await store.read(_check)).problems == ()
    assert len(acknowledged) > 20 * kills


@pytest.mark.anyio
async def test_a_copy_taken_while_writing_is_whole(tmp_path: Path) -> None:
    """SQLite's online backup, while confirmations stream in: sound, with all that was before it."""
    path, copy = tmp_path / "registry.db", tmp_path / "copy.db"

    def back_up() -> None:
        source, target = apsw.Connection(str(path)), apsw.Connection(str(copy))
        with target.backup("main", source, "main") as backup:
            while not backup.done:
                backup.step(8)
                anyio.from_thread.run(anyio.sleep, 0.001)
        target.close()
        source.close()

    async with open_store(path) as store:
        await store.write(lambda connection: bind_network(connection, NETWORK, BLOCK_MS))
        heard = confirmations_of(store)
        for one in SAID[:20]:
            await heard.handle(one.signer, one)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, back_up)
            for one in SAID[20:]:
                await heard.handle(one.signer, one)
    async with open_store(copy) as store:
        assert {one.root for one in SAID[:20]} <= await store.read(_confirmed)
        assert (await store.read(_check)).problems == ()


@pytest.mark.anyio
async def test_a_corrupt_page_is_told_not_served(template: Path, tmp_path: Path) -> None:
    """Noise in the middle of the file: reading it fails or the check reports it, nothing lies."""
    path = tmp_path / "registry.db"
    shutil.copy(template / "registry.db", path)
    async with open_store(path, inline=True) as store:
        for one in SAID:
            await confirmations_of(store).handle(one.signer, one)
        ((page,),) = await store.read(
            lambda c: list(c.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'task'"))
        )
    data = bytearray(path.read_bytes())
    start = (page - 1) * 4096
    data[start : start + 4096] = SeededRandomness(1).take(4096)
    path.write_bytes(data)
    async with open_store(path, inline=True) as store:
        with pytest.raises(StoreFailed):
            await store.read(lambda c: list(c.execute("SELECT rec FROM task")))
        assert (await store.read(_check)).problems


def _read_only_folder(folder: Path) -> list[str]:
    """What to put before a command so that ``folder`` is read-only for it alone."""
    script = f'mount --bind "{folder}" "{folder}" && mount -o remount,ro,bind "{folder}" && "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="only Linux has unshare")
def test_a_read_only_file_system_is_told_at_the_start(template: Path, tmp_path: Path) -> None:
    """A registry on a read-only file system does not start, and says why."""
    folder = tmp_path / "home"
    shutil.copytree(template, folder)
    before = _read_only_folder(folder)
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount")
    command = [*before, sys.executable, "-c", _WRITER, str(folder / "registry.db"), "1"]
    child = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert child.returncode != 0
    assert child.stdout == b""
    assert b"StoreFailed: the registry cannot open" in child.stderr
