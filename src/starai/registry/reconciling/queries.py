"""Questions and orders about records on which two sides do not agree. Knows nothing of the wire."""

from __future__ import annotations

from typing import Final

import msgspec

from starai.core.errors import InvalidRequest
from starai.protocol.identity import KeyKind, PartyId, public_nkey, raw_public
from starai.protocol.registry import Side
from starai.protocol.subjects import Role
from starai.registry.money.queries import Question
from starai.registry.parties import Parties
from starai.registry.reconciling.disputes import Case, Disputes
from starai.registry.schema import INTEGER_MAX, integer

_OPERATOR: Final = (Role.OPERATOR,)
_SUPPLIERS: Final = (Role.OPERATOR, Role.NODE)


class _Disputes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    only_open: bool = True


class _Dispute(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    task_id: str
    attempt: int = 0


class _Decide(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    record: int
    verdict: str


class DisputeQueries:
    """Answers them; a node sees and opens cases of its own records, the operator all."""

    def __init__(self, disputes: Disputes, parties: Parties) -> None:
        """Take the parts."""
        self._disputes = disputes
        self._parties = parties
        self.known: Final = {
            "disputes": Question(_SUPPLIERS, _Disputes, self._list),
            "dispute": Question(_SUPPLIERS, _Dispute, self._open),
            "decide": Question(_OPERATOR, _Decide, self._decide),
        }

    async def _list(self, sender: PartyId, asked: _Disputes) -> object:
        node = self._whose(sender)
        cases = await self._disputes.cases(node, only_open=asked.only_open)
        strikes = await self._disputes.strikes()
        if node is not None:
            strikes = {party: num for party, num in strikes.items() if party == sender}
        return {"disputes": [_shown(case) for case in cases], "strikes": strikes}

    async def _open(self, sender: PartyId, asked: _Dispute) -> object:
        try:
            task_id = bytes.fromhex(asked.task_id)
        except ValueError:
            raise InvalidRequest("task_id is 32 hexadecimal digits", param="task_id") from None
        attempt = integer(asked.attempt, "attempt", most=(1 << 32) - 1)
        cases = await self._disputes.open(self._whose(sender), task_id, attempt)
        return {"disputes": [_shown(case) for case in cases]}

    async def _decide(self, _: PartyId, asked: _Decide) -> object:
        record = integer(asked.record, "record", most=INTEGER_MAX)
        return _shown(await self._disputes.decide(record, asked.verdict))

    def _whose(self, sender: PartyId) -> bytes | None:
        """The node whose cases are meant, or None for all."""
        return raw_public(sender) if self._parties.role_of(sender) is Role.NODE else None


def _shown(case: Case) -> dict[str, object]:
    """A case as JSON has it; money as a string."""
    return {
        "record": case.seq,
        "task_id": case.task_id.hex(),
        "attempt": case.attempt,
        "reason": case.reason,
        "state": case.state,
        "verdict": case.verdict,
        "opened_ms": case.opened_ms,
        "deadline_ms": case.deadline_ms,
        "node": public_nkey(KeyKind.USER, case.node),
        "distributor": public_nkey(KeyKind.USER, case.distributor),
        "sides": [side.name.lower() for side in Side if case.sides & side],
        "charge_nano_usd": str(case.charge),
        "paid": bool(case.is_paid),
    }
