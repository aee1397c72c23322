"""Who is let in: join tokens, the credentials that they lead to, renewal, and putting out.

A token is known by the public key of its joiner, whose seed whoever asked for the token keeps: no
secret comes here, so none can be stolen here. A party's credential expires in a day and is renewed
for as long as the party is not revoked. Knows nothing of NATS: what ends a connection at once is
``on_revoke``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from starai.core.clock import Clock
from starai.core.errors import (
    Conflict,
    InvalidRequest,
    MalformedFrame,
    NotFound,
    PartyRefused,
    StarAIError,
)
from starai.core.logging import event
from starai.core.randomness import Randomness, uuid7
from starai.protocol.credentials import LIFETIME_MS_MAX, issue_credential
from starai.protocol.identity import Identity, PartyId, party_id, verify
from starai.protocol.registry import Admitted, Join, Renew
from starai.protocol.subjects import Role
from starai.protocol.tickets import TOKEN_ID_BYTES, TokenGrant
from starai.registry.parties import Parties, Party, find_row, insert
from starai.registry.schema import integer, rows
from starai.registry.storage import Connection, Store

_LOG = logging.getLogger(__name__)

#: What a token can make of a newcomer. The operator and the registry come with the network.
JOINABLE: Final = (Role.NODE, Role.DISTRIBUTOR, Role.GATEWAY)
#: A token for a whole data centre; more is a mistake.
USES_MAX: Final = 100_000
#: A token is an open door, so it must close some day: as soon as its joiner's credential.
TOKEN_LIFETIME_MS_MAX: Final = LIFETIME_MS_MAX
LABEL_CHARS_MAX: Final = 64
#: A party renews when this part of its credential's life is over.
RENEW_AT: Final = 0.75


class Token(msgspec.Struct, frozen=True):
    """A row of the token table; the joiner's name stays in the database."""

    token_id: bytes
    role: Role
    label: str
    uses: int
    used: int
    created_ms: int
    expires_ms: int


@dataclass(frozen=True)
class Terms:
    """What the registry lets parties into: the network and how long a credential lives."""

    network: str
    block_ms: int
    urls: tuple[str, ...]
    credential_lifetime_ms: int
    ca: bytes = b""


#: Cuts a party off the wire at once.
OnRevoke = Callable[[PartyId], Awaitable[None]]


async def do_nothing(party: PartyId) -> None:
    """The hook of a network whose wire needs no word about a revoked party."""


class Admission:
    """Gives out tokens and credentials in the name of the network's account."""

    def __init__(
        self,
        store: Store,
        parties: Parties,
        account: Identity,
        terms: Terms,
        clock: Clock,
        randomness: Randomness,
        *,
        on_revoke: OnRevoke = do_nothing,
    ) -> None:
        """Take the account's secret identity; ``on_revoke`` cuts a party off the wire at once."""
        self._store = store
        self._parties = parties
        self._account = account
        self._terms = terms
        self._clock = clock
        self._randomness = randomness
        self._on_revoke = on_revoke

    async def create_token(
        self, role: Role, uses: int, lifetime_ms: int, label: str = "", *, joiner: PartyId
    ) -> TokenGrant:
        """A new join token for whoever holds the key of ``joiner``, a new public nkey.

        Raises:
            InvalidRequest: an argument is out of range, or ``joiner`` is no public nkey.
            Conflict: ``joiner`` has a token already.
        """
        if role not in JOINABLE:
            names = ", ".join(one.value for one in JOINABLE)
            raise InvalidRequest(f"a token lets in one of {names}", param="role")
        integer(uses, "uses", least=1, most=USES_MAX)
        integer(lifetime_ms, "lifetime_ms", least=1000, most=TOKEN_LIFETIME_MS_MAX)
        check_label(label)
        _check_joiner(joiner)
        now_ms = self._clock.now_ms()
        token_id = uuid7(self._clock, self._randomness)
        row = (token_id, joiner, role.value, label, uses, 0, now_ms, now_ms + lifetime_ms)
        await self._store.write(lambda connection: _insert_token(connection, row))
        return TokenGrant(
            token_id=token_id.hex(),
            credential=issue_credential(self._account, joiner, Role.JOINER, lifetime_ms, now_ms),
            urls=self._terms.urls,
            account=self._account.nkey,
            network=self._terms.network,
            ca=self._terms.ca,
        )

    async def tokens(self) -> list[Token]:
        """All tokens, newest first."""
        return await self._store.read(_tokens)

    async def expire_token(self, token_id: bytes) -> None:
        """End a token now, used up or not; who came in with it stays.

        Raises:
            NotFound: there is no such token.
        """
        now_ms = self._clock.now_ms()

        def expire(connection: Connection) -> None:
            connection.execute(
                "UPDATE token SET expires_ms ="
                " CASE WHEN expires_ms < ?1 THEN expires_ms ELSE ?1 END WHERE token_id = ?2",
                (now_ms, token_id),
            )
            if not connection.changes():
                raise NotFound(f"no join token {token_id.hex()!r}")

        await self._store.write(expire)

    async def join(self, sender: PartyId, join: Join) -> Admitted:
        """Let a newcomer in, durably. The same newcomer again gets a fresh credential.

        Args:
            sender: the joiner that carried the request.
            join: what it asks.

        Raises:
            PartyRefused: the token is wrong, used up or expired, or the party was revoked.
            Conflict: the party is in the network already, as something else.
            SealBroken: the newcomer does not hold its key, or the sender not the joiner's.
            MalformedFrame: the newcomer's name is no public nkey.
        """
        check_label(join.label)
        party = party_id(join.party)
        if len(join.token_id) != TOKEN_ID_BYTES:
            raise PartyRefused("the join token is not one of ours")
        if party == sender:  # everybody who was handed the ticket knows this key
            raise PartyRefused("a newcomer needs a key of its own, not the join token's")
        verify(party, join.signed_bytes(), join.signature)
        # The wire vouches for the sender; this holds even if some wire does not.
        verify(sender, join.signed_bytes(), join.joiner_signature)
        now_ms = self._clock.now_ms()
        row = await self._store.write(
            lambda connection: _use(connection, sender, join, party, now_ms)
        )
        self._parties.remember(row)
        event(_LOG, "party_joined", party=party, role=row.role.value, token=join.token_id.hex())
        return self._admit(party, self._parties.role_of(party))

    async def renew(self, sender: PartyId, renew: Renew) -> Admitted:
        """A fresh credential for a party that is in the network.

        Raises:
            PartyRefused: it asks for another, is unknown, or was revoked.
        """
        if renew.party != sender:
            raise PartyRefused("a party renews its own credential only")
        return self._admit(sender, self._parties.role_of(sender))

    def _admit(self, party: PartyId, role: Role) -> Admitted:
        now_ms, lifetime_ms = self._clock.now_ms(), self._terms.credential_lifetime_ms
        return Admitted(
            credential=issue_credential(self._account, party, role, lifetime_ms, now_ms),
            expires_ms=now_ms + lifetime_ms,
            network=self._terms.network,
            account=self._account.nkey,
            block_ms=self._terms.block_ms,
        )

    async def revoke(self, party: PartyId) -> None:
        """Put a party out: durably first, then on the wire.

        Raises:
            NotFound: there is no such party.
            InvalidRequest: nobody could undo it, for it is the registry or an operator.
        """
        if self._parties.fixed_role(party) in (Role.REGISTRY, Role.OPERATOR):
            raise InvalidRequest("the registry and the operator cannot be put out", param="party")
        await self._parties.revoke(party, self._clock.now_ms())
        event(_LOG, "party_revoked", party=party)
        await self._on_revoke(party)

    async def repeat_revocations(self) -> None:
        """Tell the wire again who is out, in case the last run died between the two steps.

        Only those whose last credential may still be valid; a wire that does not listen is no
        reason not to serve.
        """
        oldest_ms = self._clock.now_ms() - self._terms.credential_lifetime_ms
        for row in self._parties.all():
            if row.revoked_ms is not None and row.revoked_ms >= oldest_ms:
                try:
                    await self._on_revoke(row.party)
                except StarAIError as error:
                    event(
                        _LOG, "revocation_not_told", logging.ERROR, party=row.party, code=error.code
                    )


