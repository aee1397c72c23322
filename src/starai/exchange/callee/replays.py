"""Which offers have come already: an offer is run once, however often it is said.

To run a replayed offer would be worse than waste: a second answer under the same keys gives away
both. Offers are remembered, not for ever: what is forgotten moves its caller's horizon, and what
is not newer than that counts as seen too. A callee that starts anew has forgotten its prekeys
with its memory: nothing from before opens. Knows nothing of seals; ask it about authentic headers.
"""

from __future__ import annotations

from collections import OrderedDict

from starai.exchange.base import TaskKey
from starai.protocol.identity import PartyId
from starai.protocol.tasks import TaskHeader

#: Offers remembered: seconds of a busy distributor's, hours of a node's; about 2 MB.
OFFERS_REMEMBERED_MAX = 8192


class SeenOffers:
    """The offers that were taken up."""

    def __init__(self, limit: int = OFFERS_REMEMBERED_MAX) -> None:
        """Remember ``limit`` offers."""
        self._limit = limit
        self._offers: OrderedDict[TaskKey, tuple[PartyId, int]] = OrderedDict()
        # One entry a caller, and a caller has a credential: there are few.
        self._horizons: dict[PartyId, int] = {}

    def __contains__(self, header: TaskHeader) -> bool:
        """Whether this offer has come before, or is so old that it may have."""
        if (header.task_id, header.attempt) in self._offers:
            return True
        return header.offered_ms <= self._horizons.get(header.caller, -1)

    def add(self, header: TaskHeader) -> None:
        """Remember an offer that is taken up."""
        self._offers[header.task_id, header.attempt] = (header.caller, header.offered_ms)
        if len(self._offers) > self._limit:
            _, (caller, offered_ms) = self._offers.popitem(last=False)
            self._horizons[caller] = max(offered_ms, self._horizons.get(caller, -1))
