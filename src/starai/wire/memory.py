"""A network in memory: the same promises as NATS, and on demand none of them kept.

Latency, loss, duplication, reordering, partitions and outages come from a seed, so that the same
seed gives the same deliveries under trio's virtual clock. Without faults a message costs two
dictionary look-ups and no task. Knows nothing of what the messages mean.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, Self

import anyio
import msgspec
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from starai.core.errors import DeadlinePassed, PartyRefused, RequestTooLarge, Unavailable
from starai.core.limits import FRAME_BYTES_MAX
from starai.core.logging import event
from starai.core.randomness import Randomness, SeededRandomness
from starai.protocol.identity import PartyId
from starai.protocol.ports import Delivery, Handler
from starai.protocol.subjects import Permissions, Role, inbox, permissions
from starai.wire.delivering import hand_over
from starai.wire.patterns import check_pattern, check_subject, covered, matches

_LOG = logging.getLogger(__name__)

#: Messages on their way at once: far above what a simulation needs, far below memory's end.
IN_FLIGHT_MAX: Final = 65_536
#: Messages that one party keeps while it is cut off.
BUFFERED_MAX: Final = 4_096
#: Deliveries between two looks at the event loop, so that handlers cannot starve it.
_BURST: Final = 256
#: Subjects whose receivers are remembered.
_ROUTES_MAX: Final = 8_192


class Faults(msgspec.Struct, frozen=True):
    """How badly messages travel. Each receiver of a message has its own luck.

    ``latency_s`` plus up to ``jitter_s`` passes before each delivery; ``loss``, ``duplication``
    and ``reordering`` are the shares of deliveries that vanish, come twice, or are held back by
    up to ``reordering_s`` more while later ones overtake them.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    reordering_s: float = 0.05


class _Subscription:
    """One handler's interest."""

    __slots__ = ("alive", "handler", "last_due_s", "pattern", "queue", "wire")

    def __init__(self, wire: MemoryWire, pattern: str, handler: Handler, queue: str) -> None:
        self.wire = wire
        self.pattern = pattern
        self.handler = handler
        self.queue = queue
        self.alive = True
        #: When the last delivery from each publisher comes, so that none overtakes it.
        self.last_due_s: dict[PartyId, float] = {}


