"""Blocks: what is new, all of it, once, in one transaction; on every kind of database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from starai.core.clock import AnyioClock
from starai.core.errors import InternalFault, NotFound
from starai.core.randomness import SeededRandomness
from starai.ledger import Deposited, state_hash
from starai.ledger.blocks import Block, check_follows, signed_bytes
from starai.ledger.checkpoints import open_checkpoint
from starai.ledger.merkle_log import EMPTY_ROOT, tree_root
from starai.protocol.identity import Identity, KeyKind, verify
from starai.protocol.log import log_origin
from starai.protocol.records import leaf_hash
from starai.registry.log import proofs
from starai.registry.log.believing import JUMP_MS
from starai.registry.log.blocks import BlockTerms, Closer, close_block, last_block
from starai.registry.log.integrity import ChainCheck
from starai.registry.money.books import apply_event, books_hash
from starai.registry.storage import Connection, Store, open_store
from starai.testing.records import NETWORK, START_MS, record

pytestmark = pytest.mark.anyio

ACCOUNT = Identity.create(SeededRandomness(11), KeyKind.ACCOUNT)
ORIGIN = log_origin(NETWORK)


@pytest.fixture
def anyio_backend(virtual_time):
    return virtual_time


@pytest.fixture
async def store(database: Path | str):
    async with open_store(database, inline=True) as store:
        yield store


def leaf(number: int) -> bytes:
    return leaf_hash(record(number).canonical())


def add_tasks(connection: Connection, *numbers: int) -> None:
    for number in numbers:
        one = record(number)
        connection.execute(
            "INSERT INTO task (task_id, attempt, leaf, sides, state, block, node, dist, cust,"
            " model, in_tok, out_tok, price_id, charge, closed_ms, rec)"
            " VALUES (?, 0, ?, 1, 1, 0, ?, ?, 7, ?, 1, 1, 0, 0, 0, ?)",
            (one.task_id, leaf(number), one.node, one.distributor, one.model_root, one.canonical()),
        )


def deposit(connection: Connection, number: int, amount: int) -> None:
    event = number.to_bytes(16, "big")
    apply_event(connection, Deposited(event_id=event, at_ms=1, customer=5, amount=amount))


def close(connection: Connection, now_ms: int = START_MS) -> Block | None:
    return close_block(connection, NETWORK, ACCOUNT, now_ms)


def problems(connection: Connection) -> list[str]:
    return list(ChainCheck(connection, NETWORK, ACCOUNT.raw).problems())


def count(connection: Connection, table: str) -> int:
    ((found,),) = connection.execute(f"SELECT count(*) FROM {table}")
    return found


async def test_a_block_covers_what_is_new(store: Store) -> None:
    """Each block names the one before, adds the new rows to the log, and nothing new makes none."""

    def work(connection: Connection) -> None:
        assert close(connection) is None
        add_tasks(connection, 1, 2, 3)
        deposit(connection, 1, 500)
        first = close(connection)
        assert first is not None
        check_follows(first, None)
        assert (first.height, first.num_tasks, first.tree_size) == (0, 3, 3)
        assert first.log_root == tree_root(map(leaf, (1, 2, 3)))
        assert (first.last_transfer, first.total_debits) == (1, 500)
        assert first.books_hash == books_hash(connection) != state_hash(0)
        assert close(connection) is None
        add_tasks(connection, 4)
        second = close(connection, START_MS - 10_000)
        assert second is not None
        check_follows(second, first)
        assert second.closed_ms == first.closed_ms == START_MS
        assert second.log_root == tree_root(map(leaf, (1, 2, 3, 4)))
        assert (second.transfers_root, second.total_debits) == (EMPTY_ROOT, 500)
        assert last_block(connection) == second
        ((sig,),) = connection.execute("SELECT sig FROM block WHERE height = 1")
        verify(ACCOUNT.nkey, signed_bytes(second.hash()), sig, KeyKind.ACCOUNT)
        assert problems(connection) == []

    await store.write(work)


async def test_transfers_alone_make_a_block_and_no_checkpoint(store: Store) -> None:
    """One size of the log has one checkpoint, however many blocks there are with it."""

    def work(connection: Connection) -> None:
        deposit(connection, 1, 5)
        assert (close(connection) or 0).tree_size == 0
        add_tasks(connection, 1)
        close(connection)
        deposit(connection, 2, 6)
        last = close(connection)
        assert last is not None
        assert (last.height, last.tree_size, last.num_tasks, last.total_debits) == (2, 1, 0, 11)
        sizes = connection.execute("SELECT size, note FROM checkpoint ORDER BY size")
        found = [(size, open_checkpoint(note, ORIGIN, ACCOUNT.raw)) for size, note in sizes]
        assert [(size, one.size) for size, one in found] == [(0, 0), (1, 1)]
        assert found[0][1].root == EMPTY_ROOT
        assert found[1][1].extensions[0].startswith("block 1 ")
        assert problems(connection) == []

    await store.write(work)


class _Interrupted(Exception):
    """What happens in the middle of a block."""


class _Interrupting:
    """A connection that fails at its statement number ``left``."""

    def __init__(self, connection: Connection, left: int) -> None:
        self._connection = connection
        self._left = left

    def __getattr__(self, name: str) -> Any:
        if name in ("execute", "executemany"):
            self._left -= 1
            if self._left < 0:
                raise _Interrupted
        return getattr(self._connection, name)


async def test_a_crash_leaves_all_or_nothing(store: Store) -> None:
    """Interrupted at any statement, no block, tile or checkpoint is there; then it goes on."""

    def prepare(connection: Connection) -> None:
        add_tasks(connection, *range(1, 301))
        close(connection)
        add_tasks(connection, 301, 302)
        deposit(connection, 1, 5)

    def closed(connection: Connection) -> Block | None:
        return close(_Interrupting(connection, statement))

    await store.write(prepare)
    before = await store.read(_everything)
    for statement in range(100):  # noqa: B007 - read by `closed`
        try:
            block = await store.write(closed)
        except _Interrupted:
            assert await store.read(_everything) == before
            continue
        break
    assert 5 <= statement < 50
    assert block is not None
    assert (block.height, block.tree_size) == (1, 302)
    assert block.log_root == tree_root(leaf(number) for number in range(1, 303))
    assert await store.read(problems) == []


def _everything(connection: Connection) -> list[list[Any]]:
    return [
        list(connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2"))
        for table in ("block", "log_tile", "checkpoint")
    ]


@pytest.mark.parametrize("sizes", [[1] * 5, [255, 1, 1, 255, 1], [300, 2, 700], [1024], [513, 511]])
async def test_the_log_goes_on_from_where_it_was(tmp_path: Path, sizes: list[int]) -> None:
    """However records fall into blocks, the log is the same, and every record is proven."""
    async with open_store(tmp_path / "registry.db", inline=True) as store:
        start = 1
        for size in sizes:
            numbers = range(start, start + size)
            await store.write(lambda c, numbers=numbers: add_tasks(c, *numbers))
            block = await store.write(close)
            start += size
            assert block is not None
            assert block.log_root == tree_root(leaf(number) for number in range(1, start))
        assert await store.read(problems) == []
        for number in {1, start // 2, start - 1}:
            task_id = record(number).task_id.hex()
            proof = await store.read(lambda c, t=task_id: proofs.task_proof(c, task_id=t))
            assert [one.index for one in proof.records] == [number - 1]


async def test_two_checkpoints_of_one_size_are_refused(store: Store) -> None:
    """If another root of this size was ever signed, no block is closed, and nothing is left."""

    def prepare(connection: Connection) -> None:
        add_tasks(connection, 1)
        connection.execute("INSERT INTO checkpoint VALUES (1, ?, 'x')", (bytes(32),))

    await store.write(prepare)
    with pytest.raises(InternalFault, match="another checkpoint"):
        await store.write(close)
    assert await store.read(lambda c: (count(c, "block"), count(c, "log_tile"))) == (0, 0)


async def test_a_lost_tile_stops_the_log(store: Store) -> None:
    """A log that cannot go on from what it was does not go on at all."""

    def prepare(connection: Connection) -> None:
        add_tasks(connection, 1)
        close(connection)
        connection.execute("DELETE FROM log_tile")
        add_tasks(connection, 2)

    await store.write(prepare)
    with pytest.raises(InternalFault, match="gone"):
        await store.write(close)


async def test_rows_with_gaps_are_placed_by_order(store: Store) -> None:
    """Row numbers may have gaps, as a database makes them; a record's place is its rank."""

    def work(connection: Connection) -> None:
        add_tasks(connection, 1, 2, 3)
        connection.execute("DELETE FROM task WHERE seq = 2")
        close(connection)
        add_tasks(connection, 4)
        close(connection)
        places = [
            proofs.task_proof(connection, task_id=record(number).task_id.hex()).records[0].index
            for number in (1, 3, 4)
        ]
        assert places == [0, 1, 2]
        assert problems(connection) == []

    await store.write(work)


