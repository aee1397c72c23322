"""API keys: made here, shown once, known afterwards by their SHA-256 only.

A key has 256 random bits. A slow, salted hash is for secrets that people choose; against this one
no dictionary helps, and the gateway must look a key up for every request. Gateways get the whole
table when they ask and each change as it happens; ``version`` grows by one a change, so a gateway
that missed one sees the gap and asks again. Knows nothing of rate limiting.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable
from typing import Final

import apsw
import msgspec

from starai.core.clock import Clock
from starai.core.errors import NotFound, Overloaded
from starai.core.randomness import Randomness
from starai.protocol.registry import KeyEntry, KeyTable
from starai.registry.admission import check_label
from starai.registry.schema import integer, rows
from starai.registry.store import Store

#: How a key begins, so that a person, or a scanner of leaked secrets, knows it for what it is.
KEY_PREFIX: Final = "sk-starai-"
_KEY_BYTES: Final = 32
_ID_BYTES: Final = 6
#: Live keys: the table must fit one frame, at 350 bytes an entry with the longest name.
KEYS_MAX: Final = 2_500
#: Limits per minute beyond any real one; 0 is no limit.
PER_MINUTE_MAX: Final = 1_000_000_000

_COLUMNS: Final = "key_hash, key_id, name, customer, rpm, tpm, revoked_ms IS NOT NULL"

Publish = Callable[[KeyTable], Awaitable[None]]


class KeyRow(msgspec.Struct, frozen=True):
    """A key as it is listed: all but its hash. ``version`` is that of its last change."""

    key_id: str
    name: str
    customer: int
    requests_per_minute: int
    tokens_per_minute: int
    created_ms: int
    revoked_ms: int | None
    version: int


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
        self, name: str, requests_per_minute: int = 0, tokens_per_minute: int = 0
    ) -> tuple[str, KeyEntry]:
        """A new key: its text, which is kept nowhere, and its entry.

        Raises:
            InvalidRequest: an argument is out of range.
            Overloaded: there are `KEYS_MAX` live keys.
        """
        check_label(name)
        limits = (
            integer(requests_per_minute, "requests_per_minute", most=PER_MINUTE_MAX),
            integer(tokens_per_minute, "tokens_per_minute", most=PER_MINUTE_MAX),
        )
        secret = base64.urlsafe_b64encode(self._randomness.take(_KEY_BYTES)).decode().rstrip("=")
        text = KEY_PREFIX + secret
        key_hash = hash_key(text)
        key_id = f"key_{self._randomness.take(_ID_BYTES).hex()}"
        now_ms = self._clock.now_ms()
        change = await self._store.write(
            lambda connection: _create(connection, key_hash, key_id, name, limits, now_ms)
        )
        await self._publish(change)
        return text, change.entries[0]

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


def hash_key(text: str) -> bytes:
    """What is known of a key: the SHA-256 of its text."""
    return hashlib.sha256(text.encode()).digest()


def _create(
    connection: apsw.Connection,
    key_hash: bytes,
    key_id: str,
    name: str,
    limits: tuple[int, int],
    now_ms: int,
) -> KeyTable:
    live, customer = next(
        rows(connection, "SELECT sum(revoked_ms IS NULL), max(customer) FROM key")
    )
    if (live or 0) >= KEYS_MAX:
        raise Overloaded(f"there are {KEYS_MAX} live API keys: revoke some first")
    version = _version(connection) + 1
    connection.execute(
        "INSERT INTO key VALUES (?, ?, ?, ?, ?, ?, ?, NULL, ?)",
        (key_id, key_hash, name, (customer or 0) + 1, *limits, now_ms, version),
    )
    return _change(connection, key_id)


def _revoke(connection: apsw.Connection, key_id: str, now_ms: int) -> KeyTable:
    connection.execute(
        "UPDATE key SET revoked_ms = ?, version = ? WHERE key_id = ? AND revoked_ms IS NULL",
        (now_ms, _version(connection) + 1, key_id),
    )
    return _change(connection, key_id)


def _version(connection: apsw.Connection) -> int:
    (version,) = next(rows(connection, "SELECT max(version) FROM key"))
    return version or 0


def _entry(row: tuple[object, ...]) -> KeyEntry:
    return msgspec.convert((*row[:-1], bool(row[-1])), KeyEntry)


def _change(connection: apsw.Connection, key_id: str) -> KeyTable:
    found = list(rows(connection, f"SELECT {_COLUMNS} FROM key WHERE key_id = ?", key_id))  # noqa: S608
    if not found:
        raise NotFound(f"no API key {key_id!r}")
    return KeyTable(_version(connection), (_entry(found[0]),), complete=False)


def _table(connection: apsw.Connection) -> KeyTable:
    live = rows(
        connection,
        f"SELECT {_COLUMNS} FROM key WHERE revoked_ms IS NULL ORDER BY customer",  # noqa: S608
    )
    return KeyTable(_version(connection), tuple(_entry(row) for row in live), complete=True)


def _list(connection: apsw.Connection) -> list[KeyRow]:
    found = rows(
        connection,
        "SELECT key_id, name, customer, rpm, tpm, created_ms, revoked_ms, version FROM key"
        " ORDER BY customer DESC",
    )
    return [KeyRow(*row) for row in found]
