"""The callee's side: open offered tasks, run a handler for each, send its answer, hear the close.

::

    serving = Serving(..., handler=run_one)
    async with anyio.create_task_group() as tasks:
        await tasks.start(serving.run)

It does not know what a task is for: the handler does. A node's handler runs an engine, a
distributor's handler offers the task on to a node.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection

import anyio

from starai.core.crew import Crew, crew
from starai.core.cutting import Cut
from starai.core.errors import (
    MalformedFrame,
    Overloaded,
    PartyRefused,
    SealBroken,
    StarAIError,
    Unavailable,
)
from starai.core.limits import REQUEST_DEADLINE_S
from starai.core.logging import event
from starai.core.waking import Bell, loop_time
from starai.exchange.base import SIGN_OF_LIFE_S, Settled, TaskKey, short
from starai.exchange.callee.replays import SeenOffers
from starai.exchange.member import Member
from starai.protocol.frames import decode, encode, peek
from starai.protocol.generation import Finish, Generation, TokenLogprobs
from starai.protocol.identity import PartyId
from starai.protocol.ports import Delivery, Wire
from starai.protocol.subjects import Role, answer, offer
from starai.protocol.tasks import (
    Answer,
    Close,
    Offer,
    Prekey,
    Refusal,
    RefusalCode,
    TaskHeader,
)
from starai.sealing import (
    AnswerSealer,
    PrekeyRing,
    Session,
    TaskKeys,
    accept_session,
    close_tag,
    derive_keys,
    open_request,
)

_LOG = logging.getLogger(__name__)

#: Sessions kept: one caller has one a prekey, so this is many callers.
SESSIONS_MAX = 1024
#: Tasks at once, with those that wait for their close; what is offered beyond is refused.
TASKS_MAX = 4096
#: A finished answer waits for its close, and asks for it this often, for this long. Time without
#: a connection counts only for the second, longer one: whoever is cut off cannot be answered.
CLOSE_ASK_S = 1.0
CLOSE_WAIT_S = 10.0
CLOSE_WAIT_CUT_OFF_S = 1800.0
#: How often it is looked who owes a sign of life, or is owed a close: one timer for all tasks.
LOOK_S = 0.05


class Refused(Exception):
    """A handler's way to refuse the task, before or during the answer."""

    def __init__(self, code: str, retry_after_ms: int = 0) -> None:
        """Refuse with a `RefusalCode`."""
        super().__init__(code)
        self.code = code
        self.retry_after_ms = retry_after_ms


