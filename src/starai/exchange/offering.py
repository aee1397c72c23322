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

import anyio
import msgspec

from starai.core.errors import MalformedFrame, SealBroken, Unavailable
from starai.core.limits import ANSWER_PARTS_BUFFERED_MAX
from starai.exchange.base import SILENCE_S, AttemptFailed, FailureKind, Settled, TaskKey
from starai.exchange.mailboxes import Mailbox
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

    def __init__(self, header: TaskHeader, keys: TaskKeys) -> None:
        """Expect the answer to ``header``."""
        self.header = header
        self.finished = False
        self._opener = AnswerOpener(keys)
        self._early: dict[int, bytes] = {}
        self._mail: Mailbox[Answer | Refusal | FailureKind] = Mailbox(ANSWER_PARTS_BUFFERED_MAX)
        self._ids = bytearray()
        self._broken: FailureKind | None = None
        self._closed_ms: int | None = None

    async def receive(self, silence_s: float = SILENCE_S) -> Part:
        """The next part, in order; parts without ids are signs of life.

        Raises:
            AttemptFailed: the callee refused, fell silent, broke the chain or is gone.
        """
        while True:
            early = self._early.pop(self._opener.seq, None)
            if early is not None:
                return self._open(early)
            with anyio.move_on_after(silence_s):
                mail = await self._mail.get()
                match mail:
                    case Answer(seq=seq, sealed=sealed):
                        self._keep(seq, sealed)
                    case Refusal(code=code, retry_after_ms=retry_after_ms):
                        raise AttemptFailed(FailureKind.REFUSED, code, retry_after_ms)
                    case FailureKind():
                        raise AttemptFailed(mail)
                continue
            raise AttemptFailed(FailureKind.SILENT)

    def settle(self, now_ms: int) -> Settled:
        """How the exchange ends: what was accepted. The first call fixes the closing time."""
        if self._closed_ms is None:
            self._closed_ms = now_ms
        return Settled(self.header, bytes(self._ids), self._opener.code, self._closed_ms)

    @property
    def accepted_seq(self) -> int:
        """How many chunks have been accepted."""
        return self._opener.seq

    def deliver(self, mail: Answer | Refusal | FailureKind) -> None:
        """Hand in what came; called by the offering's handler."""
        if not self._mail.put(mail) and self._broken is None:
            self._broken = FailureKind.OVERFLOW

    def _keep(self, seq: int, sealed: bytes) -> None:
        if self._broken is not None:
            raise AttemptFailed(self._broken)
        if seq < self._opener.seq:
            return
        if len(self._early) >= EARLY_MAX:
            raise AttemptFailed(FailureKind.MALFORMED)
        self._early[seq] = sealed

    def _open(self, sealed: bytes) -> Part:
        try:
            part = self._opener.open(sealed)
        except SealBroken as error:
            raise AttemptFailed(FailureKind.MALFORMED) from error
        self._ids += part.ids
        self.finished = part.finish is not None
        return part


class Offering:
    """A caller's end of all its exchanges."""

    def __init__(self, member: Member) -> None:
        """Offer as ``member``."""
        self._member = member
        self._wire = member.wire
        self._identity = member.identity
        self._clock = member.clock
        self._streams: dict[TaskKey, AnswerStream] = {}
        self._sessions: dict[PartyId, tuple[bytes, Session, SessionOpening]] = {}
        self._answered: set[bytes] = set()
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
        """
        stream, keys, message = self._prepare(ask)
        key = (ask.task_id, ask.attempt)
        subject = offer(ask.role, ask.callee)
        self._streams[key] = stream
        try:
            try:
                await self._wire.publish(subject, encode(message))
            except Unavailable as error:
                raise AttemptFailed(FailureKind.GONE) from error
            yield stream
        except AttemptFailed as failure:
            if failure.refusal == RefusalCode.UNKNOWN_SESSION:
                self._sessions.pop(ask.callee, None)
            raise
        finally:
            self._streams.pop(key, None)
            if stream.accepted_seq:
                self._answered.add(stream.header.session_id)
            self._close(key, subject, stream, keys)

    def lose(self, callee: PartyId) -> None:
        """Fail every exchange with a callee that is known to be gone."""
        for stream in self._streams.values():
            if stream.header.callee == callee:
                stream.deliver(FailureKind.GONE)

    def _prepare(self, ask: Ask) -> tuple[AnswerStream, TaskKeys, Offer]:
        session, opening = self._session(ask.callee, ask.prekey)
        plaintext = encode_request(ask.generation)
        header = TaskHeader(
            task_id=ask.task_id,
            attempt=ask.attempt,
            caller=self._identity.party,
            callee=ask.callee,
            session_id=session.session_id,
            model_root=ask.model_root,
            prompt_tokens=tokens.count(ask.generation.prompt),
            max_tokens=ask.generation.max_tokens,
            offered_ms=self._clock.now_ms(),
            deadline_ms=ask.deadline_ms,
            customer=ask.customer,
            price_id=ask.price_id,
            request_hash=request_hash(plaintext),
        )
        keys = derive_keys(session.secret, header)
        message = Offer(header, seal_request(keys, plaintext), opening)
        return AnswerStream(header, keys), keys, message

    def _session(self, callee: PartyId, prekey: Prekey) -> tuple[Session, SessionOpening | None]:
        """The session with a callee; its opening rides along until one answer has been seen."""
        known = self._sessions.get(callee)
        if known is None or known[0] != prekey.prekey_id or self._is_stale(known[1]):
            try:
                check_prekey(prekey, self._clock.now_ms())
            except (SealBroken, MalformedFrame) as error:
                raise AttemptFailed(FailureKind.MALFORMED) from error
            if known is not None:
                self._answered.discard(known[1].session_id)
            session, opening = open_session(
                prekey, self._identity, self._member.credential(), self._member.randomness
            )
            known = self._sessions[callee] = (prekey.prekey_id, session, opening)
        _, session, opening = known
        return session, None if session.session_id in self._answered else opening

    def _is_stale(self, session: Session) -> bool:
        return session.expires_ms <= self._clock.now_ms()

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
            stream.deliver(mail)

    def _on_rubbish(self, delivery: Delivery) -> None:
        """A callee that sends bytes that are no message has failed in all it does for us."""
        callee = delivery.subject.split(".")[2]
        for stream in self._streams.values():
            if stream.header.callee == callee:
                stream.deliver(FailureKind.MALFORMED)
