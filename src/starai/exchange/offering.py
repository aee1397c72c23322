"""The caller's side: offer a task to a callee, read its sealed answer in order, close it.

::

    async with offering.running():
        async with offering.offer(ask) as answer:
            while True:
                part = await answer.receive()

It does not choose callees and does not retry: whoever calls it does. Sessions with callees are
opened on demand and reused until the callee's prekey changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import msgspec

from starai.core.errors import (
    Conflict,
    MalformedFrame,
    RequestTooLarge,
    SealBroken,
    Unavailable,
)
from starai.core.limits import ANSWER_PARTS_BUFFERED_MAX
from starai.exchange.base import SILENCE_S, AttemptFailed, FailureKind, Settled, TaskKey
from starai.exchange.mailboxes import Mailbox, MailboxOverflow
from starai.exchange.member import Member
from starai.protocol import tokens
from starai.protocol.frames import decode, encode, peek
from starai.protocol.generation import Generation, Part
from starai.protocol.identity import PartyId
from starai.protocol.ports import Delivery
from starai.protocol.subjects import Role, answers_for, offer
from starai.protocol.tasks import (
    Answer,
    Close,
    Offer,
    Prekey,
    Refusal,
    RefusalCode,
    SessionOpening,
    TaskHeader,
)
from starai.sealing import (
    AnswerOpener,
    Session,
    check_prekey,
    close_tag,
    derive_keys,
    open_session,
    request_hash,
    seal_request,
)
from starai.sealing.tasks import TaskKeys, encode_request

#: Waking this much later than asked means that silence was not listened to.
OVERSLEPT_S = 0.25
#: Closes kept to be said again to a callee that missed them.
CLOSED_REMEMBERED_MAX = 4096
#: Chunks that came before their turn; more than this is no reordering but a lost chunk.
EARLY_MAX = 64


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
    price_id: int = 0


class AnswerStream:
    """An answer as it arrives. Made by `Offering.offer`."""

    def __init__(self, header: TaskHeader, keys: TaskKeys, tokens_max: int) -> None:
        """Expect the answer to ``header``: up to ``tokens_max`` tokens."""
        self.header = header
        self.finished = False
        self._opener = AnswerOpener(keys)
        self._early: dict[int, bytes] = {}
        self._mail: Mailbox[Answer | Refusal | FailureKind] = Mailbox(ANSWER_PARTS_BUFFERED_MAX)
        self._ids = bytearray()
        self._embedding = b""
        self._tokens_max = tokens_max
        self._closed_ms: int | None = None

    async def receive(self, silence_s: float = SILENCE_S) -> Part:
        """The next part, in order; parts without ids are signs of life.

        Chunks that are not next do not count as life: one was lost, and never comes.

        Raises:
            AttemptFailed: the callee refused, fell silent, broke the chain or is gone.
        """
        while True:
            late_s = anyio.current_time() + silence_s + OVERSLEPT_S
            with anyio.move_on_after(silence_s):
                while (sealed := self._early.pop(self._opener.seq, None)) is None:
                    await self._take_mail()
                return self._open(sealed)
            if anyio.current_time() < late_s:
                raise AttemptFailed(FailureKind.SILENT)
            # It was this process that did not get its turn; the chunk may be here by now.

    def settle(self, now_ms: int) -> Settled:
        """How the exchange ends: what was accepted. The first call fixes the closing time."""
        if self._closed_ms is None:
            self._closed_ms = now_ms
        return Settled(
            self.header, bytes(self._ids), self._opener.code, self._closed_ms, self._embedding
        )

    @property
    def accepted_seq(self) -> int:
        """How many chunks have been accepted."""
        return self._opener.seq

    def deliver(self, mail: Answer | Refusal | FailureKind) -> None:
        """Hand in what came; called by the offering's handler."""
        self._mail.put(mail)

    async def _take_mail(self) -> None:
        try:
            mail = await self._mail.get()
        except MailboxOverflow as error:
            raise AttemptFailed(FailureKind.OVERFLOW) from error
        match mail:
            case Answer(seq=seq, sealed=sealed):
                if not 0 <= seq - self._opener.seq < EARLY_MAX:
                    return  # a repeated one, or so far ahead that some were lost
                self._early[seq] = sealed
            case Refusal(code=code, retry_after_ms=retry_after_ms):
                raise AttemptFailed(FailureKind.REFUSED, code, retry_after_ms)
            case FailureKind():
                raise AttemptFailed(mail)

    def _open(self, sealed: bytes) -> Part:
        try:
            part = self._opener.open(sealed)
        except SealBroken as error:
            raise AttemptFailed(FailureKind.MALFORMED) from error
        if (len(self._ids) + len(part.ids)) // 4 > self._tokens_max:
            raise AttemptFailed(FailureKind.MALFORMED)
        # An answer without room for a token is a vector that comes with its end, and only there.
        is_vector = part.finish is not None and not self.header.max_tokens
        if bool(part.embedding) != is_vector:
            raise AttemptFailed(FailureKind.MALFORMED)
        self._ids += part.ids
        self._embedding = part.embedding
        self.finished = part.finish is not None
        return part


