"""The integrity check finds what a failing disk or a helpful hand changed in the file."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
import pytest

from starai.ledger.reconciling import Standing
from starai.protocol.records import leaf_hash
from starai.protocol.registry import Side
from starai.registry.integrity import PROBLEMS_MAX, check_integrity
from starai.registry.reconciling.checking import check_confirm
from starai.registry.reconciling.disputes import rejudge_old
from starai.registry.reconciling.tasks import apply
from starai.registry.reconciling.words import Said
from starai.registry.schema import bind_network
from starai.registry.storage.sqlite import SqliteSession, migrate
from starai.testing.records import (
    BLOCK_MS,
    DISTRIBUTOR,
    NETWORK,
    NODES,
    START_MS,
    confirm,
    record,
)

_RECORDS = [record(number, closed_ms=START_MS + 800 * number) for number in range(1, 9)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed file with three blocks, most of it matched."""
    path = tmp_path / "registry.db"
    connection = SqliteSession(str(path))
    migrate(connection)
    connection.execute("BEGIN")
    bind_network(connection, NETWORK, BLOCK_MS)
    for side in Side:
        for block in {one.block(BLOCK_MS) for one in _RECORDS}:
            mine = [one for one in _RECORDS[side - 1 :] if one.block(BLOCK_MS) == block]
            said = confirm(side, mine, NODES[0] if side is Side.NODE else DISTRIBUTOR)
            apply(connection, [Said(said, check_confirm(said, NETWORK, BLOCK_MS), START_MS)])
    connection.execute("COMMIT")
    connection.close()
    return path


def _problems(path: Path) -> tuple[str, ...]:
    connection = SqliteSession(str(path))
    found = check_integrity(connection, bytes(32))
    connection.close()
    return found.problems


def test_a_sound_file_is_sound(path: Path) -> None:
    """What was written honestly has no problems, and everything was looked at."""
    connection = SqliteSession(str(path))
    found = check_integrity(connection, bytes(32))
    connection.close()
    assert (found.records, found.problems) == (len(_RECORDS), ())
    assert found.confirms > 4


def _pieces() -> dict[str, bytes]:
    block = _RECORDS[2].block(BLOCK_MS)
    said = confirm(Side.NODE, [one for one in _RECORDS if one.block(BLOCK_MS) == block], NODES[0])
    canonical = _RECORDS[4].canonical()
    return {
        "record": canonical,
        "leaf": leaf_hash(canonical),
        "root": said.root,
        "signature": said.signature,
    }


@pytest.mark.parametrize("name", ["record", "leaf", "root", "signature"])
def test_one_changed_byte_is_found(path: Path, name: str) -> None:
    """One bit, in any byte of a record, leaf, root or signature, in every place it is stored."""
    piece = _pieces()[name]
    sound = path.read_bytes()
    places = [at for at in range(len(sound)) if sound.startswith(piece, at)]
    assert places
    for place in places:
        for offset in range(0, len(piece), 7):
            broken = bytearray(sound)
            broken[place + offset] ^= 0x10
            path.write_bytes(broken)
            assert _problems(path), f"byte {offset} of {name} at {place}"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE task SET out_tok = out_tok + 1 WHERE seq = 3",
        "UPDATE task SET state = 3 WHERE state = 1",
        "UPDATE task SET sides = 3, dist_confirm = 1, state = 3 WHERE state = 1",
        "UPDATE task SET sides = 0 WHERE seq = 3",
        "UPDATE task SET block = block + 1 WHERE seq = 3",
        "UPDATE task SET dist_confirm = NULL WHERE seq = 3",
        "DELETE FROM task WHERE seq = 3",
        "DELETE FROM confirm WHERE seq = 2",
        "UPDATE confirm SET part = part + 1 WHERE seq = 1",
        "UPDATE confirm SET side = 3 - side WHERE seq = 1",
        "UPDATE confirm SET side = 9 WHERE seq = 1",
        "UPDATE confirm SET signer = zeroblob(7) WHERE seq = 1",
        "UPDATE network SET name = 'other'",
        "DELETE FROM network",
        "UPDATE task SET rec = zeroblob(264) WHERE seq = 3",
        "DROP INDEX task_by_block; CREATE INDEX task_by_block ON task (attempt)",
    ],
)
def test_an_edit_by_hand_is_found(path: Path, change: str) -> None:
    """Whoever edits rows by hand, or loses some, is found out; moving an index is no such edit."""
    connection = SqliteSession(str(path))
    connection.pragma("foreign_keys", 0)
    connection.execute(change)
    connection.close()
    assert bool(_problems(path)) is not change.startswith("DROP INDEX")


def test_a_ruined_file_is_reported_not_raised(path: Path) -> None:
    """A file whose pages are noise yields a bounded list of problems."""
    data = bytearray(path.read_bytes())
    data[4096:] = bytes((at * 37) & 255 for at in range(len(data) - 4096))
    path.write_bytes(data)
    problems = _problems(path)
    assert 0 < len(problems) <= PROBLEMS_MAX


def _as_of_old(connection: SqliteSession, seq: int, *, signed: bool) -> None:
    """Make a confirmation one of before confirmations named their distributor."""
    ((block, part, side, signer, node, root),) = connection.execute(
        "SELECT block, part, side, signer, node, root FROM confirm WHERE seq = ?", (seq,)
    )
    name = NETWORK.encode()
    said = b"starai/v1/confirm" + struct.pack(
        f"<H{len(name)}sQIB32s32s32s", len(name), name, block, part, side, signer, node, root
    )
    identity = {one.raw: one for one in (*NODES, DISTRIBUTOR)}[signer]
    connection.execute("UPDATE confirm SET dist = NULL, charge = NULL WHERE seq = ?", (seq,))
    if signed:
        connection.execute("UPDATE confirm SET sig = ? WHERE seq = ?", (identity.sign(said), seq))


@pytest.mark.parametrize("signed", [True, False])
def test_old_confirmations_verify_as_they_were_signed(path: Path, signed: bool) -> None:
    """What was signed before distributors were named is sound, and nothing else passes as that."""
    connection = SqliteSession(str(path))
    _as_of_old(connection, 1, signed=signed)
    connection.close()
    assert bool(_problems(path)) is not signed


def test_old_contradictions_get_their_standing_once(path: Path) -> None:
    """A file of before there were cases is sound again after the first look at it."""
    connection = SqliteSession(str(path))
    lie = confirm(Side.NODE, [msgspec.structs.replace(_RECORDS[2], answer_tokens=1)], NODES[0])
    apply(connection, [Said(lie, check_confirm(lie, NETWORK, BLOCK_MS), START_MS)])
    for (seq,) in list(connection.execute("SELECT seq FROM confirm")):
        _as_of_old(connection, seq, signed=True)
    connection.execute("DELETE FROM dispute")
    connection.execute("UPDATE task SET state = 5 WHERE state = ?", (int(Standing.DUP),))
    connection.execute("UPDATE task SET state = 4 WHERE state = ?", (int(Standing.AMOUNT),))
    for num_cases in (1, 1):
        rejudge_old(connection, START_MS)
        ((num,),) = connection.execute("SELECT count(*) FROM dispute")
        assert num == num_cases
    connection.close()
    assert _problems(path) == ()
