"""Who pays for a request, settled in memory: nothing waits for the registry before the first token.

The registry sets money of a key's owner aside for this gateway ahead of time (an allotment); a
request takes the most that it can cost and puts back what it did not. Below half of an allotment
the next one is asked for in the background. Only a key without any waits, once and not for long.
What allotments promise, several gateways cannot spend twice: each is a hold in the books. One that
a dying gateway leaves behind is released by the registry when it expires. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
from anyio.abc import TaskGroup

from starai.core.concurrency import task_group
from starai.core.errors import MalformedFrame, StarAIError, Unavailable
from starai.core.logging import event
from starai.core.randomness import uuid7
from starai.exchange.member import Member
from starai.gateway.errors import FundsMissing
from starai.gateway.paying.keys import Account, KeyRing
from starai.gateway.paying.pricing import PriceBook
from starai.gateway.paying.purses import Purse
from starai.protocol.frames import decode, encode
from starai.protocol.ports import Delivery
from starai.protocol.registry import (
    SPENT_MAX,
    Allotment,
    AllotmentRequest,
    FundsChanged,
    Shortage,
    SpentAllotment,
)
from starai.protocol.subjects import FUNDS_CHANGED, registry

_LOG = logging.getLogger(__name__)

#: A key's first allotment pays one request of so many tokens in and out, by the dearest price.
OPENING_TOKENS: Final = 4096
#: Requests of the largest kind that an allotment has room for, so that some may begin at once.
REQUESTS_PER_ALLOTMENT: Final = 8
#: An allotment is doubled when it lasted less than this: the registry has other work, too.
LASTS_S: Final = 10.0
#: A million USD: nobody's traffic, and far inside what a message may say.
WANTED_MAX: Final = 10**15
#: An allotment is renewed this long before its end, so that none ends under its requests.
RENEW_EARLY_S: Final = 60.0
#: The longest that a request waits for its key's money, and that one answer may take.
WAIT_S: Final = 2.0
ANSWER_S: Final = 1.0
#: A "no" of the registry stands this long, unless it says that something changed.
QUIET_S: Final = 0.5
#: The pause before asking again a registry that is away, or for what others were asked to return.
AGAIN_S: Final = 0.1
#: How often it is asked again for what others were told to return: they do so within milliseconds.
RECALLS_MAX: Final = 3
#: Keys whose money is asked for at once.
IN_FLIGHT_MAX: Final = 32
#: New keys, new prices and allotments near their end are looked for this often.
LOOK_S: Final = 0.5
#: How long giving everything back may take when the gateway stops.
CLOSE_S: Final = 2.0


class Funding:
    """The purses of all keys of one gateway."""

    def __init__(self, member: Member, keys: KeyRing, prices: PriceBook) -> None:
        """Speak as ``member``; ``keys`` and ``prices`` are kept current by others."""
        self._member = member
        self._keys = keys
        self.prices = prices
        self._purses: dict[int, Purse] = {}
        self._known = (-1, -1)
        self._limiter = anyio.CapacityLimiter(IN_FLIGHT_MAX)
        self._group: TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask for money inside the context; leaving it gives back what was not used."""
        async with (
            self._member.wire.subscribe(FUNDS_CHANGED, self._on_change),
            task_group() as group,
        ):
            self._group = group
            group.start_soon(self._look_after)
            try:
                yield
            finally:
                self._group = None
                group.cancel_scope.cancel()
                with anyio.move_on_after(CLOSE_S, shield=True):
                    await self._give_all_back()

    async def take(self, account: Account, amount: int) -> None:
        """Take ``amount`` nano-USD for a request of a key; it waits only if there is too little.

        Raises:
            FundsMissing: the key's owner, or its budget, has not that much.
            Unavailable: the registry did not answer in time.
        """
        purse = account.purse or self._open(account)
        if not purse.take(amount):
            await self._wait(purse, amount)
        purse.largest = max(purse.largest, amount)
        if purse.left < purse.low:
            self._want(purse)

    @staticmethod
    def settle(account: Account, taken: int, spent: int) -> None:
        """Of what a request took, ``spent`` was or will be charged."""
        if account.purse is not None:
            account.purse.settle(taken, min(taken, spent))

    # What is below is not on the road of a request that finds its money there.

    def _open(self, account: Account) -> Purse:
        entry = account.entry
        purse = self._purses.get(entry.customer)
        if purse is None:
            opening = max(1, self.prices.dearest(OPENING_TOKENS, OPENING_TOKENS))
            purse = self._purses[entry.customer] = Purse(entry.customer, entry.owner, opening)
        account.purse = purse
        return purse

    async def _wait(self, purse: Purse, amount: int) -> None:
        """Wait until ``amount`` could be taken, or is known not to come."""
        if purse.lacks(amount, self._now_s()):
            raise _missing(purse, amount)
        purse.waiting.append(amount)
        recalls = 0
        try:
            with anyio.move_on_after(WAIT_S):
                while True:
                    news = purse.news
                    self._want(purse, urgent=True)
                    await news.wait()
                    if purse.take(amount):
                        return
                    recalls += purse.shortage is Shortage.ELSEWHERE
                    if recalls > RECALLS_MAX or purse.lacks(amount, self._now_s()):
                        raise _missing(purse, amount)
                    if self._now_s() < purse.quiet_until_s:
                        await anyio.sleep(AGAIN_S)
        finally:
            purse.waiting.remove(amount)
        if purse.shortage is not Shortage.NONE:
            raise _missing(purse, amount)
        raise Unavailable(
            "The network's registry does not answer, so it is not known whether your balance "
            "suffices; try again shortly.",
            retry_after_s=1.0,
        )

    def _want(self, purse: Purse, *, urgent: bool = False) -> None:
        """Ask for more soon, unless that is under way or was just refused."""
        if urgent or self._now_s() >= purse.quiet_until_s:
            self._start(purse, self._size(purse))

    def _start(self, purse: Purse, wanted: int) -> None:
        if self._group is not None and not purse.asking:
            purse.asking = True
            self._group.start_soon(self._ask, purse, wanted)

    def _size(self, purse: Purse) -> int:
        """How much to ask for: enough for all that wait, and so much that it lasts."""
        if purse.grants and self._now_s() - purse.put_s < LASTS_S:
            purse.size *= 2
        purse.size = min(WANTED_MAX, max(purse.size, REQUESTS_PER_ALLOTMENT * purse.largest))
        return min(WANTED_MAX, max(purse.size, sum(purse.waiting) - purse.left))

    async def _ask(self, purse: Purse, wanted: int) -> None:
        """Ask once; ``wanted`` 0 only gives back."""
        try:
            async with self._limiter:
                await self._ask_once(purse, wanted)
        finally:
            purse.asking = False
            news, purse.news = purse.news, anyio.Event()
            news.set()

    async def _ask_once(self, purse: Purse, wanted: int) -> None:
        member = self._member
        least = min(purse.waiting) - purse.left if purse.waiting else purse.largest
        spent = tuple(purse.spent[:SPENT_MAX])
        purse.hold_id = purse.hold_id or uuid7(member.clock, member.randomness)
        request = AllotmentRequest(
            gateway=member.identity.party,
            customer=purse.customer,
            hold_id=purse.hold_id,
            wanted_nano_usd=wanted,
            least_nano_usd=min(wanted, max(1, least)),
            spent=spent,
        )
        subject = registry("allotments", member.identity.party)
        try:
            frame = await member.wire.request(subject, encode(request), timeout_s=ANSWER_S)
            answer = decode(frame, Allotment)
        except StarAIError as error:  # asked again under the same name: set aside once
            event(_LOG, "allotment_not_fetched", logging.DEBUG, code=error.code)
            purse.shortage, purse.quiet_until_s = Shortage.NONE, self._now_s() + AGAIN_S
            return
        del purse.spent[: len(spent)]
        if wanted:
            purse.hold_id = b""
            self._put(purse, answer)

    def _put(self, purse: Purse, answer: Allotment) -> None:
        now_s = self._now_s()
        if answer.amount_nano_usd:
            end_s = now_s + (answer.expires_ms - self._member.clock.now_ms()) / 1000
            purse.put(answer, now_s, end_s - RENEW_EARLY_S, end_s)
        else:
            purse.shortage, purse.available = answer.shortage, answer.available_nano_usd
            purse.quiet_until_s = now_s + QUIET_S

    def _on_change(self, delivery: Delivery) -> None:
        try:
            change = decode(delivery.payload, FundsChanged)
        except MalformedFrame:
            return
        for purse in self._purses.values():
            if purse.owner == change.owner and change.recall:
                self._let_go(purse)
            elif purse.owner == change.owner:
                purse.quiet_until_s = 0.0
                if not purse.grants:
                    self._want(purse)

    async def _look_after(self) -> None:
        """Open purses for new keys, renew what is used, give back what is not."""
        while True:
            known = (self._keys.version, self.prices.version)
            if known != self._known and not self.prices.is_free:
                self._open_all(every=known[1] != self._known[1])
                self._known = known
            for purse in self._purses.values():
                self._look_at(purse, self._now_s())
            await anyio.sleep(LOOK_S)

    def _open_all(self, *, every: bool) -> None:
        """Fill purses of new keys, or of ``every`` one; empty those of keys that are revoked."""
        live = {one.customer: one for one in self._keys.accounts() if not one.entry.revoked}
        for purse in self._purses.values():
            if purse.customer not in live:
                self._let_go(purse)
        for account in live.values():
            is_new = account.purse is None
            purse = account.purse or self._open(account)
            if not purse.grants and (every or is_new):
                self._want(purse)

    def _look_at(self, purse: Purse, now_s: float) -> None:
        """See to a purse's oldest allotment, and to what is to be given back."""
        if purse.grants and now_s >= purse.grants[0].renew_s:
            if purse.is_used and purse.grants[-1].renew_s <= now_s < purse.grants[0].end_s:
                self._want(purse)
            elif purse.retire(now_s) and not purse.is_used:
                purse.size = max(1, purse.size // 2)
        if purse.spent and not purse.grants:
            self._start(purse, 0)

    def _let_go(self, purse: Purse) -> None:
        purse.retire_all(self._now_s())
        if purse.spent:
            self._start(purse, 0)

    async def _give_all_back(self) -> None:
        async with task_group() as group:
            for purse in self._purses.values():
                purse.retire_all(self._now_s())
                if purse.hold_id:  # asked for, and nobody will hear the answer
                    purse.spent.append(SpentAllotment(purse.hold_id, 0))
                    purse.hold_id = b""
                if purse.spent:
                    group.start_soon(self._ask, purse, 0)

    def _now_s(self) -> float:
        return self._member.clock.monotonic_s()


def _missing(purse: Purse, amount: int) -> FundsMissing:
    available = max(purse.left, 0) + purse.available
    return FundsMissing(amount, available, by_budget=purse.shortage is Shortage.BUDGET)