@dataclass
class _Line:
    """The session with a callee; ``opening`` rides along until one answer has been seen."""

    prekey_id: bytes
    session: Session
    opening: SessionOpening | None


class Offering:
    """A caller's end of all its exchanges."""

    def __init__(self, member: Member) -> None:
        """Offer as ``member``."""
        self._member = member
        self._wire = member.wire
        self._identity = member.identity
        self._clock = member.clock
        self._streams: dict[TaskKey, AnswerStream] = {}
        self._lines: dict[PartyId, _Line] = {}
        self._closed: OrderedDict[TaskKey, tuple[str, bytes]] = OrderedDict()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen for answers inside the context."""
        async with self._wire.subscribe(answers_for(self._identity.party), self._on_answer):
            yield

    @asynccontextmanager
    async def offer(self, ask: Ask) -> AsyncIterator[AnswerStream]:
        """Offer a task; leaving the context closes it, finished or not.

        Raises:
            AttemptFailed: the offer cannot be sent, or the callee's prekey is not good.
            Conflict: this attempt of this task is under way.
            RequestTooLarge: the prompt does not fit into a message.
        """
        key = (ask.task_id, ask.attempt)
        if key in self._streams:
            raise Conflict("this attempt of this task is under way")
        stream, keys, message = self._prepare(ask)
        subject = offer(ask.role, ask.callee)
        self._streams[key] = stream
        try:
            try:
                await self._wire.publish(subject, encode(message))
            except Unavailable as error:
                raise AttemptFailed(FailureKind.GONE) from error
            except MalformedFrame as error:
                raise RequestTooLarge("the prompt does not fit into a message") from error
            yield stream
        finally:
            del self._streams[key]
            line = self._line_of(stream)
            if line is not None and stream.accepted_seq:
                line.opening = None
            self._close(key, subject, stream, keys)

    def lose(self, callee: PartyId) -> None:
        """Fail every exchange with a callee that is known to be gone."""
        self._lines.pop(callee, None)
        for stream in self._streams.values():
            if stream.header.callee == callee:
                stream.deliver(FailureKind.GONE)

    def _prepare(self, ask: Ask) -> tuple[AnswerStream, TaskKeys, Offer]:
        line = self._line(ask.callee, ask.prekey)
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
            price_id=ask.price_id,
            request_hash=request_hash(plaintext),
        )
        keys = derive_keys(line.session.secret, header)
        message = Offer(header, seal_request(keys, plaintext), line.opening)
        accepted = tokens.count(ask.generation.accepted)
        return AnswerStream(header, keys, header.max_tokens - accepted), keys, message

    def _line(self, callee: PartyId, prekey: Prekey) -> _Line:
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
        line = self._lines[callee] = _Line(prekey.prekey_id, session, opening)
        return line

    def _line_of(self, stream: AnswerStream) -> _Line | None:
        """The line that a stream's offer went over, unless another has taken its place."""
        line = self._lines.get(stream.header.callee)
        return line if line and line.session.session_id == stream.header.session_id else None

    def _close(self, key: TaskKey, subject: str, stream: AnswerStream, keys: TaskKeys) -> None:
        settled = stream.settle(self._clock.now_ms())
        close = Close(
            task_id=key[0],
            attempt=key[1],
            accepted_seq=stream.accepted_seq,
            accepted_tokens=tokens.count(settled.ids),
            closed_ms=settled.closed_ms,
            tag=b"",
        )
        frame = encode(msgspec.structs.replace(close, tag=close_tag(keys, close)))
        self._closed[key] = (subject, frame)
        while len(self._closed) > CLOSED_REMEMBERED_MAX:
            self._closed.popitem(last=False)
        self._wire.publish_soon(subject, frame)

    def _on_answer(self, delivery: Delivery) -> None:
        try:
            mail: Answer | Refusal
            if peek(delivery.payload) is Refusal:
                mail = decode(delivery.payload, Refusal)
            else:
                mail = decode(delivery.payload, Answer)
        except MalformedFrame:
            self._on_rubbish(delivery)
            return
        key = (mail.task_id, mail.attempt)
        stream = self._streams.get(key)
        if stream is None:
            closed = self._closed.get(key)
            if closed is not None:
                self._wire.publish_soon(*closed)
        elif stream.header.callee == delivery.subject.split(".")[2]:
            if isinstance(mail, Refusal) and mail.code == RefusalCode.UNKNOWN_SESSION:
                self._forget_line(stream)
            stream.deliver(mail)

    def _forget_line(self, stream: AnswerStream) -> None:
        """The callee no longer knows this session: the next offer opens another."""
        if self._line_of(stream) is not None:
            del self._lines[stream.header.callee]

    def _on_rubbish(self, delivery: Delivery) -> None:
        """A callee that sends bytes that are no message has failed in all it does for us."""
        callee = delivery.subject.split(".")[2]
        for stream in self._streams.values():
            if stream.header.callee == callee:
                stream.deliver(FailureKind.MALFORMED)