def check_label(label: str) -> str:
    """``label`` if it is fit to be shown: short and printable.

    Raises:
        InvalidRequest: it is not.
    """
    if len(label) > LABEL_CHARS_MAX or not label.isprintable():
        raise InvalidRequest(
            f"a label or name has at most {LABEL_CHARS_MAX} printable characters", param="label"
        )
    return label


def _check_joiner(joiner: PartyId) -> None:
    try:
        party_id(joiner)
    except MalformedFrame as error:
        raise InvalidRequest(f"joiner: {error.message}", param="joiner") from error


def _insert_token(connection: Connection, row: tuple[object, ...]) -> None:
    connection.execute(
        "INSERT INTO token VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (joiner) DO NOTHING", row
    )
    if not connection.changes():
        raise Conflict("this joiner has a join token already: make a new key for each token")


def _use(connection: Connection, sender: PartyId, join: Join, party: PartyId, now_ms: int) -> Party:
    """Use a token up by one, and write the party's row; both or neither."""
    token = next(
        rows(
            connection,
            "SELECT role, uses, used, expires_ms FROM token WHERE token_id = ? AND joiner = ?",
            join.token_id,
            sender,
        ),
        None,
    )
    if token is None:
        raise PartyRefused("the join token is not one of ours")
    role_name, uses, used, expires_ms = token
    role = Role(role_name)
    if now_ms >= expires_ms:
        raise PartyRefused("the join token has expired or was revoked: ask for a new one")
    before = find_row(connection, party)
    if before is not None and before.revoked_ms is not None:
        raise PartyRefused("this party was revoked: it needs a new identity to join again")
    if before is not None and before.role is not role:
        raise Conflict(f"this party is in the network already, as {before.role.value}")
    if before is not None and before.token_id == join.token_id:
        return before  # its answer was lost: joining again costs no further use
    if used >= uses:
        raise PartyRefused("the join token is used up: ask the operator for a new one")
    connection.execute("UPDATE token SET used = used + 1 WHERE token_id = ?", (join.token_id,))
    joined_ms = before.joined_ms if before is not None else now_ms
    row = Party(party, role, join.label, join.token_id, joined_ms)
    insert(connection, row)
    return row


def _tokens(connection: Connection) -> list[Token]:
    found: list[tuple[Any, ...]] = list(
        rows(
            connection,
            "SELECT token_id, role, label, uses, used, created_ms, expires_ms FROM token"
            " ORDER BY created_ms DESC, token_id DESC",
        )
    )
    return [Token(token_id, Role(role), *rest) for token_id, role, *rest in found]
