"""Allotments: money of a customer set aside for one key at one gateway, ahead of its requests.

Each is a hold in the books, so all gateways together can never spend what is not there. A gateway
says what it used of one when it gives it back; what was not used is available again at once, what
was used stays held until the records of those tasks are captured, or for `SETTLE_MS`. One of which
nothing is heard is released when it expires. Knows nothing of prices or requests.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import anyio
import msgspec

from starai.core.clock import Clock
from starai.core.errors import Conflict
from starai.core.limits import REQUEST_DEADLINE_S
from starai.core.logging import event
from starai.ledger.accounts import available
from starai.ledger.events import HoldPlaced, HoldReleased, event_id
from starai.protocol.identity import PartyId, raw_public
from starai.protocol.registry import (
    Allotment,
    AllotmentRequest,
    FundsChanged,
    Shortage,
    SpentAllotment,
)
from starai.protocol.subjects import Role
from starai.registry.money.books import apply_event
from starai.registry.money.shelf import StoredShelf
from starai.registry.money.withdrawals import NO_KEY, collect, reserved
from starai.registry.parties import Parties
from starai.registry.schema import rows
from starai.registry.storage import Connection, Store

_LOG = logging.getLogger(__name__)

#: How long a gateway may spend an allotment: what a dead one leaves behind is held no longer, plus
#: `GRACE_MS`.
LIFETIME_MS: Final = 600_000
#: A request that began in an allotment's last moment may run for its whole deadline.
GRACE_MS: Final = int(REQUEST_DEADLINE_S * 1000)
#: How long what was used may wait for its records: they come at the end of a block, or once a
#: distributor that was away is back.
SETTLE_MS: Final = 600_000
#: One gateway is given at most this part of what a customer has left: others want some, too.
SHARE: Final = 4
#: The most that a message can name: nine million USD.
AMOUNT_MAX: Final = (1 << 53) - 1
#: Expired holds are looked for this often, so many at once.
EXPIRE_EVERY_S: Final = 10.0
EXPIRED_MAX: Final = 500

Publish = Callable[[FundsChanged], Awaitable[None]]


class _Key(msgspec.Struct, frozen=True):
    """What the key table says of a payer."""

    owner: int
    budget_nano: int | None
    spent_nano: int


class Allotments:
    """Grants allotments, takes them back, and lets them expire."""

    def __init__(self, store: Store, parties: Parties, clock: Clock, publish: Publish) -> None:
        """Take where gateways are asked to give back."""
        self._store = store
        self._parties = parties
        self._clock = clock
        self._publish = publish

    async def handle(self, sender: PartyId, request: AllotmentRequest) -> Allotment:
        """Answer a gateway; what it was given is durable before it hears of it.

        Raises:
            PartyRefused: ``sender`` is no gateway.
            Conflict: the name of the allotment was used for another key or by another gateway.
        """
        self._parties.require(sender, Role.GATEWAY)
        gateway, now_ms = raw_public(sender), self._clock.now_ms()
        answer, owner = await self._store.write(
            lambda connection: grant(connection, gateway, request, now_ms)
        )
        if answer.shortage is Shortage.ELSEWHERE:
            await self._publish(FundsChanged(owner, recall=True))
        return answer

    async def run(self) -> None:
        """Release what expired, until cancelled."""
        # Distributors that waited for this registry must be heard first.
        await anyio.sleep(SETTLE_MS / 1000)
        while True:
            released = await self._store.write(partial(_look_after, now_ms=self._clock.now_ms()))
            for owner, amount in released.items():
                event(_LOG, "allotments_expired", logging.WARNING, customer=owner, nano=amount)
                await self._publish(FundsChanged(owner))
            await anyio.sleep(EXPIRE_EVERY_S)


def grant(
    connection: Connection, gateway: bytes, request: AllotmentRequest, now_ms: int
) -> tuple[Allotment, int]:
    """Take back what a gateway gives back, and set aside what it asks for; and the key's owner.

    Raises:
        Conflict: the allotment's name is in use for another key or by another gateway.
    """
    for one in request.spent:
        take_back(connection, gateway, one, now_ms)
    key = _key(connection, request.customer)
    if key is None:
        return _refusal(request, 0, Shortage.NO_KEY), 0
    known = _known(connection, gateway, request, now_ms)
    if known is not None:
        return known, key.owner
    there = StoredShelf(connection).totals(available(key.owner)).balance
    most, shortage = max(0, there - reserved(connection, key.owner)), Shortage.BALANCE
    if key.budget_nano is not None:
        left = max(0, key.budget_nano - key.spent_nano - _open(connection, request.customer))
        if left <= most:
            most, shortage = left, Shortage.BUDGET
    least = max(1, request.least_nano_usd)
    if not request.wanted_nano_usd:
        return _refusal(request, most, Shortage.NONE), key.owner
    if most < least:
        if _is_elsewhere(connection, gateway, key, request, shortage):
            shortage = Shortage.ELSEWHERE
        return _refusal(request, most, shortage), key.owner
    amount = min(request.wanted_nano_usd, max(least, most // SHARE))
    placed = HoldPlaced(
        event_id=event_id(b"hold", request.hold_id),
        at_ms=now_ms,
        hold_id=request.hold_id,
        customer=key.owner,
        payer=request.customer,
        amount=amount,
        expires_ms=now_ms + LIFETIME_MS,
        gateway=gateway,
    )
    apply_event(connection, placed)
    left = min(most - amount, AMOUNT_MAX)
    return Allotment(request.hold_id, amount, placed.expires_ms, left), key.owner


def take_back(connection: Connection, gateway: bytes, one: SpentAllotment, now_ms: int) -> None:
    """Release what was not used of a hold; the same again, or of no such hold, changes nothing.

    What captures have drawn already counts as used: of the rest, what was used stays held.
    """
    found = next(
        rows(
            connection,
            "SELECT amount, remaining FROM hold"
            " WHERE hold_id = ? AND gateway = ? AND used IS NULL AND closed_ms IS NULL",
            one.hold_id,
            gateway,
        ),
        None,
    )
    if found is None:
        return
    amount, remaining = found
    used = min(one.used_nano_usd, amount)
    connection.execute(
        "UPDATE hold SET used = ?, expires_ms = ? WHERE hold_id = ?",
        (used, now_ms + SETTLE_MS, one.hold_id),
    )
    keep = max(0, used - (amount - remaining))
    if remaining > keep:
        _release(connection, b"returned", one.hold_id, remaining - keep, now_ms)


def expire(connection: Connection, now_ms: int) -> dict[int, int]:
    """Release what is left of expired holds; how much of each customer's, in nano-USD."""
    found = list(
        rows(
            connection,
            "SELECT hold_id, customer, remaining FROM hold WHERE closed_ms IS NULL"
            " AND (expires_ms < ? OR (used IS NOT NULL AND expires_ms < ?)) LIMIT ?",
            now_ms - GRACE_MS,
            now_ms,
            EXPIRED_MAX,
        )
    )
    released: dict[int, int] = {}
    for hold_id, customer, remaining in found:
        _release(connection, b"expired", hold_id, None, now_ms)
        released[customer] = released.get(customer, 0) + remaining
    return released


