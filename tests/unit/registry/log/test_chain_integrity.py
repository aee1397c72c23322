"""The check of the chain finds every edit by hand, wherever it is made."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.registry.log.test_blocks import ACCOUNT, add_tasks, close, deposit, problems

from starai.core.randomness import SeededRandomness
from starai.ledger.checkpoints import Note, cosign
from starai.protocol.identity import Identity, KeyKind
from starai.protocol.log import witness_name
from starai.protocol.subjects import Role
from starai.registry.log.integrity import ChainCheck
from starai.registry.log.witnesses import note_of
from starai.registry.storage.sqlite import SqliteSession, connect, migrate
from starai.testing.records import NETWORK, NODES

OTHER = Identity.create(SeededRandomness(12), KeyKind.ACCOUNT)


@pytest.fixture
def chain() -> Iterator[SqliteSession]:
    """Four blocks: 300 records, two deposits, 20 records more, nothing but a deposit."""
    session = connect(":memory:")
    migrate(session)
    add_tasks(session, *range(1, 301))
    close(session)
    deposit(session, 1, 700)
    deposit(session, 2, 800)
    close(session)
    add_tasks(session, *range(301, 321))
    close(session)
    deposit(session, 3, 900)
    close(session)
    for node in NODES[:2]:
        name = witness_name(NETWORK, Role.NODE, node.party)
        text = Note.parse(note_of(session, 320) or "").text
        line = cosign(text, name, node.raw, 1_800_000_000, node.sign)
        session.execute("INSERT INTO witness VALUES (320, ?, ?, 5)", (name, line))
    yield session
    session.close()


def test_a_sound_chain_is_sound(chain: SqliteSession) -> None:
    """What was written honestly has no problems, and every block was looked at."""
    check = ChainCheck(chain, NETWORK, ACCOUNT.raw)
    assert list(check.problems()) == []
    assert check.num_blocks == 4


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE block SET n = n + 1 WHERE height = 2",
        "UPDATE block SET closed_ms = closed_ms + 1 WHERE height = 2",
        "UPDATE block SET last_task = last_task - 1 WHERE height = 2",
        "UPDATE block SET total_debits = '1' WHERE height = 3",
        "UPDATE block SET books_hash = zeroblob(32) WHERE height = 3",
        "UPDATE block SET header = zeroblob(320) WHERE height = 1",
        "UPDATE block SET header = (SELECT header FROM block WHERE height = 0) WHERE height = 1",
        "UPDATE block SET hash = zeroblob(32) WHERE height = 1",
        "UPDATE block SET sig = zeroblob(64) WHERE height = 1",
        "UPDATE block SET sig = zeroblob(3) WHERE height = 1",
        "DELETE FROM block WHERE height = 0",
        "DELETE FROM block WHERE height = 1",
        "UPDATE task SET leaf = zeroblob(32) WHERE seq = 77",
        "UPDATE task SET leaf = zeroblob(31) WHERE seq = 77",
        "UPDATE task SET leaf = (SELECT leaf FROM task WHERE seq = 78) WHERE seq = 77",
        "DELETE FROM task WHERE seq = 77",
        "UPDATE task SET seq = 1000 WHERE seq = 77",
        "UPDATE transfer SET amount = amount + 1 WHERE seq = 2",
        "UPDATE transfer SET ref = x'01' WHERE seq = 2",
        "UPDATE transfer SET code = 'odd' WHERE seq = 2",
        "DELETE FROM transfer WHERE seq = 2",
        "UPDATE log_tile SET hashes = zeroblob(length(hashes)) WHERE level = 1",
        "UPDATE log_tile SET hashes = substr(hashes, 1, 32) WHERE position = 1",
        "DELETE FROM log_tile WHERE level = 1",
        "INSERT INTO log_tile VALUES (5, 5, zeroblob(32))",
        "UPDATE checkpoint SET root = zeroblob(32) WHERE size = 300",
        "UPDATE checkpoint SET size = 299 WHERE size = 300",
        "UPDATE checkpoint SET note = 'odd' WHERE size = 300",
        "UPDATE checkpoint SET note = (SELECT max(note) FROM checkpoint) WHERE size = 300",
        "UPDATE checkpoint SET note = (SELECT min(note) FROM checkpoint) WHERE size = 320",
        "DELETE FROM checkpoint WHERE size = 320",
        "UPDATE witness SET size = 300",
        "UPDATE witness SET size = 301",
        "UPDATE witness SET line = 'odd'",
        "UPDATE witness SET witness = 'odd' WHERE line = (SELECT max(line) FROM witness)",
        "UPDATE witness SET line = (SELECT max(line) FROM witness)",
    ],
)
def test_an_edit_by_hand_is_found(chain: SqliteSession, change: str) -> None:
    """Whoever changes a row of a block, of what it covers, or of the log, is found out."""
    chain.execute(change)
    assert chain.changes()
    assert problems(chain)


def test_a_forged_chain_is_found(chain: SqliteSession) -> None:
    """A chain that is whole in itself, but signed by another key, or another network's."""
    assert list(ChainCheck(chain, NETWORK, OTHER.raw).problems())
    assert list(ChainCheck(chain, "other", ACCOUNT.raw).problems())


def test_what_is_in_no_block_yet_is_no_problem(chain: SqliteSession) -> None:
    """New rows wait for the next block."""
    add_tasks(chain, 400)
    deposit(chain, 9, 1)
    assert problems(chain) == []