class MemoryNetwork:
    """The network; use it as an async context manager and connect parties to it."""

    def __init__(self, randomness: Randomness | None = None, faults: Faults | None = None) -> None:
        """Take the source of chance (a fixed seed if none) and the faults to begin with."""
        self.faults = faults or Faults()
        self._randomness = randomness or SeededRandomness(0)
        self._subscriptions: list[_Subscription] = []
        self._routes: dict[str, tuple[_Subscription, ...]] = {}
        self._ready: deque[tuple[_Subscription, Delivery]] = deque()
        self._later: list[tuple[float, int, _Subscription, Delivery]] = []
        self._sequence = 0
        self._wake = anyio.Event()
        self._asleep = False
        self._cuts: list[tuple[frozenset[PartyId], frozenset[PartyId]]] = []
        self._wires: list[MemoryWire] = []
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._pump)
        return self

    async def __aexit__(self, *exc_info: object) -> bool | None:
        assert self._tasks is not None  # noqa: S101 - entered before left
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(*exc_info)  # type: ignore[arg-type]

    def connect(self, party: PartyId, role: Role | None = None) -> MemoryWire:
        """A connection of ``party``; with a ``role``, held to that role's permissions."""
        wire = MemoryWire(self, party, permissions(role, party) if role else None)
        self._wires.append(wire)
        return wire

    def revoke(self, party: PartyId) -> None:
        """Put ``party`` out at once and for good."""
        for wire in [wire for wire in self._wires if wire.party == party]:
            wire._refuse(PartyRefused("the credential was revoked; join again with a new token"))

    @contextmanager
    def partition(self, one: Iterable[PartyId], other: Iterable[PartyId]) -> Iterator[None]:
        """Lose every message between the two groups, both ways, inside the context."""
        cut = (frozenset(one), frozenset(other))
        self._cuts.append(cut)
        try:
            yield
        finally:
            self._cuts.remove(cut)

    @contextmanager
    def outage(self, *parties: PartyId) -> Iterator[None]:
        """Disconnect the given parties (all, if none is given) inside the context.

        Messages already on their way to them are lost, as when a server dies.
        """
        lost = [wire for wire in self._wires if not parties or wire.party in parties]
        for wire in lost:
            wire._disconnect()
        try:
            yield
        finally:
            back = [wire for wire in lost if wire._reconnect()]
            for wire in back:
                wire._flush()

    # -- for MemoryWire ---------------------------------------------------------------------

    def _add(self, subscription: _Subscription) -> None:
        self._subscriptions.append(subscription)
        self._routes.clear()

    def _remove(self, subscription: _Subscription) -> None:
        subscription.alive = False
        self._subscriptions.remove(subscription)
        self._routes.clear()

    def _drop_wire(self, wire: MemoryWire) -> None:
        if wire in self._wires:
            self._wires.remove(wire)

    def _full(self) -> bool:
        return len(self._ready) + len(self._later) >= IN_FLIGHT_MAX

    def _listening(self, subject: str) -> tuple[_Subscription, ...]:
        found = self._routes.get(subject)
        if found is None:
            found = tuple(one for one in self._subscriptions if matches(one.pattern, subject))
            if len(self._routes) >= _ROUTES_MAX:
                self._routes.clear()
            self._routes[subject] = found
        return found

    def _send(self, sender: PartyId, delivery: Delivery) -> bool:
        """Put a message on its way; False when nobody listens."""
        listening = [one for one in self._listening(delivery.subject) if one.wire.connected]
        groups: dict[str, list[_Subscription]] = {}
        for one in listening:
            if one.queue:
                groups.setdefault(one.queue, []).append(one)
            else:
                self._carry(sender, one, delivery)
        for members in groups.values():
            chosen = int(self._randomness.fraction() * len(members))
            self._carry(sender, members[chosen], delivery)
        return bool(listening)

    def _carry(self, sender: PartyId, to: _Subscription, delivery: Delivery) -> None:
        if self._cuts and self._separated(sender, to.wire.party):
            return
        faults = self.faults
        if faults == _NO_FAULTS:
            self._ready.append((to, delivery))
        else:
            chance = self._randomness.fraction
            if chance() < faults.loss:
                return
            self._delay(sender, to, delivery)
            if chance() < faults.duplication:
                self._delay(sender, to, delivery)
        if self._asleep:
            self._wake.set()

    def _delay(self, sender: PartyId, to: _Subscription, delivery: Delivery) -> None:
        faults, chance = self.faults, self._randomness.fraction
        due_s = anyio.current_time() + faults.latency_s + chance() * faults.jitter_s
        if chance() < faults.reordering:
            due_s += chance() * faults.reordering_s
        else:
            due_s = max(due_s, to.last_due_s.get(sender, 0.0))
            to.last_due_s[sender] = due_s
        self._sequence += 1
        heapq.heappush(self._later, (due_s, self._sequence, to, delivery))

    def _separated(self, one: PartyId, other: PartyId) -> bool:
        return any(
            (one in left and other in right) or (one in right and other in left)
            for left, right in self._cuts
        )

    async def _pump(self) -> None:
        """Deliver what is due, then sleep until more is."""
        while True:
            now_s = anyio.current_time() if self._later else 0.0
            while self._later and self._later[0][0] <= now_s:
                _, _, to, delivery = heapq.heappop(self._later)
                self._ready.append((to, delivery))
            for _ in range(min(_BURST, len(self._ready))):
                to, delivery = self._ready.popleft()
                if to.alive and to.wire.connected:
                    hand_over(to.handler, delivery)
            if self._ready:
                await checkpoint()
                continue
            wait_s = self._later[0][0] - anyio.current_time() if self._later else math.inf
            self._wake = anyio.Event()
            self._asleep = True
            with anyio.move_on_after(max(0.0, wait_s)):
                await self._wake.wait()
            self._asleep = False


_NO_FAULTS: Final = Faults()


class _Pending:
    """A request that awaits its answer."""

    __slots__ = ("answered", "payload")

    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.payload: bytes | None = None


