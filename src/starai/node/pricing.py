"""What a node must be offered at least: the operator's price of its model, as the registry tells.

Where a gateway and a distributor agree on less, the node would work for less: the registry pays
no more than both sides confirm, and nothing by a row that does not exist. So a node refuses such
an offer, out of memory. Until it has heard a table it serves whatever comes. Knows nothing of who
pays, nor of what a node's share is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio

from starai.core.clock import Clock
from starai.core.limits import REQUEST_DEADLINE_S
from starai.exchange.following import follow_prices
from starai.exchange.member import Member
from starai.fitting.admission import ANSWER_TOKENS, PROMPT_TOKENS
from starai.ledger.prices import ANY_MODEL
from starai.protocol.registry import PriceEntry, Prices
from starai.protocol.tasks import TaskHeader

#: A request keeps the price it came in by, so one that was replaced is good for so long.
GRACE_MS: Final = int(REQUEST_DEADLINE_S * 1000)
#: A gateway's clock may be ahead of this one: a price that will hold is good so long before.
SKEW_MS: Final = 60_000
#: A gateway may hear of a price a moment before the node does.
HEAR_S: Final = 1.0
#: Nobody waits for a node's first table, and there are many nodes.
RETRY_S: Final = 5.0

#: What holds as long as the operator has set nothing else.
_FREE: Final = PriceEntry(0, ANY_MODEL, 0, 0, 0)


class LeastPrices:
    """The prices that a node has heard of, and whether an offer is below them."""

    def __init__(self, clock: Clock) -> None:
        """Start empty."""
        self._clock = clock
        #: By model, in the order in which they begin; None until a table has come.
        self._rows: dict[str, list[PriceEntry]] | None = None
        self._version = 0
        self._news = anyio.Event()

    @asynccontextmanager
    async def following(self, member: Member) -> AsyncIterator[None]:
        """Stay current inside the context."""
        async with follow_prices(member, self.apply, RETRY_S):
            yield

    def apply(self, table: Prices) -> bool:
        """Take over a table; what it has no more stays as long as a request may go by it."""
        first_ms = self._clock.now_ms() - GRACE_MS
        known = {one.price_id: one for rows in (self._rows or {}).values() for one in rows}
        known |= {one.price_id: one for one in (_FREE, *table.entries)}
        self._rows = {}
        for one in sorted(known.values(), key=lambda one: (one.valid_from_ms, one.price_id)):
            rows = self._rows.setdefault(one.model, [])
            if one.valid_from_ms <= first_ms:
                rows.clear()
            rows.append(one)
        self._version = max(self._version, table.version)
        news, self._news = self._news, anyio.Event()
        news.set()
        return True

    async def is_enough(self, header: TaskHeader, model: str, *, has_accepted: bool) -> bool:
        """Whether an offer for ``model`` goes by a price that holds, or did when it was made.

        With ``has_accepted`` the prompt was paid for before. A task of nobody's, as short as those
        that distributors measure nodes by, is free. It waits only for a row newer than all known.
        """
        if self._rows is None or _is_measurement(header):
            return True
        with anyio.move_on_after(HEAR_S):
            while header.price_id > self._version:
                await self._news.wait()
        return any(_meets(header, row, has_accepted) for row in self._held(model))

    def _held(self, model: str) -> list[PriceEntry]:
        """The rows of ``model`` that hold at some moment at which the offer may have been made."""
        now_ms = self._clock.now_ms()
        rows = self._rows or {}
        mine = [*rows.get(ANY_MODEL, ()), *(rows.get(model, ()) if model != ANY_MODEL else ())]
        begins = {one.valid_from_ms for one in mine}
        moments = [now_ms - GRACE_MS, *(at for at in begins if -GRACE_MS < at - now_ms <= SKEW_MS)]
        return [_at(mine, moment) for moment in moments]


def _at(rows: list[PriceEntry], moment_ms: int) -> PriceEntry:
    """The row that holds: a model's own goes before that of any, a later one before others."""
    begun = [one for one in rows if one.valid_from_ms <= moment_ms]
    return max(
        begun,
        key=lambda one: (one.model != ANY_MODEL, one.valid_from_ms, one.price_id),
        default=_FREE,
    )


def _meets(header: TaskHeader, row: PriceEntry, has_accepted: bool) -> bool:
    """Whether the registry would pay by ``row`` in full; where it is free, anything does."""
    is_free = not (row.input_nano_usd or row.output_nano_usd)
    return is_free or (
        header.price_id == row.price_id
        and (has_accepted or header.input_nano_usd >= row.input_nano_usd)
        and header.output_nano_usd >= row.output_nano_usd
    )


def _is_measurement(header: TaskHeader) -> bool:
    short = header.prompt_tokens <= PROMPT_TOKENS and header.max_tokens <= ANSWER_TOKENS
    return header.customer == 0 and short
