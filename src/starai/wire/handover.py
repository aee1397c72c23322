"""Two connections side by side: each message once, though both of them bring it."""

from __future__ import annotations

from collections import Counter
from typing import Final

from starai.protocol.ports import Delivery
from starai.wire.link import Link, Receive

#: How long both connections may live side by side while the credential is swapped.
HANDOVER_S: Final = 5.0
#: How long both hear at least. A server may have chosen a message's receivers just before it took
#: note of the new connection and pass it on just after it forgot the old one (seen once in 20,000
#: messages on a loaded machine without this).
OVERLAP_S: Final = 0.05
#: Messages held back during that time.
HELD_MAX: Final = 65_536


class Handover:
    """While both links hear, ``new``'s messages are held back and ``old``'s are delivered.

    Once ``old`` has brought all that it ever will, `finish` strikes what it brought from what was
    held and delivers the rest: no message is lost, none comes twice, and those of one publisher
    stay in order. Two messages equal byte for byte count as one: nothing of ours that matters is
    ever sent twice with the same bytes.
    """

    def __init__(self, old: Link, new: Link, deliver: Receive) -> None:
        """Begin: from here on ``deliver`` is called for each message once."""
        self._new = new
        self._deliver = deliver
        self._brought: Counter[tuple[int, Delivery]] = Counter()
        self._held: list[tuple[int, Delivery, bool]] = []
        old.receive = self._bring
        new.receive = self._hold

    def finish(self) -> None:
        """End: ``old`` brings nothing more, and ``new`` has brought all that ``old`` did."""
        self._new.receive = self._deliver
        for sid, delivery, absent in self._held:
            if self._brought[(sid, delivery)]:
                self._brought[(sid, delivery)] -= 1
            else:
                self._deliver(sid, delivery, absent)

    def _bring(self, sid: int, delivery: Delivery, absent: bool) -> None:
        self._brought[(sid, delivery)] += 1
        self._deliver(sid, delivery, absent)

    def _hold(self, sid: int, delivery: Delivery, absent: bool) -> None:
        if len(self._held) < HELD_MAX:
            self._held.append((sid, delivery, absent))
