"""Keeps one party's flood from being everybody's: counts what should not have come, and shuts out.

Each party has a bucket of tokens that fills at a steady rate (the leaky bucket of J. Turner, "New
directions in communications", 1986). What it sends unasked takes one; with none left, all it sends
is dropped unread for a while. Pure: time is an argument, in monotonic seconds.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final

from starai.protocol.identity import PartyId

#: How long a flood's sender is not listened to. Its tasks go elsewhere.
SHUT_S: Final = 10.0
#: Parties whose buckets are kept; who was quiet longest starts with a full one again.
BUCKETS_MAX: Final = 4096


class Guard:
    """Buckets of messages that nobody asked for, one a party."""

    def __init__(self, per_second: float, burst: int) -> None:
        """Allow each party ``burst`` at once and ``per_second`` in the long run."""
        self._per_second = per_second
        self._burst = burst
        self._buckets: OrderedDict[PartyId, tuple[float, float]] = OrderedDict()
        #: Who is shut out, until when.
        self.shut: dict[PartyId, float] = {}
        #: How many messages of which kind were refused so far.
        self.refused: Counter[str] = Counter()

    def is_shut(self, party: PartyId, now_s: float) -> bool:
        """Whether this party is not listened to just now; counts the message that it sent."""
        until_s = self.shut.get(party)
        if until_s is None:
            return False
        if now_s >= until_s:
            del self.shut[party]
            return False
        self.refused["flood"] += 1
        return True

    def count(self, party: PartyId, kind: str, now_s: float) -> bool:
        """Count a message of a ``kind`` that should not have come; True: now it is a flood."""
        self.refused[kind] += 1
        return self.spend(party, now_s)

    def spend(self, party: PartyId, now_s: float) -> bool:
        """Take one token; True when there is none: the party is shut out from now on."""
        left, at_s = self._buckets.get(party, (float(self._burst), now_s))
        left = min(self._burst, left + (now_s - at_s) * self._per_second) - 1.0
        self._buckets[party] = (left, now_s)
        self._buckets.move_to_end(party)
        if len(self._buckets) > BUCKETS_MAX:
            self._buckets.popitem(last=False)
        if left >= 0.0:
            return False
        del self._buckets[party]
        self.shut = {who: until for who, until in self.shut.items() if until > now_s}
        self.shut[party] = now_s + SHUT_S
        return True