async def test_what_cannot_be_proven_says_why(store: Store) -> None:
    """A task that no block covers yet, an unknown one, and sizes without a checkpoint."""

    def work(connection: Connection) -> None:
        task_id = record(1).task_id.hex()
        with pytest.raises(NotFound, match="confirmed"):
            proofs.task_proof(connection, task_id=task_id)
        add_tasks(connection, 1)
        for ask in (lambda: proofs.task_proof(connection, task_id=task_id),):
            with pytest.raises(NotFound, match="no block"):
                ask()
        with pytest.raises(NotFound, match="no block"):
            proofs.checkpoint(connection)
        close(connection)
        add_tasks(connection, 2)
        with pytest.raises(NotFound, match="no block covers"):
            proofs.task_proof(connection, task_id=record(2).task_id.hex())
        with pytest.raises(NotFound, match="no checkpoint of 7"):
            proofs.consistency_proof(connection, old=1, size=7)

    await store.write(work)


@dataclass
class _JumpingClock:
    """A clock that can be set wrong while time goes on as ever."""

    ms: int = START_MS
    passed_s: float = 0.0

    def now_ms(self) -> int:
        return self.ms + int(self.passed_s * 1000)

    def monotonic_s(self) -> float:
        return self.passed_s


async def test_a_clock_that_jumps_ahead_closes_no_block(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody else says it is so late: what is new waits for the right time, or for a record."""
    clock = _JumpingClock()
    closer = Closer(store, NETWORK, ACCOUNT, clock, BlockTerms())
    await store.write(lambda c: add_tasks(c, 1))
    clock.ms += 10 * JUMP_MS
    with pytest.raises(InternalFault, match="jumped"):
        await closer.close_now()
    clock.ms = START_MS
    clock.passed_s += 2 * JUMP_MS / 1000
    block = await closer.close_now()
    assert block is not None
    assert block.closed_ms == START_MS + 2 * JUMP_MS

    clock.ms += 10 * JUMP_MS
    assert await closer.close_now() is None
    await store.write(lambda c: deposit(c, 1, 5))
    with pytest.raises(InternalFault, match="jumped"):
        await closer.close_now()
    await store.write(lambda c: add_tasks(c, 2))
    await store.write(
        lambda c: (
            c.execute("UPDATE task SET closed_ms = ? WHERE seq = 2", (clock.now_ms(),)) and None
        )
    )
    late = await closer.close_now()
    assert late is not None
    assert late.closed_ms == clock.now_ms()

    assert not caplog.records
    clock.ms = START_MS
    await store.write(lambda c: deposit(c, 2, 5))
    after = await closer.close_now()
    assert after is not None
    assert after.closed_ms == late.closed_ms
    assert [(one.message, one.levelname) for one in caplog.records] == [
        ("blocks_ahead_of_clock", "ERROR")
    ]
    assert await store.read(problems) == []


async def test_blocks_are_closed_in_time_and_early(store: Store) -> None:
    """After ten seconds, or sooner when enough is new; a fault is told and tried again."""
    closer = Closer(store, NETWORK, ACCOUNT, AnyioClock(), BlockTerms(every_s=10, num_tasks=100))

    async def height() -> int:
        return await store.read(lambda c: count(c, "block"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(closer.run)
        await store.write(lambda c: add_tasks(c, 1))
        closer.note(1)
        await anyio.sleep(9.5)
        assert await height() == 0
        await anyio.sleep(1)
        assert await height() == 1
        await store.write(lambda c: add_tasks(c, *range(2, 101)))
        closer.note(99)
        await anyio.sleep(0.1)
        assert await height() == 1
        closer.note(1)
        await anyio.sleep(0.1)
        assert await height() == 2
        (tiles,) = await store.read(lambda c: list(c.execute("SELECT * FROM log_tile")))
        await store.write(lambda c: c.execute("DELETE FROM log_tile") and None)
        await store.write(lambda c: add_tasks(c, 101))
        await anyio.sleep(30)
        assert await height() == 2
        await store.write(lambda c: c.execute("INSERT INTO log_tile VALUES (?, ?, ?)", tiles))
        await anyio.sleep(30)
        assert await height() == 3
        assert (await closer.close_now()) is None
        tasks.cancel_scope.cancel()
    assert await store.read(problems) == []
