"""The store: group commit, nothing acknowledged is lost, a failing database is fatal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import apsw
import pytest

from starai.core.errors import (
    ConfigurationRefused,
    InternalFault,
    InvalidRequest,
    StarAIError,
    StoreFailed,
)
from starai.registry.schema import MIGRATIONS, integer
from starai.registry.storage import Connection, Store, open_store
from starai.registry.storage.sqlite import APPLICATION_ID

_SECOND = """
import sys, anyio
from starai.registry.storage import open_store

async def main():
    async with open_store(sys.argv[1]):
        pass

anyio.run(main)
"""


def _insert(name: str):
    def work(connection: Connection) -> str:
        connection.execute("INSERT INTO party VALUES (?, 'node', '', NULL, 0, NULL)", (name,))
        return name

    return work


def _names(connection: Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT party FROM party")}


@pytest.fixture(params=[False, True], ids=["threaded", "inline"])
async def store(request: pytest.FixtureRequest, database: Path | str):
    async with open_store(database, inline=request.param) as store:
        yield store


@pytest.mark.anyio
async def test_write_then_read(store: Store) -> None:
    """What a write returned from is what a read sees."""
    assert await store.write(_insert("a")) == "a"
    assert await store.read(_names) == {"a"}


@pytest.mark.anyio
async def test_failed_work_undoes_itself_alone(store: Store) -> None:
    """Work that raises is undone and raised in its caller; its neighbours are committed."""

    def half(connection: Connection) -> None:
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


def _insert_each(connection: Connection, names: Sequence[str]) -> list[str | StarAIError]:
    """Refuses some, is broken by others, and tells with how many each was written."""
    found: list[str | StarAIError] = []
    for name in names:
        if name == "refused":
            found.append(InvalidRequest("no"))
        else:
            _insert(name)(connection)
            found.append(f"{name} of {len(names)}")
    return found


@pytest.mark.parametrize(("names", "shared"), [("a refused b", 3), ("a refused there b", 1)])
@pytest.mark.anyio
async def test_what_waits_for_one_work_shares_it(
    database: Path | str, names: str, shared: int
) -> None:
    """Items that wait at the same time are written together, or each alone if that fails."""
    found = {}

    async def write(store: Store, name: str) -> None:
        try:
            found[name] = await store.write_each(_insert_each, name)
        except StarAIError as error:
            found[name] = type(error)

    async with open_store(database) as store:
        await store.write(_insert("there"))
        held, release = threading.Event(), threading.Event()

        def hold(_: Connection) -> None:
            held.set()
            release.wait(10)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.write, hold)
            await anyio.to_thread.run_sync(held.wait)
            for name in names.split():
                tasks.start_soon(write, store, name)
            await anyio.wait_all_tasks_blocked()
            release.set()
        assert found.pop("there", InternalFault) is InternalFault
        assert found == {"a": f"a of {shared}", "refused": InvalidRequest, "b": f"b of {shared}"}
        assert await store.read(_names) == {"there", "a", "b"}


@pytest.mark.anyio
async def test_what_breaks_shared_work_fails_alone(store: Store) -> None:
    """Work that raises for all of its items is done again for each, and only one's fault counts."""
    await store.write(_insert("there"))
    found = {}

    async def write(name: str) -> None:
        try:
            await store.write_each(_insert_each, name)
        except InternalFault as error:
            found[name] = error

    async with anyio.create_task_group() as tasks:
        for name in ("a", "there", "b", "c"):
            tasks.start_soon(write, name)
    assert list(found) == ["there"]
    assert await store.read(_names) == {"there", "a", "b", "c"}


@pytest.mark.anyio
async def test_what_a_connection_can_do_is_the_same(store: Store) -> None:
    """Placeholders, many rows at once, counts of changes, sums and bytes, whatever the database."""

    def write(connection: Connection) -> list[int]:
        insert = "INSERT INTO account VALUES ('node.paid', ?, ?, 0)"
        connection.executemany(insert, [(bytes([number]), number) for number in range(200)])
        counts = []
        for sql, bindings in (
            ("UPDATE account SET credits = ?2 WHERE debits < ?1 AND credits < ?2", (20, 7)),
            ("DELETE FROM account WHERE debits = ?", (5,)),
            (f"{insert} ON CONFLICT (kind, owner) DO NOTHING", (b"\1", 9)),
        ):
            list(connection.execute(sql, bindings))
            counts.append(connection.changes())
        ((made,),) = connection.execute(
            "INSERT INTO customer (name, created_ms, credit_nano) VALUES (?, 0, 0) RETURNING id",
            ("it's 100 % sure: \N{SNOWMAN}",),
        )
        return [*counts, made]

    def read(connection: Connection) -> object:
        rows = list(
            connection.execute(
                "SELECT owner, debits, credits FROM account WHERE debits < ? ORDER BY debits", (3,)
            )
        )
        ((total,),) = connection.execute("SELECT sum(debits) FROM account")
        (name,) = next(connection.execute("SELECT name FROM customer"))
        return (
            rows,
            total,
            type(total),
            name,
            list(connection.execute("SELECT 1 WHERE ? = 2", (1,))),
        )

    assert await store.write(write) == [20, 1, 0, 1]
    rows = [(bytes([number]), number, 7) for number in range(3)]
    expected = (rows, sum(range(200)) - 5, int, "it's 100 % sure: \N{SNOWMAN}", [])
    assert await store.read(read) == expected