def _look_after(connection: Connection, now_ms: int) -> dict[int, int]:
    """Release what expired; what became available since pays first what its customer owes."""
    released = expire(connection, now_ms)
    collect(connection, now_ms)
    return released


def _release(
    connection: Connection, why: bytes, hold_id: bytes, amount: int | None, now_ms: int
) -> None:
    released = HoldReleased(
        event_id=event_id(why, hold_id), at_ms=now_ms, hold_id=hold_id, amount=amount
    )
    apply_event(connection, released)


def _key(connection: Connection, payer: int) -> _Key | None:
    found = rows(
        connection,
        "SELECT owner, budget_nano, spent_nano FROM key"
        " WHERE customer = ? AND revoked_ms IS NULL AND owner IS NOT NULL",
        payer,
    )
    return next((_Key(*row) for row in found), None)


def _known(
    connection: Connection, gateway: bytes, request: AllotmentRequest, now_ms: int
) -> Allotment | None:
    """The answer that was lost, if this was answered before and is still good."""
    found: tuple[Any, ...] | None = next(
        rows(
            connection,
            "SELECT payer, gateway, amount, expires_ms, used, closed_ms FROM hold"
            " WHERE hold_id = ?",
            request.hold_id,
        ),
        None,
    )
    if found is None:
        return None
    payer, of_gateway, amount, expires_ms, used, closed_ms = found
    if (payer, of_gateway) != (request.customer, gateway):
        raise Conflict("this allotment's name is in use")
    if used is not None or closed_ms is not None or expires_ms <= now_ms:
        return _refusal(request, 0, Shortage.NONE)
    return Allotment(request.hold_id, amount, expires_ms, 0)


def _open(connection: Connection, payer: int) -> int:
    ((held,),) = rows(
        connection,
        "SELECT CAST(coalesce(sum(remaining), 0) AS BIGINT) FROM hold"
        " WHERE payer = ? AND closed_ms IS NULL",
        payer,
    )
    amount: int = held
    return amount


def _is_elsewhere(
    connection: Connection,
    gateway: bytes,
    key: _Key,
    request: AllotmentRequest,
    shortage: Shortage,
) -> bool:
    """Whether what is missing is set aside for other keys or gateways, which may not need it."""
    column, of = (
        ("payer", request.customer) if shortage is Shortage.BUDGET else ("customer", key.owner)
    )
    ((count,),) = rows(
        connection,
        f"SELECT count(*) FROM hold WHERE {column} = ? AND closed_ms IS NULL AND used IS NULL"  # noqa: S608
        " AND payer <> ? AND NOT (payer = ? AND gateway = ?)",
        of,
        NO_KEY,
        request.customer,
        gateway,
    )
    return bool(count)


def _refusal(request: AllotmentRequest, most: int, shortage: Shortage) -> Allotment:
    return Allotment(request.hold_id, 0, 0, min(most, AMOUNT_MAX), shortage)
