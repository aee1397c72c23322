"""The real wire: a party's lasting connection to NATS, over one `Link` at a time.

It dials until it is in, hears again what was subscribed after every break, keeps a bounded buffer
of what is published meanwhile, and swaps its credential without losing or doubling a message.
Knows nothing of how credentials are issued: it asks ``credential()`` for the current one at each
dial, and tells its owner through ``refused`` when the network no longer lets the party in.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - the wire's edge
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import anyio

from starai.core.concurrency import task_group
from starai.core.errors import (
    ConfigurationRefused,
    DeadlinePassed,
    PartyRefused,
    RequestTooLarge,
    Unavailable,
)
from starai.core.logging import event
from starai.core.randomness import Randomness, SystemRandomness
from starai.protocol.identity import PartyId
from starai.protocol.ports import Delivery, Handler
from starai.protocol.subjects import inbox
from starai.wire.buffer import Buffer
from starai.wire.delivering import hand_over
from starai.wire.dialing import Dialer, NatsSettings, refusal, watch
from starai.wire.handover import HANDOVER_S, OVERLAP_S, Handover
from starai.wire.link import Link, LinkLost
from starai.wire.patterns import check_pattern, check_subject

__all__ = ["NatsSettings", "NatsWire", "connect_nats"]

_LOG = logging.getLogger(__name__)

#: The pause between dials grows from the first to the last of these: a restarted server is found
#: within half a second, and a thousand nodes do not storm it.
RETRY_FIRST_S: Final = 0.05
RETRY_LAST_S: Final = 0.5
#: A refused party may be let in again (or renew), but has no reason to hurry.
RETRY_REFUSED_S: Final = 5.0
#: Subjects that are kept written out: those of a busy party's counterparts come up all the time.
SUBJECTS_KEPT: Final = 4096
#: What `publish_soon` may pile up on a connection that takes no more.
BACKLOG_BYTES_MAX: Final = 16 << 20


@dataclass(frozen=True)
class _Subscription:
    pattern: str
    queue: str
    handler: Handler

    def command(self, sid: int) -> bytes:
        return f"SUB {self.pattern} {self.queue} {sid}\r\n".encode()


@asynccontextmanager
async def connect_nats(
    settings: NatsSettings, *, randomness: Randomness | None = None
) -> AsyncIterator[NatsWire]:
    """Be connected as ``settings.identity`` inside the context.

    Raises:
        PartyRefused: the server does not accept the credential or the key.
        Unavailable: no server could be reached within ``settings.first_connect_s``.
        ConfigurationRefused: a URL is malformed, or this is not an asyncio program.
    """
    wire = NatsWire(settings, randomness or SystemRandomness())
    async with task_group() as tasks:
        tasks.start_soon(wire._keep)
        try:
            await wire._wait_first()
            yield wire
        finally:
            tasks.cancel_scope.cancel()
            wire._end()


class NatsWire:
    """A `starai.protocol.ports.Wire` over NATS; open one with `connect_nats`."""

    def __init__(self, settings: NatsSettings, randomness: Randomness) -> None:
        self._settings = settings
        self._randomness = randomness
        self._dialer = Dialer(settings, self._deliver, self._complain)
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise ConfigurationRefused("NATS needs asyncio; under trio use MemoryWire") from error
        self._link: Link | None = None
        self._next: Link | None = None
        self._switching = False
        self._swap = anyio.Lock()
        self._hurry = anyio.Event()
        self._first = anyio.Event()
        self._first_failure: PartyRefused | Unavailable | None = None
        self._refused = anyio.Event()
        self._buffer = Buffer()
        self._answers = f"{inbox(self.party)}.{randomness.take(6).hex()}"
        self._pending: dict[str, tuple[str, asyncio.Future[bytes]]] = {}
        self._last_sid = 1
        self._subscriptions = {1: _Subscription(f"{self._answers}.*", "", self._answered)}
        self._asked = 0
        #: Why the network no longer lets this party in, while it does not.
        self.refused: PartyRefused | None = None
        #: Messages that the server dropped because this party may not send them.
        self.num_forbidden = 0

    @property
    def party(self) -> PartyId:
        """Who is connected."""
        return self._settings.identity.party

    @property
    def connected(self) -> bool:
        """Whether messages flow right now."""
        return self._link is not None and not self._link.closed.is_set()

    async def wait_refused(self) -> PartyRefused:
        """Wait until the network no longer lets this party in; returns why.

        The wire keeps trying, slowly, and at once after `renew`.
        """
        while self.refused is None:
            await self._refused.wait()
        return self.refused

    # -- the port ---------------------------------------------------------------------------

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Send; see `starai.protocol.ports.Wire.publish`.

        A message that this party may not send is dropped by the server and counted here.

        Raises:
            RequestTooLarge: the server takes no message of that size.
            MalformedFrame: ``subject`` or ``reply`` is no subject.
            Unavailable: the connection is down and its buffer is full.
        """
        if reply:
            check_subject(reply)
        command = self._command(subject, payload, reply)
        link = self._link
        if link is None or self._switching or link.closed.is_set():
            self._buffer.keep(command)
            return
        link.send(command)
        if link.congested:
            await link.wait_drained()

    def publish_soon(self, subject: str, payload: bytes) -> None:
        """Send from a place that cannot wait; see `starai.protocol.ports.Wire.publish_soon`."""
        command = self._command(subject, payload, "")
        link = self._link
        if self._switching and self._buffer.fits(command):
            self._buffer.keep(command)
        elif (
            self._switching
            or link is None
            or (link.congested and link.backlog_bytes > BACKLOG_BYTES_MAX)
        ):
            event(_LOG, "wire.dropped", logging.DEBUG, party=self.party, subject=subject)
        else:
            link.send(command)

    @asynccontextmanager
    async def subscribe(
        self, subject: str, handler: Handler, *, queue: str = ""
    ) -> AsyncIterator[None]:
        """Hear ``subject`` inside the context; see `starai.protocol.ports.Wire.subscribe`.

        When it is entered, the server has taken note, if it is connected at all.

        Raises:
            PartyRefused: this party may not hear that.
        """
        check_pattern(subject)
        if queue:
            check_subject(queue)
        self._last_sid += 1
        sid = self._last_sid
        subscription = self._subscriptions[sid] = _Subscription(subject, queue, handler)
        try:
            await self._announce(sid, subscription)
            yield
        finally:
            del self._subscriptions[sid]
            self._send_all(f"UNSUB {sid}\r\n".encode())

    async def request(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes:
        """Ask and await one answer; see `starai.protocol.ports.Wire.request`.

        Raises:
            PartyRefused: this party may not ask there.
            Unavailable: nobody listens there, or the connection broke before the answer came;
                the question may have been heard.
            DeadlinePassed: no answer within ``timeout_s``.
        """
        self._asked += 1
        reply = f"{self._answers}.{self._asked}"
        answer: asyncio.Future[bytes] = self._loop.create_future()
        late = DeadlinePassed(f"no answer within {timeout_s:g} s")
        timer = self._loop.call_later(timeout_s, _fail, answer, late)
        self._pending[reply] = (subject, answer)
        try:
            await self.publish(subject, payload, reply)
            return await answer
        finally:
            timer.cancel()
            del self._pending[reply]

    async def renew(self) -> None:
        """Go over to the credential that ``credential()`` gives now, losing no message.

        Call it well before the old one expires (at three quarters of its life): a second
        connection is opened beside the first and takes over.

        Raises:
            PartyRefused: the new credential is not accepted; the old connection stays.
            Unavailable: no second connection could be made; the old one stays.
        """
        async with self._swap:
            old = self._link
            if old is None:
                self._hurry.set()
                return
            new = await self._dialer.dial()
            if self._link is not old or old.closed.is_set():
                new.abort()  # the old one broke meanwhile; its successor has the new credential
                return
            await self._hand_over(old, new)

    # -- sending ----------------------------------------------------------------------------

    def _command(self, subject: str, payload: bytes, reply: str) -> bytes:
        link = self._link
        if link is not None and len(payload) > link.info.max_payload:
            raise RequestTooLarge(f"a message has at most {link.info.max_payload} bytes")
        to = _written(subject)
        if reply:
            to = b"%b %b" % (to, reply.encode())
        return b"PUB %b %d\r\n%b\r\n" % (to, len(payload), payload)

    def _send_all(self, command: bytes) -> None:
        for link in (self._link, self._next):
            if link is not None:
                link.send(command)

    async def _announce(self, sid: int, subscription: _Subscription) -> None:
        link = self._link
        if link is None:
            return  # said at the next connection
        self._send_all(subscription.command(sid))
        try:
            await link.round_trip()
        except LinkLost:
            return
        if subscription.pattern in link.denied:
            raise PartyRefused(f"this party may not listen to {subscription.pattern}")

    # -- receiving --------------------------------------------------------------------------

    def _deliver(self, sid: int, delivery: Delivery, absent: bool) -> None:
        if absent:
            pending = self._pending.get(delivery.subject)
            if pending is not None:
                _fail(pending[1], Unavailable("nobody answers there right now; try again shortly"))
            return
        subscription = self._subscriptions.get(sid)
        if subscription is not None:
            hand_over(subscription.handler, delivery)

    def _answered(self, delivery: Delivery) -> None:
        pending = self._pending.get(delivery.subject)
        if pending is not None and not pending[1].done():
            pending[1].set_result(delivery.payload)

    def _complain(self, link: Link, fault: str) -> None:
        """Hear what the server refuses ("permissions violation for …")."""
        if not fault.startswith("permissions violation"):
            event(_LOG, "wire.fault", logging.WARNING, party=self.party, fault=fault)
            return
        subject = fault.partition('"')[2].partition('"')[0]
        if "subscription to" in fault:
            link.denied.update(
                one.pattern
                for one in self._subscriptions.values()
                if one.pattern.lower() == subject
            )
        else:
            self.num_forbidden += 1
            for asked, answer in self._pending.values():
                if asked.lower() == subject:
                    _fail(answer, PartyRefused(f"this party may not send to {asked}"))
        event(_LOG, "wire.forbidden", logging.WARNING, party=self.party, fault=fault)

    # -- connecting -------------------------------------------------------------------------

    async def _wait_first(self) -> None:
        with anyio.move_on_after(self._settings.first_connect_s):
            await self._first.wait()
        if self.connected:
            return
        raise self._first_failure or Unavailable(
            f"no NATS server answers at {', '.join(self._settings.urls)}; is it running?"
        )

    async def _keep(self) -> None:
        """Be connected, for ever."""
        pause_s = 0.0
        while True:
            if self._link is None:
                self._adopt(await self._dial(pause_s))
            link, began_s = self._link, self._loop.time()
            if link is None:
                continue
            await watch(link)
            async with self._swap:
                if self._link is link:
                    self._lose(link)
            # Let in and thrown out again at once: coming straight back would make it a hot loop.
            lived_s = self._loop.time() - began_s
            pause_s = 0.0 if lived_s > RETRY_LAST_S else RETRY_LAST_S
            if self.refused is not None:
                pause_s = RETRY_REFUSED_S

    async def _dial(self, pause_s: float) -> Link:
        """A link, however long it takes; the first attempt comes after ``pause_s``."""
        while True:
            with anyio.move_on_after(pause_s * (0.5 + 0.5 * self._randomness.fraction())):
                await self._hurry.wait()
            self._hurry = anyio.Event()
            try:
                return await self._dialer.dial()
            except PartyRefused as refused:
                self._surface(refused)
                pause_s = RETRY_REFUSED_S
            except Unavailable as failure:
                self._first_failure = failure
                pause_s = min(max(pause_s * 1.5, RETRY_FIRST_S), RETRY_LAST_S)

    def _adopt(self, link: Link) -> None:
        """Make ``link`` the connection: say again what is heard, and what was kept."""
        for sid, subscription in self._subscriptions.items():
            link.send(subscription.command(sid))
        self._link = link
        self._buffer.send_to(link)
        self.refused = None
        self._refused = anyio.Event()
        self._first.set()
        event(_LOG, "wire.connected", party=self.party)

    def _lose(self, link: Link) -> None:
        self._link = None
        for _, answer in self._pending.values():
            _fail(answer, Unavailable("the connection broke before the answer came; try again"))
        cut_off = "expired" in link.fault or "revoked" in link.fault
        name = "wire.cut_off" if cut_off else "wire.disconnected"
        event(_LOG, name, logging.WARNING, party=self.party, fault=link.fault)
        if cut_off and self._dialer.presented == self._settings.credential():
            self._surface(refusal())

    def _surface(self, refused: PartyRefused) -> None:
        if self.refused is None:
            event(_LOG, "wire.refused", logging.ERROR, party=self.party)
        self.refused = self._first_failure = refused
        self._refused.set()
        self._first.set()

    def _end(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        gone = Unavailable("the connection was closed")
        for _, answer in self._pending.values():
            _fail(answer, gone)

    async def _hand_over(self, old: Link, new: Link) -> None:
        """Let ``new`` take over from ``old`` without losing or doubling a message."""
        handover = Handover(old, new, self._deliver)
        self._next = new
        try:
            with anyio.move_on_after(HANDOVER_S):
                for sid, subscription in self._subscriptions.items():
                    new.send(subscription.command(sid))
                await new.round_trip()
                await anyio.sleep(OVERLAP_S)
                # From here until the old connection is done, what is published waits: else a
                # later message on the new connection could overtake an earlier one on the old.
                self._switching = True
                for sid in self._subscriptions:
                    old.send(f"UNSUB {sid}\r\n".encode())
                await old.round_trip()
                # What the old one brought, the new one may only be about to bring.
                await new.round_trip()
        except LinkLost:
            pass  # whichever broke: the new one goes on, or the keeper finds it broken and dials
        finally:
            self._link, self._next, self._switching = new, None, False
            old.close()
            handover.finish()
            self._buffer.send_to(new)
        event(_LOG, "wire.renewed", party=self.party)


@lru_cache(SUBJECTS_KEPT)
def _written(subject: str) -> bytes:
    """A subject as it is written out, once it is seen to be one."""
    check_subject(subject)
    return subject.encode()


def _fail(answer: asyncio.Future[bytes], why: Exception) -> None:
    if not answer.done():
        answer.set_exception(why)