@pytest.mark.anyio
async def test_what_no_column_holds_fails_that_work_alone(store: Store) -> None:
    """Text or too large a number in an integer column, or unknown SQL, is that work's own fault."""
    for bindings in (("x",), (1 << 63,), (b"5",)):
        with pytest.raises((InternalFault, OverflowError)):
            await store.write(
                lambda connection, bindings=bindings: connection.execute(
                    "INSERT INTO account VALUES ('fee', '', ?, 0)", bindings
                )
            )
    with pytest.raises(InternalFault):
        await store.write(lambda connection: connection.execute("SELECT nonsense FROM nowhere"))
    with pytest.raises(InternalFault):
        await store.read(lambda connection: list(connection.execute("SELECT nonsense")))
    await store.write(_insert("well"))


@pytest.mark.anyio
async def test_a_long_read_sees_one_state(database: Path | str) -> None:
    """Thousands of rows, read slowly while others write: exactly those of when it began."""
    many = 5000
    async with open_store(database) as store:
        insert = "INSERT INTO party VALUES (?, 'node', '', NULL, 0, NULL)"
        await store.write(lambda c: c.executemany(insert, [(str(n),) for n in range(many)]))
        begun = anyio.Event()

        def read(connection: Connection) -> int:
            rows = connection.execute("SELECT party FROM party ORDER BY party")
            next(rows)
            anyio.from_thread.run_sync(begun.set)
            anyio.from_thread.run(store.write, _insert("later"))
            return 1 + sum(1 for _ in rows)

        assert await store.read(read) == many
        assert begun.is_set()
        assert len(await store.read(_names)) == many + 1


@pytest.mark.anyio
async def test_many_writes_share_a_commit(database: Path | str) -> None:
    """A hundred waiting writes cost a few commits, not a hundred."""
    async with open_store(database) as store:
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(store.write, _insert(str(number)))
        assert store.num_commits <= 10
        assert len(await store.read(_names)) == 100


@pytest.mark.anyio
async def test_closing_commits_what_was_accepted(database: Path | str) -> None:
    """A cancelled wait does not cancel its write: what was accepted is there after closing."""
    async with open_store(database) as store, anyio.create_task_group() as tasks:
        tasks.start_soon(store.write, _insert("a"))
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    with pytest.raises(StoreFailed):
        await store.write(_insert("b"))
    with pytest.raises(StoreFailed), anyio.fail_after(5):
        await store.beside(int)  # whose thread has ended
    async with open_store(database) as store:
        assert await store.read(_names) == {"a"}


@pytest.mark.anyio
async def test_second_writer_is_refused(database: Path | str) -> None:
    """What is open is refused to a second store and to another process, in plain words."""
    async with open_store(database) as store:
        with pytest.raises(ConfigurationRefused, match="another process writes"):
            async with open_store(database):
                pass
        command = [sys.executable, "-c", _SECOND, str(database)]
        child = await anyio.run_process(command, check=False)
        assert child.returncode != 0
        assert b"another process writes" in child.stderr
        await store.write(_insert("a"))
    async with open_store(database):
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
async def test_foreign_and_newer_schemas_are_refused(postgres_url: str) -> None:
    """In PostgreSQL too: another program's tables, a newer version, a schema that is not there."""
    import psycopg  # noqa: PLC0415 - an extra

    async def refused(url: str, match: str) -> None:
        with pytest.raises(ConfigurationRefused, match=match):
            async with open_store(url):
                pass

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE theirs (a int)")
        await refused(postgres_url, "another program's tables")
        connection.execute("DROP TABLE theirs")
        async with open_store(postgres_url):
            pass
        connection.execute("UPDATE starai_registry SET version = version + 1")
        await refused(postgres_url, "newer StarAI")
        connection.execute("UPDATE starai_registry SET version = version - 1")
        async with open_store(postgres_url):
            pass
    await refused(f"{postgres_url}_absent", "no schema that exists")
    with pytest.raises(StoreFailed, match="cannot open its database"):
        async with open_store("postgresql:///postgres?host=/nowhere"):
            pass


@pytest.mark.anyio
async def test_a_lost_connection_is_fatal(postgres_url: str) -> None:
    """When the server ends the writer's session, that write and all later ones say so."""
    async with open_store(postgres_url) as store:
        await store.write(_insert("a"))
        end = "SELECT pg_terminate_backend(pg_backend_pid())"
        with pytest.raises(StoreFailed):
            await store.write(lambda connection: connection.execute(end))
        with pytest.raises(StoreFailed, match="restart"):
            await store.write(_insert("b"))
    async with open_store(postgres_url) as store:
        assert await store.read(_names) == {"a"}


def test_integers_are_checked_before_a_database_sees_them() -> None:
    """True, strings, floats, negative and too large numbers are refused by name."""
    assert integer(7, "n") == 7
    for wrong in (True, "7", 7.0, None, -1, 1 << 63):
        with pytest.raises(InvalidRequest, match="n must be an integer"):
            integer(wrong, "n")
