"""API keys, known by their SHA-256 only: the registry never sees the text of one.

Gateways get the whole table when they ask and each change as it happens; ``version`` grows by one
a change, so a gateway that missed one sees the gap and asks again. Knows nothing of rate limiting,
nor of how a key is made (`starai.protocol.api_keys`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Literal

import msgspec

from starai.core.clock import Clock
from starai.core.errors import Conflict, InvalidRequest, NotFound, Overloaded
from starai.core.randomness import Randomness
from starai.ledger.accounts import natural
from starai.protocol.api_keys import KEY_HASH_BYTES
from starai.protocol.registry import KeyEntry, KeyTable
from starai.registry.admission import check_label
from starai.registry.money.customers import find, insert
from starai.registry.schema import integer, rows
from starai.registry.storage import Connection, Store

_ID_BYTES: Final = 6
#: Live keys: the table must fit one frame, at 360 bytes an entry with the longest name.
KEYS_MAX: Final = 2_500
#: Limits per minute beyond any real one; 0 is no limit.
PER_MINUTE_MAX: Final = 1_000_000_000

_ENTRY: Final = "key_hash, key_id, name, customer, rpm, tpm, revoked_ms IS NOT NULL, owner"

Publish = Callable[[KeyTable], Awaitable[None]]


class KeyRow(msgspec.Struct, frozen=True):
    """A key as it is listed: all but its hash. ``version`` is that of its last change.

    ``customer`` is the key's own account number, ``owner`` the customer who pays for it. Of its
    budget (None: as much as the owner has) ``spent_nano_usd`` is used up.
    """

    key_id: str
    name: str
    customer: int
    requests_per_minute: int
    tokens_per_minute: int
    created_ms: int
    revoked_ms: int | None
    version: int
    owner: int | None
    budget_nano_usd: str | None
    spent_nano_usd: str


class Keys:
    """The key table."""

    def __init__(
        self, store: Store, clock: Clock, randomness: Randomness, publish: Publish
    ) -> None:
        """Take where changes are published."""
        self._store = store
        self._clock = clock
        self._randomness = randomness
        self._publish = publish

    async def create(
        self,
        name: str,
        requests_per_minute: int = 0,
        tokens_per_minute: int = 0,
        *,
        key_hash: bytes,
        owner: str | None = None,
        budget_nano_usd: int | None = None,
    ) -> KeyEntry:
        """Take a new key in: ``key_hash`` (32 bytes) is all that is ever known of it.

        ``owner`` is the number or name of the customer who pays; without one, the key is a customer
        of its own. In its life it may spend at most ``budget_nano_usd``.

        The same again, as when an answer was lost, finds the key that was made.

        Raises:
            InvalidRequest: an argument is out of range.
            NotFound: there is no such customer.
            Conflict: the key is known already, with another name or limits, or revoked.
            Overloaded: there are `KEYS_MAX` live keys.
        """
        check_label(name)
        if len(key_hash) != KEY_HASH_BYTES:
            raise InvalidRequest(
                f"key_hash is the SHA-256 of the key: {KEY_HASH_BYTES} bytes", param="key_hash"
            )
        limits = (
            integer(requests_per_minute, "requests_per_minute", most=PER_MINUTE_MAX),
            integer(tokens_per_minute, "tokens_per_minute", most=PER_MINUTE_MAX),
        )
        if budget_nano_usd is not None:
            natural(budget_nano_usd, "budget_nano_usd")
        key_id = f"key_{self._randomness.take(_ID_BYTES).hex()}"
        now_ms = self._clock.now_ms()
        new = _NewKey(key_hash, key_id, name, limits, owner, budget_nano_usd)
        change = await self._store.write(lambda connection: _create(connection, new, now_ms))
        await self._publish(change)
        return change.entries[0]

    async def revoke(self, key_id: str) -> KeyEntry:
        """End a key; again changes nothing.

        Raises:
            NotFound: there is no such key.
        """
        now_ms = self._clock.now_ms()
        change = await self._store.write(lambda connection: _revoke(connection, key_id, now_ms))
        await self._publish(change)
        return change.entries[0]

    async def table(self) -> KeyTable:
        """All live keys: one that is not in it does not exist or was revoked."""
        return await self._store.read(_table)

    async def rows(self) -> list[KeyRow]:
        """All keys, revoked ones too, newest first."""
        return await self._store.read(_list)


class _NewKey(msgspec.Struct, frozen=True):
    """A key to be."""

    key_hash: bytes
    key_id: str
    name: str
    limits: tuple[int, int]
    owner: str | None
    budget_nano: int | None


def _create(connection: Connection, new: _NewKey, now_ms: int) -> KeyTable:
    known = _find(connection, "key_hash", new.key_hash)
    if known is not None:
        entry = known.entries[0]
        limits = (entry.requests_per_minute, entry.tokens_per_minute)
        if (entry.name, limits) != (new.name, new.limits):
            raise Conflict("this API key is known already, with another name or other limits")
        if entry.revoked:
            raise Conflict("this API key was revoked: make another")
        return known
    live, customer = next(
        rows(
            connection, "SELECT count(*) FILTER (WHERE revoked_ms IS NULL), max(customer) FROM key"
        )
    )
    if live >= KEYS_MAX:
        raise Overloaded(f"there are {KEYS_MAX} live API keys: revoke some first")
    version = _version(connection) + 1
    if new.owner is None:
        owner = insert(connection, new.name, now_ms)
    else:
        owner = find(connection, new.owner)
    connection.execute(
        "INSERT INTO key (key_id, key_hash, name, customer, rpm, tpm, created_ms, version, owner,"
        " budget_nano) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(new.key_id, new.key_hash, new.name, (customer or 0) + 1, *new.limits),
            *(now_ms, version, owner, new.budget_nano),
        ),
    )
    return _changed(connection, new.key_id)


def _revoke(connection: Connection, key_id: str, now_ms: int) -> KeyTable:
    connection.execute(
        "UPDATE key SET revoked_ms = ?, version = ? WHERE key_id = ? AND revoked_ms IS NULL",
        (now_ms, _version(connection) + 1, key_id),
    )
    return _changed(connection, key_id)


def _version(connection: Connection) -> int:
    (version,) = next(rows(connection, "SELECT max(version) FROM key"))
    return version or 0


def _entry(row: tuple[object, ...]) -> KeyEntry:
    *known, revoked, owner = row
    return msgspec.convert((*known, bool(revoked), owner or 0), KeyEntry)


def _changed(connection: Connection, key_id: str) -> KeyTable:
    change = _find(connection, "key_id", key_id)
    if change is None:
        raise NotFound(f"no API key {key_id!r}")
    return change


def _find(
    connection: Connection, column: Literal["key_id", "key_hash"], value: str | bytes
) -> KeyTable | None:
    """A key's last change, under the version that it had: told again, it hides no later one."""
    sql = f"SELECT version, {_ENTRY} FROM key WHERE {column} = ?"  # noqa: S608
    for version, *entry in rows(connection, sql, value):
        return KeyTable(version, (_entry(tuple(entry)),), complete=False)
    return None


def _table(connection: Connection) -> KeyTable:
    live = rows(
        connection,
        f"SELECT {_ENTRY} FROM key WHERE revoked_ms IS NULL ORDER BY customer",  # noqa: S608
    )
    return KeyTable(_version(connection), tuple(_entry(row) for row in live), complete=True)


def _list(connection: Connection) -> list[KeyRow]:
    found = rows(
        connection,
        "SELECT key_id, name, customer, rpm, tpm, created_ms, revoked_ms, version, owner,"
        " budget_nano, spent_nano FROM key"
        " ORDER BY customer DESC",
    )
    return [
        KeyRow(*(*row, None if budget is None else str(budget), str(spent)))
        for *row, budget, spent in found
    ]
