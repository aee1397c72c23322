"""Exports: the same bytes every time, nobody's name, and books that another program accepts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from starai.core.errors import StoreFailed
from starai.protocol.identity import KeyKind, public_nkey
from starai.registry.days.beancount import beancount
from starai.registry.days.export import export_all
from starai.registry.days.settling import Settlement
from starai.registry.money.earnings import earnings, why
from starai.registry.schema import rows
from starai.registry.storage.base import Connection
from starai.registry.storage.sqlite import connect, migrate
from starai.settlement.rollup.base import BlockRef, Happening, What
from starai.settlement.watching import Cursor
from starai.testing.closing import ACCOUNT, FIRST_DAY_MS, PaidNetwork


@pytest.fixture
def connection() -> Connection:
    connection = connect(":memory:")
    migrate(connection)
    network = PaidNetwork(connection)
    network.hold(1, b"hold", 10_000, FIRST_DAY_MS)
    network.work(3, FIRST_DAY_MS)
    network.close_block(FIRST_DAY_MS)
    network.hold(2, b"another", 10_000, FIRST_DAY_MS + 1)
    network.close_block(FIRST_DAY_MS + 1)
    return connection


def files(folder: Path) -> dict[str, bytes]:
    """Every file of an export."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_an_export_is_the_same_bytes_again(connection: Connection, tmp_path: Path) -> None:
    """Exporting twice, or over an older export, gives the same files."""
    for name in ("one", "other", "one"):
        export_all(connection, tmp_path / name, ACCOUNT.raw)
    assert files(tmp_path / "one") == files(tmp_path / "other")
    assert "open/blocks.bin" in files(tmp_path / "one")


def test_no_question_reads_all_of_a_table_that_grows(
    connection: Connection, tmp_path: Path
) -> None:
    """What nodes, the chain and each day ask costs what it finds, not what there is."""
    ((task_id, node),) = rows(connection, "SELECT task_id, node FROM task LIMIT 1")
    asked: list[str] = []
    connection.exec_trace = lambda _cursor, sql, _bindings: asked.append(sql) is None
    export_all(connection, tmp_path, ACCOUNT.raw)
    asked = [sql for sql in asked if "task.event_id" in sql]
    assert asked
    terms = {"node": public_nkey(KeyKind.USER, node), "now_ms": FIRST_DAY_MS, "maturity_ms": 1}
    earnings(connection, **terms)
    assert why(connection, task_id=task_id.hex(), **terms)
    block = BlockRef(1, b"b" * 32, 1)
    reports = [
        Happening(what, block, bytes([n]) * 32, 0, b"a" * 20, units)
        for n, (what, units) in enumerate(
            [(What.DEPOSITED, 9), (What.WITHDRAWAL_REQUESTED, 9), (What.CLAIMED, 0)]
        )
    ]
    Settlement(connection, 1, b"v" * 20).book(reports, Cursor(1, b"b" * 32))
    connection.exec_trace = None
    grows = ("task", "payout", "customer", "block", "transfer", "withdrawal", "hold", "leaf")
    for sql in {one for one in asked if one.startswith("SELECT")}:
        for *_, plan in connection.execute(f"EXPLAIN QUERY PLAN {sql}", (0,) * sql.count("?")):
            assert not plan.startswith(tuple(f"SCAN {table}" for table in grows)), sql


def test_no_name_is_exported(connection: Connection, tmp_path: Path) -> None:
    """Customers' names and the hashes of keys stay in the database."""
    export_all(connection, tmp_path, ACCOUNT.raw, with_beancount=True)
    whole = b"".join(files(tmp_path).values())
    assert b"Customer 1" not in whole
    assert b"%32d" % 1 not in whole


def test_an_export_that_fails_leaves_the_old_one(connection: Connection, tmp_path: Path) -> None:
    """A folder gets its name when it is complete; what was there stays until then."""
    export_all(connection, tmp_path, ACCOUNT.raw)
    before = files(tmp_path)
    connection.execute("UPDATE transfer SET code = 'gift' WHERE seq = 3")
    with pytest.raises(StoreFailed, match="gift"):
        export_all(connection, tmp_path, ACCOUNT.raw)
    assert {name: data for name, data in files(tmp_path).items() if "open" not in name} == {
        name: data for name, data in before.items() if "open" not in name
    }
    assert not list(tmp_path.glob(".*"))


def test_beancount_has_every_transfer(connection: Connection) -> None:
    """Each transfer is two postings that cancel out, and every account is opened before."""
    text = "".join(beancount(connection))
    ((count,),) = connection.execute("SELECT COUNT(*) FROM transfer")
    postings = [line.split() for line in text.splitlines() if line.startswith("  ")]
    opened = {line.split()[2] for line in text.splitlines() if " open " in line}
    assert len(postings) == 2 * count
    assert {posting[0] for posting in postings} == opened
    assert sum(int(posting[1].replace(".", "")) for posting in postings) == 0


@pytest.mark.skipif(shutil.which("bean-check") is None, reason="no bean-check on PATH")
def test_bean_check_accepts_the_books_and_finds_a_unit(
    connection: Connection, tmp_path: Path
) -> None:
    """Beancount, which shares nothing with us, accepts the books, and not one nano-USD more.

    It is under the GPL, so it is no dependency: the test runs where somebody has installed it.
    """
    path = tmp_path / "books.beancount"
    path.write_text("".join(beancount(connection)))
    assert subprocess.run(["bean-check", path], check=False).returncode == 0
    text = path.read_text()
    place = text.rindex(" USD") - 1
    digit = "1" if text[place] != "1" else "2"
    path.write_text(text[:place] + digit + text[place + 1 :])
    assert subprocess.run(["bean-check", path], capture_output=True, check=False).returncode == 1
