"""The caller's side: offer a task to a callee, read its sealed answer in order, close it.

::

    async with offering.running():
        async with offering.offer(ask) as answer:
            while True:
                part = await answer.receive()

Whoever reads several answers at once begins each with the same bell, and polls them when it rings.
It does not choose callees and does not retry: whoever calls it does. Sessions with callees are
opened on demand and reused until the callee's prekey changes.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from starai.core.errors import (
    Conflict,
    MalformedFrame,
    RequestTooLarge,
    SealBroken,
    Unavailable,
)
from starai.core.logging import event
from starai.exchange.base import AttemptFailed, FailureKind, TaskKey, short
from starai.exchange.caller.reading import AnswerStream
from starai.exchange.mailboxes import Bell
from starai.exchange.member import Member
from starai.exchange.standing.guarding import Guard
from starai.exchange.standing.ladder import Fault
from starai.protocol import tokens
from starai.protocol.frames import decode, encode, peek
from starai.protocol.generation import Generation
from starai.protocol.identity import PartyId
from starai.protocol.ports import Delivery
from starai.protocol.subjects import Role, answers_for, offer
from starai.protocol.tasks import (
    FREE,
    Answer,
    Close,
    Offer,
    Prekey,
    Refusal,
    RefusalCode,
    SessionOpening,
    TaskHeader,
    TokenPrice,
)
from starai.sealing import (
    Session,
    check_prekey,
    close_tag,
    derive_keys,
    open_session,
    request_hash,
    seal_request,
)
from starai.sealing.tasks import encode_request

_LOG = logging.getLogger(__name__)

#: Closes kept to be said again to a callee that missed them.
CLOSED_REMEMBERED_MAX = 4096
#: Messages of one callee that nobody awaits any more. Some are the rest of answers that were
#: broken off; what is beyond these is a flood.
UNAWAITED_BURST = 2000
UNAWAITED_PER_S = 500.0


class Ask(msgspec.Struct, frozen=True):
    """What is offered, and to whom. ``attempt`` counts the re-offers of one task."""

    task_id: bytes
    attempt: int
    callee: PartyId
    role: Role
    prekey: Prekey
    model_root: bytes
    customer: int
    deadline_ms: int
    generation: Generation
    price: TokenPrice = FREE


@dataclass
class _Line:
    """The session with a callee, and where it hears offers.

    ``opening`` rides along until one answer has been seen.
    """

    prekey_id: bytes
    session: Session
    subject: str
    opening: SessionOpening | None


class Offering:
    """A caller's end of all its exchanges."""

    def __init__(
        self,
        member: Member,
        on_fault: Callable[[PartyId, Fault], None] | None = None,
        *,
        closes_finished: bool = True,
    ) -> None:
        """Offer as ``member``.

        With ``on_fault``, what callees send beside their answers is held against them, and who
        floods is not listened to for a while. Without it they are trusted that far: a gateway
        that hangs up on thousands of answers must not shut out its distributor for the rest.
        Without ``closes_finished`` nothing more is said of an answer that was read to its end: to
        callees that keep no books by it (see `starai.exchange.callee.serving.Serving`).
        """
        self._member = member
        self._wire = member.wire
        self._identity = member.identity
        self._clock = member.clock
        self._streams: dict[TaskKey, AnswerStream] = {}
        self._lines: dict[PartyId, _Line] = {}
        self._closed: OrderedDict[TaskKey, tuple[str, bytes]] = OrderedDict()
        self._on_fault = on_fault
        self._closes_finished = closes_finished
        self._guard = Guard(UNAWAITED_PER_S, UNAWAITED_BURST)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen for answers inside the context."""
        async with self._wire.subscribe(answers_for(self._identity.party), self._on_answer):
            yield

    @asynccontextmanager
    async def offer(self, ask: Ask) -> AsyncIterator[AnswerStream]:
        """`begin`, and `end` when the context is left."""
        stream = await self.begin(ask)
        try:
            yield stream
        finally:
            self.end(stream)

    async def begin(self, ask: Ask, bell: Bell | None = None) -> AnswerStream:
        """Offer a task; whoever begins one ends it. ``bell`` rings when something has come.

        Raises:
            AttemptFailed: the offer cannot be sent, or the callee's prekey is not good.
            Conflict: this attempt of this task is under way.
            RequestTooLarge: the prompt does not fit into a message.
        """
        key = (ask.task_id, ask.attempt)
        if key in self._streams:
            raise Conflict("this attempt of this task is under way")
        stream, message = self._prepare(ask, bell)
        self._streams[key] = stream
        sent = False
        try:
            await self._wire.publish(stream.subject, encode(message))
            sent = True
        except Unavailable as error:
            raise AttemptFailed(FailureKind.GONE) from error
        except MalformedFrame as error:
            raise RequestTooLarge("the prompt does not fit into a message") from error
        finally:
            if not sent:
                self.end(stream)
        return stream

    def end(self, stream: AnswerStream) -> None:
        """Close an exchange, finished or not: the callee hears what was accepted, and stops."""
        key = (stream.header.task_id, stream.header.attempt)
        del self._streams[key]
        line = self._line_of(stream)
        if line is not None and stream.accepted_seq:
            line.opening = None
        if self._closes_finished or not stream.finished:  # else there is nothing to stop
            self.say_closed(key, stream.subject, self.closing(stream))

    def lose(self, callee: PartyId) -> None:
        """Fail every exchange with a callee that is known to be gone."""
        self._lines.pop(callee, None)
        for stream in self._of(callee):
            stream.deliver(FailureKind.GONE)

    def drain(self, callee: PartyId) -> None:
        """A callee asks to be relieved: whoever reads its answers may have others go on."""
        for stream in self._of(callee):
            if not stream.draining:
                stream.draining = True
                stream.bell.ring()

    @property
    def refused(self) -> Mapping[str, int]:
        """How many messages of which kind have been refused."""
        return self._guard.refused

    def _of(self, callee: PartyId) -> list[AnswerStream]:
        return [one for one in self._streams.values() if one.header.callee == callee]

    def _prepare(self, ask: Ask, bell: Bell | None = None) -> tuple[AnswerStream, Offer]:
        line = self._line(ask)
        plaintext = encode_request(ask.generation)
        header = TaskHeader(
            task_id=ask.task_id,
            attempt=ask.attempt,
            caller=self._identity.party,
            callee=ask.callee,
            session_id=line.session.session_id,
            model_root=ask.model_root,
            prompt_tokens=tokens.count(ask.generation.prompt),
            max_tokens=ask.generation.max_tokens,
            offered_ms=self._clock.now_ms(),
            deadline_ms=ask.deadline_ms,
            customer=ask.customer,
            price_id=ask.price.price_id,
            input_nano_usd=ask.price.input_nano_usd,
            output_nano_usd=ask.price.output_nano_usd,
            request_hash=request_hash(plaintext),
        )
        keys = derive_keys(line.session.secret, header)
        message = Offer(header, seal_request(keys, plaintext), line.opening)
        left = header.max_tokens - tokens.count(ask.generation.accepted)
        return AnswerStream(header, keys, line.subject, left, bell), message

    def _line(self, ask: Ask) -> _Line:
        callee, prekey = ask.callee, ask.prekey
        known = self._lines.get(callee)
        now_ms = self._clock.now_ms()
        if known and known.prekey_id == prekey.prekey_id and now_ms < known.session.expires_ms:
            return known
        try:
            check_prekey(prekey, now_ms)
            session, opening = open_session(
                prekey, self._identity, self._member.credential(), self._member.randomness
            )
        except SealBroken as error:
            raise AttemptFailed(FailureKind.MALFORMED) from error
        subject = offer(ask.role, callee)
        line = self._lines[callee] = _Line(prekey.prekey_id, session, subject, opening)
        return line

    def _line_of(self, stream: AnswerStream) -> _Line | None:
        """The line that a stream's offer went over, unless another has taken its place."""
        line = self._lines.get(stream.header.callee)
        return line if line and line.session.session_id == stream.header.session_id else None

    def closing(self, stream: AnswerStream) -> bytes:
        """The close of an exchange that ends now."""
        settled = stream.settle(self._clock.now_ms())
        close = Close(
            task_id=stream.header.task_id,
            attempt=stream.header.attempt,
            accepted_seq=stream.accepted_seq,
            accepted_tokens=tokens.count(settled.ids),
            closed_ms=settled.closed_ms,
            tag=b"",
        )
        return encode(msgspec.structs.replace(close, tag=close_tag(stream.keys, close)))

    def say_closed(self, key: TaskKey, subject: str, frame: bytes) -> None:
        """Say a close, now and when it is asked for; perhaps one that an earlier self made."""
        self._closed[key] = (subject, frame)
        while len(self._closed) > CLOSED_REMEMBERED_MAX:
            self._closed.popitem(last=False)
        self._wire.publish_soon(subject, frame)

    def _on_answer(self, delivery: Delivery) -> None:
        callee = PartyId(delivery.subject.split(".")[2])
        if self._guard.shut and self._guard.is_shut(callee, self._clock.monotonic_s()):
            return
        try:
            mail: Answer | Refusal
            if peek(delivery.payload) is Refusal:
                mail = decode(delivery.payload, Refusal)
            else:
                mail = decode(delivery.payload, Answer)
        except MalformedFrame:
            self._on_rubbish(callee)
            return
        key = (mail.task_id, mail.attempt)
        stream = self._streams.get(key)
        if stream is None:
            closed = self._closed.get(key)
            if closed is not None:
                self._wire.publish_soon(*closed)
            self._count(callee, "unawaited")
        elif stream.header.callee != callee:
            # No two attempts bear the same number: this one was never asked for that answer.
            self._count(callee, Fault.IMPERSONATION.value, Fault.IMPERSONATION)
        else:
            if isinstance(mail, Refusal):
                if mail.code == RefusalCode.UNKNOWN_SESSION:
                    self._forget_line(stream)
            elif mail.seq < stream.accepted_seq:
                self._count(callee, "repeated")
            stream.deliver(mail)

    def _forget_line(self, stream: AnswerStream) -> None:
        """The callee no longer knows this session: the next offer opens another."""
        if self._line_of(stream) is not None:
            del self._lines[stream.header.callee]

    def _on_rubbish(self, callee: PartyId) -> None:
        """A callee that sends bytes that are no message has failed in all it does for us."""
        for stream in self._of(callee):
            stream.deliver(FailureKind.DAMAGED)
        self._count(callee, "damaged")

    def _count(self, callee: PartyId, kind: str, fault: Fault | None = None) -> None:
        """Count what should not have come, and hold it against its sender if it is more."""
        if self._on_fault is None:
            return
        if fault is not None:
            self._on_fault(callee, fault)
        if self._guard.count(callee, kind, self._clock.monotonic_s()):
            event(_LOG, "flood_shut_out", logging.WARNING, party=short(callee), last=kind)
            self._on_fault(callee, Fault.FLOOD)
            for stream in self._of(callee):
                stream.deliver(FailureKind.GONE)
