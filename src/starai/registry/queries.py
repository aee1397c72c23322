"""People's questions to the registry, and the few orders that an operator gives the same way.

A query names what it wants and carries arguments in JSON; each is one function with typed
arguments, so a wrong name or type is refused by name. Who may ask what stands beside it. No secret
is in a query or its answer: keys are made by who asks. Knows nothing of the wire.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from starai.core.errors import InvalidRequest, NotFound
from starai.protocol.identity import PartyId, raw_public
from starai.protocol.registry import Query
from starai.protocol.subjects import Role
from starai.registry import reports
from starai.registry.admission import Admission
from starai.registry.days.queries import DayQueries
from starai.registry.integrity import check_integrity
from starai.registry.keys import Keys
from starai.registry.log import proofs
from starai.registry.log.blocks import Closer
from starai.registry.money.queries import MoneyQueries, Question
from starai.registry.parties import Parties
from starai.registry.reconciling.queries import DisputeQueries
from starai.registry.storage import Store

#: A token for one newcomer, for a day, unless the operator says otherwise.
TOKEN_LIFETIME_MS: Final = 86_400_000
_OPERATOR: Final = (Role.OPERATOR,)
#: A gateway may show its users what is on record, but not who they are.
_READERS: Final = (Role.OPERATOR, Role.GATEWAY)
#: The log itself is for everybody who is paid by it.
_AUDITORS: Final = (*_READERS, Role.NODE)

_Answer = Callable[..., Awaitable[object]]


class _Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of a query; each class below is one query's."""


class _Nothing(_Arguments, frozen=True):
    pass


class _Tasks(_Arguments, frozen=True):
    limit: int = 50
    state: str | None = None
    node: str | None = None
    before: int | None = None


class _Task(_Arguments, frozen=True):
    task_id: str


class _Ledger(_Arguments, frozen=True):
    limit: int = 20


class _Checkpoint(_Arguments, frozen=True):
    size: int | None = None


class _Consistency(_Arguments, frozen=True):
    old: int
    size: int


class _CreateKey(_Arguments, frozen=True):
    name: str
    key_hash: str
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    customer: str | None = None
    budget_nano_usd: int | None = None


class _RevokeKey(_Arguments, frozen=True):
    key_id: str


class _CreateToken(_Arguments, frozen=True):
    joiner: str
    role: Role = Role.NODE
    uses: int = 1
    lifetime_ms: int = TOKEN_LIFETIME_MS
    label: str = ""


class _RevokeToken(_Arguments, frozen=True):
    token_id: str


class _RevokeParty(_Arguments, frozen=True):
    party: str


