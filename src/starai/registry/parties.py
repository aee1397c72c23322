"""Who is in the network, as what: the party table, with a copy in memory for every message.

Parties come from two places: those that the operator's own start-up gave credentials (fixed, at
construction) and those that joined with a token (durable). A revoked party is remembered for ever.
Knows nothing of tokens or credentials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from starai.core.errors import NotFound, PartyRefused
from starai.protocol.identity import PartyId
from starai.protocol.subjects import Role
from starai.registry.schema import rows
from starai.registry.storage import Connection, Store

_SELECT: Final = "SELECT party, role, label, token_id, joined_ms, revoked_ms FROM party"


class Party(msgspec.Struct, frozen=True):
    """One row of the party table. ``token_id`` is the token it came with, if it came with one."""

    party: PartyId
    role: Role
    label: str
    token_id: bytes | None
    joined_ms: int
    revoked_ms: int | None = None


class Parties:
    """The party table; `load` fills the copy in memory."""

    def __init__(self, store: Store, fixed: Mapping[PartyId, Role]) -> None:
        """Take the store and the parties that need no token, by role."""
        self._store = store
        self._fixed = dict(fixed)
        self._rows: dict[PartyId, Party] = {}

    async def load(self) -> None:
        """Read the table."""
        self._rows = {row.party: row for row in await self._store.read(_all)}

    def role_of(self, party: PartyId) -> Role:
        """What ``party`` is.

        Raises:
            PartyRefused: it is unknown or revoked.
        """
        row = self._rows.get(party)
        if row is not None and row.revoked_ms is not None:
            raise PartyRefused("this party was revoked; ask the operator")
        if row is not None:
            return row.role
        if party in self._fixed:
            return self._fixed[party]
        raise PartyRefused("this party is not in the network; join with a token")

    def was(self, party: PartyId, role: Role) -> bool:
        """Whether ``party`` is or was a ``role`` here: who was revoked keeps what it did before."""
        row = self._rows.get(party)
        return (self._fixed.get(party) if row is None else row.role) is role

    def fixed_role(self, party: PartyId) -> Role | None:
        """The role that ``party`` was started with, or None if it joined or is unknown."""
        return self._fixed.get(party)

    def require(self, party: PartyId, *roles: Role) -> Role:
        """The role of ``party`` if it is one of ``roles``.

        Raises:
            PartyRefused: it is unknown, revoked, or something else.
        """
        role = self.role_of(party)
        if role not in roles:
            raise PartyRefused(f"a {role.value} may not do that")
        return role

    def find(self, party: PartyId) -> Party | None:
        """The row of a party that is in the table, revoked or not."""
        return self._rows.get(party)

    def all(self) -> tuple[Party, ...]:
        """Every party, fixed ones included, oldest first."""
        fixed = (
            Party(party, role, "", None, 0)
            for party, role in self._fixed.items()
            if party not in self._rows
        )
        return (*fixed, *sorted(self._rows.values(), key=lambda row: row.joined_ms))

    def remember(self, row: Party) -> None:
        """Keep a row in memory that `insert` made durable; who is out stays out."""
        known = self._rows.get(row.party)
        if known is None or known.revoked_ms is None:
            self._rows[row.party] = row

    async def revoke(self, party: PartyId, now_ms: int) -> None:
        """Durably mark ``party`` as revoked, whether it joined or is fixed; again changes nothing.

        Raises:
            NotFound: there is no such party.
        """
        row = self._rows.get(party)
        if row is None and party in self._fixed:
            row = Party(party, self._fixed[party], "", None, now_ms)
        if row is None:
            raise NotFound(f"no party {party!r} is in this network")
        if row.revoked_ms is None:
            row = msgspec.structs.replace(row, revoked_ms=now_ms)
            await self._store.write(lambda connection: insert(connection, row))
            self.remember(row)


def insert(connection: Connection, row: Party) -> None:
    """Write a party's row, new or changed."""
    connection.execute(
        "INSERT INTO party VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (party) DO UPDATE SET"
        " label = excluded.label, token_id = excluded.token_id, revoked_ms = excluded.revoked_ms",
        (row.party, row.role.value, row.label, row.token_id, row.joined_ms, row.revoked_ms),
    )


def find_row(connection: Connection, party: PartyId) -> Party | None:
    """The row of ``party`` as the database has it, for work inside a transaction."""
    return next(_parsed(rows(connection, f"{_SELECT} WHERE party = ?", party)), None)


def _all(connection: Connection) -> list[Party]:
    return list(_parsed(rows(connection, _SELECT)))


def _parsed(found: Iterator[tuple[Any, ...]]) -> Iterator[Party]:
    for party, role, *rest in found:
        yield Party(PartyId(party), Role(role), *rest)