class ServedTask:
    """One offered task, opened. The handler sends the answer's parts through it."""

    def __init__(
        self, header: TaskHeader, generation: Generation, keys: TaskKeys, wire: Wire
    ) -> None:
        """Made by `Serving`."""
        self.header = header
        self.generation = generation
        self.keys = keys
        self.finished = False
        #: Whether the work gets on; a handler may put its own test here.
        self.is_alive: Callable[[], bool] = _always
        self.close: Close | None = None
        #: Why the rest is refused, once it is.
        self.dismissed = ""
        self.cut = Cut()
        #: When the work has to be done, in seconds of the event loop; and whether it was not.
        self.deadline_s = math.inf
        self.is_late = False
        #: When something was sent last, in seconds of the event loop.
        self.sent_s = loop_time()
        #: Since when the close is awaited, and how many times it may still be asked for.
        self.over_s: float | None = None
        self.asks_left = int(CLOSE_WAIT_S / CLOSE_ASK_S)
        self._sealer = AnswerSealer(keys)
        self._wire = wire
        self._subject = answer(header.callee, header.caller)
        self._ids = bytearray()
        self._embedding = b""
        self._embedded_at = 0
        # Where the chain stood after each chunk: (tokens so far, code). Index 0 is the start.
        self._marks: list[tuple[int, bytes]] = [(0, self._sealer.code)]
        self._last_frame = b""

    async def send(
        self,
        ids: bytes = b"",
        finish: Finish | None = None,
        logprobs: tuple[TokenLogprobs, ...] = (),
        sketch: bytes = b"",
        spots: bytes = b"",
        embedding: bytes = b"",
    ) -> None:
        """Send the next part; an empty one is a sign of life."""
        seq = self._sealer.seq
        sealed = self._sealer.seal(ids, finish, logprobs, sketch, spots, embedding)
        self._ids += ids
        if embedding:
            self._embedding, self._embedded_at = embedding, self._sealer.seq
        self._marks.append((len(self._ids) // 4, self._sealer.code))
        self.finished = finish is not None
        self.sent_s = loop_time()
        self._last_frame = encode(Answer(self.header.task_id, self.header.attempt, seq, sealed))
        await self._wire.publish(self._subject, self._last_frame)

    @property
    def num_sent(self) -> int:
        """Tokens sent so far."""
        return len(self._ids) // 4

    @property
    def has_sent(self) -> bool:
        """Whether anything was sent that is worth a record."""
        return bool(self._ids or self._embedding)

    def refuse(self, code: str, retry_after_ms: int = 0) -> None:
        """Say no, or no more."""
        message = Refusal(self.header.task_id, self.header.attempt, code, retry_after_ms)
        self._last_frame = encode(message)
        self._wire.publish_soon(self._subject, self._last_frame)

    def repeat(self) -> None:
        """Send the last chunk again: the caller answers with its close."""
        self._wire.publish_soon(self._subject, self._last_frame)

    def settled(self) -> Settled | None:
        """What the caller accepted, as its close says; None when nothing or not yet closed.

        Raises:
            SealBroken: the close claims chunks that were never sent, or other tokens.
        """
        close = self.close
        if close is None:
            return None
        if close.accepted_seq >= len(self._marks):
            raise SealBroken("a close claims chunks that were never sent")
        num_tokens, code = self._marks[close.accepted_seq]
        if num_tokens != close.accepted_tokens:
            raise SealBroken("a close claims other tokens than its chunks hold")
        embedding = self._embedding if close.accepted_seq >= self._embedded_at else b""
        ids = bytes(self._ids[: num_tokens * 4])
        settled = Settled(self.header, ids, code, close.closed_ms, embedding)
        return settled if settled.is_owed else None


class Serving:
    """A callee's end of all its exchanges."""

    def __init__(
        self,
        member: Member,
        role: Role,
        caller_roles: Collection[Role],
        handler: Callable[[ServedTask], Awaitable[None]],
        on_settled: Callable[[Settled], None] | None = None,
    ) -> None:
        """Serve in ``role`` whoever has one of ``caller_roles``.

        ``handler`` answers one task and raises `Refused` to refuse; ``on_settled`` is told how
        each attempt with accepted tokens ended, and may raise `Overloaded`. Without it no close is
        waited for.
        """
        self._member = member
        self._wire = member.wire
        self._identity = member.identity
        self._clock = member.clock
        self._role = role
        self._caller_roles = caller_roles
        self._ring = PrekeyRing(member.identity, member.clock, member.randomness)
        self._handler = handler
        self._on_settled = on_settled
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()
        self._seen = SeenOffers()
        self._tasks: dict[TaskKey, ServedTask] = {}
        self._crew: Crew | None = None
        self._bell = Bell()

    @property
    def prekey(self) -> Prekey:
        """The prekey to announce in beats."""
        return self._ring.current()

    @property
    def num_running(self) -> int:
        """Tasks whose handler is at work."""
        return sum(task.over_s is None and not task.finished for task in self._tasks.values())

    @property
    def num_open(self) -> int:
        """Tasks that run, or wait for their close."""
        return len(self._tasks)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Hear offers until cancelled; each task runs in this call's own crew."""
        subject = offer(self._role, self._identity.party)
        async with crew() as self._crew:
            self._crew.start(self._look_after)
            async with self._wire.subscribe(subject, self._on_delivery):
                task_status.started()
                await anyio.sleep_forever()

    def abandon(self, caller: PartyId) -> None:
        """Stop all work for a caller that is gone."""
        for task in self._tasks.values():
            if task.header.caller == caller:
                task.cut.make()

    def dismiss(self, code: str) -> None:
        """Stop all work and refuse the rest of each answer with a `RefusalCode`.

        What was sent of it stands; callers say what they accepted.
        """
        for task in self._tasks.values():
            if not task.finished and task.close is None:
                task.dismissed = code
                task.cut.make()

    def _on_delivery(self, delivery: Delivery) -> None:
        try:
            if peek(delivery.payload) is Close:
                self._on_close(decode(delivery.payload, Close))
            else:
                self._on_offer(decode(delivery.payload, Offer))
        except MalformedFrame:
            event(_LOG, "malformed_frame", logging.WARNING, bytes=len(delivery.payload))

    def _on_close(self, close: Close) -> None:
        key = (close.task_id, close.attempt)
        task = self._tasks.get(key)
        if task is None or task.close is not None:
            return
        if not hmac.compare_digest(close_tag(task.keys, close), close.tag):
            event(_LOG, "forged_close", logging.WARNING, task=close.task_id.hex())
            return
        task.close = close
        if task.over_s is not None:
            self._settle(key, task)
        elif not task.finished:
            task.cut.make()

    def _on_offer(self, message: Offer) -> None:
        header = message.header
        if header.callee != self._identity.party or self._crew is None:
            return
        if header in self._seen:
            return
        if len(self._tasks) >= TASKS_MAX:
            self._say_no(header, RefusalCode.BUSY)
            return
        try:
            session = self._session(message)
            if session is None:
                self._say_no(header, RefusalCode.UNKNOWN_SESSION)
                return
            keys = derive_keys(session.secret, header)
            generation = open_request(keys, header, message.sealed)
        except (SealBroken, MalformedFrame, PartyRefused) as error:
            event(
                _LOG,
                "offer_not_opened",
                logging.WARNING,
                caller=short(header.caller),
                code=error.code,
            )
            self._say_no(header, RefusalCode.BAD_REQUEST)
            return
        self._seen.add(header)  # only now: before, anybody could have said it
        key = (header.task_id, header.attempt)
        task = self._tasks[key] = ServedTask(header, generation, keys, self._wire)
        self._bell.ring()
        self._crew.start(self._serve, key, task)

    def _session(self, message: Offer) -> Session | None:
        now_ms = self._clock.now_ms()
        session = self._sessions.get(message.header.session_id)
        if session is None and message.opening is not None:
            session = accept_session(
                message.opening,
                self._ring,
                self._identity.party,
                self._member.account,
                self._caller_roles,
                now_ms,
            )
            self._sessions[session.session_id] = session
            while len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        if session is None or session.session_id != message.header.session_id:
            return None
        if session.caller != message.header.caller:
            raise SealBroken("a task's caller is not its session's")
        if session.expires_ms <= now_ms:
            del self._sessions[session.session_id]
            return None
        return session

    def _say_no(self, header: TaskHeader, code: str) -> None:
        subject = answer(self._identity.party, header.caller)
        self._wire.publish_soon(subject, encode(Refusal(header.task_id, header.attempt, code)))

    async def _serve(self, key: TaskKey, task: ServedTask) -> None:
        """Answer one task, until its deadline, or until nobody wants the rest."""
        left_s = (task.header.deadline_ms - self._clock.now_ms()) / 1000
        task.deadline_s = loop_time() + min(left_s, REQUEST_DEADLINE_S)
        task.is_late = left_s <= 0
        try:
            if not task.is_late:
                with task.cut:
                    await self._work(task)
            if task.dismissed:
                task.refuse(task.dismissed)
            elif task.is_late:
                task.refuse(RefusalCode.DEADLINE)
            task.over_s = loop_time()
        finally:
            # Whoever accepted nothing owes no close, and who is cancelled has no time for one.
            owed = task.has_sent and self._on_settled is not None
            if task.over_s is None or task.close is not None or not owed:
                self._settle(key, task)

    async def _work(self, task: ServedTask) -> None:
        """Answer one task; what goes wrong in it stays in it."""
        try:
            await self._handler(task)
        except Refused as refusal:
            task.refuse(refusal.code, refusal.retry_after_ms)
        except Unavailable:
            # The wire is down and its buffer full: the caller re-offers the task elsewhere.
            event(_LOG, "answer_not_sent", logging.WARNING, task=task.header.task_id.hex())
        except Exception:  # noqa: BLE001 - a boundary, see below
            # A boundary: our mistake in one task must not end the others. The caller hears a
            # refusal and re-offers; the log has the class and the place of the fault.
            _LOG.exception("task_handler_failed")
            task.refuse(RefusalCode.ENGINE_FAILED)

    def _settle(self, key: TaskKey, task: ServedTask) -> None:
        """Say how a task ended, and forget it."""
        del self._tasks[key]
        try:
            settled = task.settled()
        except SealBroken:
            event(_LOG, "false_close", logging.WARNING, task=task.header.task_id.hex())
            return
        if settled is not None and self._on_settled is not None:
            try:
                self._on_settled(settled)
            except Overloaded:
                # The registry has been away for so long that its records fill the disk's share.
                event(_LOG, "record_lost", logging.ERROR, task=task.header.task_id.hex())

    # -- what is due ------------------------------------------------------------------------

    async def _look_after(self) -> None:
        """See to deadlines, signs of life and closes: one timer for all tasks, not one for each."""
        while True:
            if not self._tasks:
                await self._bell.wait()
            await anyio.sleep(LOOK_S)
            for key, task in [*self._tasks.items()]:
                if task.over_s is None and loop_time() >= task.deadline_s:
                    task.is_late = task.is_late or not task.cut.made
                    task.cut.make()
                elif task.over_s is None:
                    await self._show_life(task)
                elif task.close is None:
                    self._ask_for_close(key, task, task.over_s)

    async def _show_life(self, task: ServedTask) -> None:
        """Send a sign of life for a handler that is at work and says that it gets on."""
        quiet_s = loop_time() - task.sent_s
        if task.finished or quiet_s < SIGN_OF_LIFE_S - LOOK_S or not task.is_alive():
            return
        with contextlib.suppress(StarAIError):
            # Else the chain is broken: the caller hears nothing in turn, and goes elsewhere.
            await task.send()

    def _ask_for_close(self, key: TaskKey, task: ServedTask, over_s: float) -> None:
        now_s = loop_time()
        if not task.asks_left or now_s - over_s > CLOSE_WAIT_CUT_OFF_S:
            self._settle(key, task)
        elif now_s - max(over_s, task.sent_s) >= CLOSE_ASK_S and self._wire.connected:
            task.asks_left -= 1
            task.sent_s = now_s
            task.repeat()


def _always() -> bool:
    return True