class Queries:
    """Answers queries from the parts of the registry."""

    def __init__(
        self,
        store: Store,
        parties: Parties,
        admission: Admission,
        keys: Keys,
        blocks: Closer,
        *,
        money: MoneyQueries,
        disputes: DisputeQueries,
        days: DayQueries,
    ) -> None:
        """Take the parts."""
        self._store = store
        self._parties = parties
        self._admission = admission
        self._keys = keys
        self._blocks = blocks
        known: dict[str, tuple[tuple[Role, ...], type[msgspec.Struct], _Answer]] = {
            "tasks": (_READERS, _Tasks, self._tasks),
            "task": (_READERS, _Task, self._task),
            "ledger": (_READERS, _Ledger, self._ledger),
            "checkpoint": (_AUDITORS, _Checkpoint, self._checkpoint),
            "consistency": (_AUDITORS, _Consistency, self._consistency),
            "close_block": (_OPERATOR, _Nothing, self._close_block),
            "parties": (_OPERATOR, _Nothing, self._list_parties),
            "keys": (_OPERATOR, _Nothing, self._list_keys),
            "tokens": (_OPERATOR, _Nothing, self._list_tokens),
            "check": (_OPERATOR, _Nothing, self._check),
            "create_key": (_OPERATOR, _CreateKey, self._create_key),
            "revoke_key": (_OPERATOR, _RevokeKey, self._revoke_key),
            "create_token": (_OPERATOR, _CreateToken, self._create_token),
            "revoke_token": (_OPERATOR, _RevokeToken, self._revoke_token),
            "revoke_party": (_OPERATOR, _RevokeParty, self._revoke_party),
        }
        self._known = {
            **{what: Question(*one[:2], _unaware(one[2])) for what, one in known.items()},
            "proof": Question(_AUDITORS, _Task, self._proof),
            **money.known,
            **disputes.known,
            **days.known,
        }

    async def answer(self, sender: PartyId, query: Query) -> bytes:
        """The JSON that answers ``query``.

        Raises:
            PartyRefused: ``sender`` may not ask that.
            NotFound: there is no such query, or not what it asks for.
            InvalidRequest: its arguments are wrong.
        """
        try:
            roles, shape, answer = self._known[query.what]
        except KeyError:
            names = ", ".join(sorted(self._known))
            raise NotFound(f"no query {query.what!r}; there are {names}") from None
        self._parties.require(sender, *roles)
        try:
            arguments = msgspec.json.decode(query.arguments, type=shape)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"query {query.what!r}: {error}") from error
        return msgspec.json.encode(await answer(sender, arguments))

    async def _tasks(self, asked: _Tasks) -> object:
        given = {k: v for k, v in msgspec.structs.asdict(asked).items() if v is not None}
        return await self._store.read(lambda connection: reports.tasks(connection, **given))

    async def _task(self, asked: _Task) -> object:
        return await self._store.read(
            lambda connection: reports.task(connection, task_id=asked.task_id)
        )

    async def _ledger(self, asked: _Ledger) -> object:
        return await self._store.read(
            lambda connection: reports.ledger(connection, limit=asked.limit)
        )

    async def _checkpoint(self, asked: _Checkpoint) -> object:
        return await self._store.read(
            lambda connection: proofs.checkpoint(connection, size=asked.size)
        )

    async def _proof(self, sender: PartyId, asked: _Task) -> object:
        is_node = self._parties.role_of(sender) is Role.NODE
        node = raw_public(sender) if is_node else None  # which sees its own work only
        return await self._store.read(
            lambda connection: proofs.task_proof(connection, task_id=asked.task_id, node=node)
        )

    async def _consistency(self, asked: _Consistency) -> object:
        return await self._store.read(
            lambda connection: proofs.consistency_proof(connection, old=asked.old, size=asked.size)
        )

    async def _close_block(self, _: _Nothing) -> object:
        block = await self._blocks.close_now()
        return {"block": None if block is None else block.height}

    async def _check(self, _: _Nothing) -> object:
        account = self._blocks.account
        return await self._store.read(lambda connection: check_integrity(connection, account))

    async def _list_parties(self, _: _Nothing) -> object:
        return {"parties": [_shown(row) for row in self._parties.all()]}

    async def _list_keys(self, _: _Nothing) -> object:
        return {"keys": await self._keys.rows()}

    async def _list_tokens(self, _: _Nothing) -> object:
        return {"tokens": [_shown(row) for row in await self._admission.tokens()]}

    async def _create_key(self, asked: _CreateKey) -> object:
        entry = await self._keys.create(
            asked.name,
            asked.requests_per_minute,
            asked.tokens_per_minute,
            key_hash=_from_hex(asked.key_hash, "key_hash"),
            owner=asked.customer,
            budget_nano_usd=asked.budget_nano_usd,
        )
        return {"key_id": entry.key_id, "customer": entry.customer, "owner": entry.owner}

    async def _revoke_key(self, asked: _RevokeKey) -> object:
        entry = await self._keys.revoke(asked.key_id)
        return {"key_id": entry.key_id, "revoked": entry.revoked}

    async def _create_token(self, asked: _CreateToken) -> object:
        return await self._admission.create_token(
            *(asked.role, asked.uses, asked.lifetime_ms, asked.label),
            joiner=PartyId(asked.joiner),
        )

    async def _revoke_token(self, asked: _RevokeToken) -> object:
        await self._admission.expire_token(_from_hex(asked.token_id, "token_id"))
        return {"token_id": asked.token_id, "revoked": True}

    async def _revoke_party(self, asked: _RevokeParty) -> object:
        await self._admission.revoke(PartyId(asked.party))
        return {"party": asked.party, "revoked": True}


def _unaware(answer: _Answer) -> Callable[[PartyId, Any], Awaitable[object]]:
    """The answer to a question that is the same whoever asks."""
    return lambda _, asked: answer(asked)


def _from_hex(text: str, name: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise InvalidRequest(f"{name} is hexadecimal", param=name) from None


def _shown(row: msgspec.Struct) -> dict[str, Any]:
    """A row with its ids as hexadecimal."""
    fields = msgspec.structs.asdict(row)
    return {k: v.hex() if isinstance(v, bytes) else v for k, v in fields.items()}
