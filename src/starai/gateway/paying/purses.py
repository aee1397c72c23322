"""What one key may still spend at one gateway: allotments, and what requests take of them.

A request takes the most that it can cost and puts back what it did not; both are additions. Which
allotment was spent matters to the registry only, so what is spent counts against the oldest. Knows
nothing of the wire, nor of when to ask for more: `starai.gateway.paying.funding` does.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import anyio

from starai.protocol.registry import Allotment, Shortage, SpentAllotment

#: Answers that may soon be others: all is well, or gateways were asked to give back.
_OPEN: Final = (Shortage.NONE, Shortage.ELSEWHERE)


class _Grant:
    """An open allotment; it is not renewed after ``renew_s`` and not counted on after ``end_s``."""

    __slots__ = ("amount", "end_s", "hold_id", "renew_s", "spent")

    def __init__(self, hold_id: bytes, amount: int, renew_s: float, end_s: float) -> None:
        self.hold_id = hold_id
        self.amount = amount
        self.spent = 0
        self.renew_s = renew_s
        self.end_s = end_s


class Purse:
    """One key's money at this gateway, in nano-USD. Times are monotonic seconds."""

    __slots__ = (
        "asking",
        "available",
        "customer",
        "grants",
        "hold_id",
        "is_used",
        "largest",
        "left",
        "low",
        "news",
        "owner",
        "put_s",
        "quiet_until_s",
        "shortage",
        "size",
        "spent",
        "waiting",
    )

    def __init__(self, customer: int, owner: int, opening: int) -> None:
        """Start empty; the first allotment asked for is ``opening``."""
        self.customer = customer
        self.owner = owner
        #: What a request may take now. Below 0 when an allotment ran out under requests.
        self.left = 0
        #: Below this more is asked for.
        self.low = 0
        #: How much is asked for; grows while it is used up fast.
        self.size = opening
        #: The most that one request wanted.
        self.largest = 1
        self.grants: deque[_Grant] = deque()
        #: Allotments to give back with the next request.
        self.spent: list[SpentAllotment] = []
        #: What requests that wait want, each.
        self.waiting: list[int] = []
        #: Set, and replaced, whenever the registry has answered.
        self.news = anyio.Event()
        #: When the newest allotment came.
        self.put_s = 0.0
        self.asking = False
        #: The name of the allotment that was asked for and not answered yet.
        self.hold_id = b""
        #: Whether something was taken since the newest allotment came.
        self.is_used = False
        #: What the last answer said, if it was no: why, and what could be had.
        self.shortage = Shortage.NONE
        self.available = 0
        #: Until then that answer stands.
        self.quiet_until_s = 0.0

    def take(self, amount: int) -> bool:
        """Take ``amount``, if it is there."""
        if amount > self.left:
            return False
        self.left -= amount
        self.is_used = True
        return True

    def settle(self, taken: int, spent: int) -> None:
        """Of ``taken``, ``spent`` (at most all) was or will be charged; put the rest back."""
        self.left += taken - spent
        while spent and self.grants:
            grant = self.grants[0]
            part = min(spent, grant.amount - grant.spent)
            grant.spent += part
            spent -= part
            if grant.spent < grant.amount:
                return
            self._give_back(grant)
        # What no allotment is left to count against was taken off when its own came to its end.
        self.left += spent

    def put(self, allotment: Allotment, now_s: float, renew_s: float, end_s: float) -> None:
        """Take in what the registry set aside."""
        amount = allotment.amount_nano_usd
        self.grants.append(_Grant(allotment.hold_id, amount, renew_s, end_s))
        self.left += amount
        self.low = amount // 2
        self.put_s, self.is_used = now_s, False
        self.shortage, self.quiet_until_s = Shortage.NONE, now_s

    def lacks(self, amount: int, now_s: float) -> bool:
        """Whether the registry has just said that ``amount`` cannot be had."""
        refused = self.shortage not in _OPEN and now_s < self.quiet_until_s
        return refused and amount > max(self.left, 0) + self.available

    def retire(self, now_s: float) -> bool:
        """Let go of the oldest allotment; False: requests in progress count on it.

        At its end it is let go of in any case, unreported: the registry keeps it for what those
        requests may still cost, and releases the rest by itself.
        """
        grant = self.grants[0]
        rest = grant.amount - grant.spent
        if self.left >= rest:
            self.left -= rest
            self._give_back(grant)
            return True
        if now_s >= grant.end_s:
            self.left -= rest
            self.grants.popleft()
            return True
        return False

    def retire_all(self, now_s: float) -> None:
        """Let go of all that requests in progress do not count on."""
        while self.grants and self.retire(now_s):
            pass

    def _give_back(self, grant: _Grant) -> None:
        self.spent.append(SpentAllotment(grant.hold_id, grant.spent))
        self.grants.popleft()