class MemoryWire:
    """A party's connection to a `MemoryNetwork`; a `starai.protocol.ports.Wire`."""

    def __init__(self, network: MemoryNetwork, party: PartyId, opened: Permissions | None) -> None:
        self._network = network
        self._party = party
        self._opened = opened
        self._may: set[str] = set()
        self._connected = True
        self._buffer: deque[Delivery] = deque()
        self._asked = 0
        self._answers: _Subscription | None = None
        self._pending: dict[str, _Pending] = {}
        self._refused = anyio.Event()
        #: Why the network put this party out, once it has.
        self.refused: PartyRefused | None = None
        #: Messages that were dropped because this party may not send them.
        self.num_forbidden = 0

    @property
    def party(self) -> PartyId:
        """Who is connected."""
        return self._party

    @property
    def connected(self) -> bool:
        """Whether messages flow right now."""
        return self._connected

    async def wait_refused(self) -> PartyRefused:
        """Wait until the network puts this party out; returns why."""
        await self._refused.wait()
        assert self.refused is not None  # noqa: S101 - set before the event
        return self.refused

    async def renew(self) -> None:
        """Nothing to renew: there are no credentials in memory."""

    def close(self) -> None:
        """Leave the network: nothing arrives or leaves any more."""
        self._connected = False
        if self._answers is not None:
            self._network._remove(self._answers)
            self._answers = None
        self._network._drop_wire(self)

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Send; see `starai.protocol.ports.Wire.publish`."""
        check_subject(subject)
        if reply:
            check_subject(reply)
        if len(payload) > FRAME_BYTES_MAX:
            raise RequestTooLarge(f"a message has at most {FRAME_BYTES_MAX} bytes")
        if not self._may_publish(subject):
            return
        self._send_or_keep(Delivery(subject, payload, reply))
        if len(self._network._ready) >= _BURST:
            await checkpoint()

    def publish_soon(self, subject: str, payload: bytes) -> None:
        """Send from a place that cannot wait; see `starai.protocol.ports.Wire.publish_soon`."""
        check_subject(subject)
        fits = len(payload) <= FRAME_BYTES_MAX and not self._network._full()
        if self._connected and fits and self._may_publish(subject):
            self._network._send(self._party, Delivery(subject, payload))

    @asynccontextmanager
    async def subscribe(
        self, subject: str, handler: Handler, *, queue: str = ""
    ) -> AsyncIterator[None]:
        """Hear ``subject`` inside the context; see `starai.protocol.ports.Wire.subscribe`.

        Raises:
            PartyRefused: this party may not hear that.
        """
        check_pattern(subject)
        if self._opened and not covered(self._opened.subscribe, subject):
            raise PartyRefused(f"this party may not listen to {subject}")
        subscription = _Subscription(self, subject, handler, queue)
        self._network._add(subscription)
        try:
            yield
        finally:
            self._network._remove(subscription)

    async def request(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes:
        """Ask and await one answer; see `starai.protocol.ports.Wire.request`.

        Raises:
            PartyRefused: this party may not ask there.
        """
        if not self._may_publish(subject):
            raise PartyRefused(f"this party may not send to {subject}")
        if self._connected and not self._network._listening(subject):
            raise Unavailable("nobody answers there right now; try again shortly")
        if self._answers is None:
            self._answers = _Subscription(self, f"{inbox(self._party)}.r.*", self._answered, "")
            self._network._add(self._answers)
        self._asked += 1
        reply = f"{inbox(self._party)}.r.{self._asked}"
        pending = self._pending[reply] = _Pending()
        try:
            await self.publish(subject, payload, reply)
            with anyio.move_on_after(timeout_s):
                await pending.answered.wait()
        finally:
            del self._pending[reply]
        if pending.payload is None:
            raise DeadlinePassed(f"no answer within {timeout_s:g} s")
        return pending.payload

    def _answered(self, delivery: Delivery) -> None:
        pending = self._pending.get(delivery.subject)
        if pending is not None and pending.payload is None:
            pending.payload = delivery.payload
            pending.answered.set()

    # -- the network's hold on this wire ----------------------------------------------------

    def _may_publish(self, subject: str) -> bool:
        if self._opened is None or subject in self._may:
            return True
        if covered(self._opened.publish, subject):
            if len(self._may) >= _ROUTES_MAX:
                self._may.clear()
            self._may.add(subject)
            return True
        self.num_forbidden += 1
        event(_LOG, "wire.forbidden", logging.WARNING, party=self._party, subject=subject)
        return False

    def _send_or_keep(self, delivery: Delivery) -> None:
        if self._connected and not self._network._full():
            self._network._send(self._party, delivery)
        elif self.refused is not None:
            raise self.refused
        elif self._connected or len(self._buffer) >= BUFFERED_MAX:
            raise Unavailable("the connection is down and its buffer is full; try again shortly")
        else:
            self._buffer.append(delivery)

    def _disconnect(self) -> None:
        self._connected = False

    def _reconnect(self) -> bool:
        self._connected = self.refused is None and self in self._network._wires
        return self._connected

    def _flush(self) -> None:
        while self._buffer:
            self._network._send(self._party, self._buffer.popleft())

    def _refuse(self, why: PartyRefused) -> None:
        self.refused = why
        self.close()
        self._refused.set()
