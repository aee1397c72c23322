"""API keys: known by their hash, told to every gateway."""

from __future__ import annotations

from pathlib import Path

import pytest

from starai.core.clock import SystemClock
from starai.core.errors import Conflict, InvalidRequest, NotFound, Overloaded
from starai.core.limits import FRAME_BYTES_MAX
from starai.core.randomness import SeededRandomness
from starai.protocol.api_keys import hash_api_key
from starai.protocol.frames import encode
from starai.protocol.registry import KeyTable
from starai.registry.keys import KEYS_MAX, Keys
from starai.registry.storage import Store, open_store


def _hash(number: int) -> bytes:
    return hash_api_key(f"sk-starai-{number}")


class _Keys(Keys):
    """Keys that remember what they published."""

    def __init__(self, store: Store) -> None:
        self.published: list[KeyTable] = []
        super().__init__(store, SystemClock(), SeededRandomness(2), self._remember)

    async def _remember(self, change: KeyTable) -> None:
        self.published.append(change)


@pytest.fixture
async def keys(database: Path | str):
    async with open_store(database, inline=True) as store:
        yield _Keys(store)


@pytest.mark.anyio
async def test_a_key_is_made_listed_and_revoked(keys: _Keys) -> None:
    """Each change is published with the next version; the table holds the live keys only."""
    entry = await keys.create("alice", 60, 1000, key_hash=_hash(1))
    await keys.create("bob", key_hash=_hash(2))
    assert entry.key_hash == _hash(1)
    assert (entry.customer, entry.requests_per_minute, entry.tokens_per_minute) == (1, 60, 1000)
    table = await keys.table()
    assert table.complete
    assert {one.key_hash for one in table.entries} == {_hash(1), _hash(2)}
    assert (await keys.revoke(entry.key_id)).revoked
    assert (await keys.revoke(entry.key_id)).revoked
    table = await keys.table()
    assert (table.version, [one.name for one in table.entries]) == (3, ["bob"])
    assert [change.version for change in keys.published] == [1, 2, 3, 3]
    assert not any(change.complete for change in keys.published)
    assert [(row.name, row.revoked_ms is None) for row in await keys.rows()] == [
        ("bob", True),
        ("alice", False),
    ]
    with pytest.raises(NotFound):
        await keys.revoke("key_none")


@pytest.mark.anyio
async def test_customers_are_counted_and_never_reused(keys: _Keys) -> None:
    """Every key is a customer of its own, even after others were revoked."""
    entries = []
    for number in range(4):
        entry = await keys.create(f"k{number}", key_hash=_hash(number))
        entries.append(entry)
        await keys.revoke(entry.key_id)
    assert [entry.customer for entry in entries] == [1, 2, 3, 4]


@pytest.mark.anyio
async def test_what_makes_no_key(keys: _Keys) -> None:
    """Names and limits are bounded, and a hash has the length of a hash."""
    for arguments in (("x" * 65,), ("\0",), ("x", -1), ("x", 1.5), ("x", 0, True), ("x", 1 << 40)):
        with pytest.raises(InvalidRequest):
            await keys.create(*arguments, key_hash=_hash(1))
    for wrong in (b"", b"x" * 31, b"x" * 33):
        with pytest.raises(InvalidRequest, match="SHA-256"):
            await keys.create("x", key_hash=wrong)


@pytest.mark.anyio
async def test_a_key_told_twice_is_one_key(keys: _Keys) -> None:
    """After a lost answer the same again finds the key; anything else about it is a conflict."""
    first = await keys.create("alice", 60, 1000, key_hash=_hash(1))
    await keys.create("bob", key_hash=_hash(2))
    assert await keys.create("alice", 60, 1000, key_hash=_hash(1)) == first
    assert len(await keys.rows()) == 2
    for other in (("carol", 60, 1000), ("alice", 61, 1000), ("alice", 60, 0)):
        with pytest.raises(Conflict, match="known already"):
            await keys.create(*other, key_hash=_hash(1))
    await keys.revoke(first.key_id)
    with pytest.raises(Conflict, match="revoked"):
        await keys.create("alice", 60, 1000, key_hash=_hash(1))


@pytest.mark.anyio
async def test_a_change_told_again_hides_no_later_one(keys: _Keys) -> None:
    """A repeated change has the version of that change, so a gateway that is behind stays so."""
    entry = await keys.create("alice", key_hash=_hash(1))
    await keys.create("bob", key_hash=_hash(2))
    await keys.create("alice", key_hash=_hash(1))
    await keys.revoke(entry.key_id)
    await keys.create("carol", key_hash=_hash(3))
    await keys.revoke(entry.key_id)
    assert [change.version for change in keys.published] == [1, 2, 1, 3, 4, 3]


@pytest.mark.anyio
async def test_the_largest_table_fits_a_frame(keys: _Keys) -> None:
    """As many keys as may be, with the longest names, fit one frame; no more are made."""

    def fill(connection) -> None:
        connection.executemany(
            "INSERT INTO key (key_id, key_hash, name, customer, rpm, tpm, created_ms, version)"
            " VALUES (?, ?, ?, ?, 1000000000, 1000000000, 0, ?)",
            (
                (f"key_{n:012x}", n.to_bytes(32, "big"), "\U0001f600" * 64, n, n)
                for n in range(1, KEYS_MAX + 1)
            ),
        )

    await keys._store.write(fill)
    frame = encode(await keys.table())
    assert len(frame) < FRAME_BYTES_MAX
    with pytest.raises(Overloaded, match="revoke"):
        await keys.create("one more", key_hash=_hash(1))
