"""Carries one answer to its end over as many attempts as it takes: fail-over, in token ids.

When a callee refuses, falls silent, stalls, breaks the chain, drains or dies, the task is offered
to another one with the tokens accepted so far; with the same sample key the answer goes on as if
nothing had happened. When the first token is late, a second callee is asked beside the first, and
whoever is first with a token goes on; for an answer that was broken off, that is sooner. Who the
next callee is, a `Route` decides.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Self

import anyio
import msgspec

from starai.core.errors import ModelNotFound, UnsupportedField
from starai.core.limits import ATTEMPT_NUMBERS, ATTEMPTS_MAX
from starai.core.logging import event
from starai.core.waking import loop_time
from starai.exchange.base import AttemptFailed, FailureKind, Settled, short
from starai.exchange.caller.attempt import LOOK_AGAIN_S, Attempt, Due, Target, verdict
from starai.exchange.caller.hedging import Hedging
from starai.exchange.caller.journey import Journey, Route
from starai.exchange.caller.offering import Ask, Offering
from starai.exchange.caller.pacing import Paces
from starai.exchange.caller.reading import OVERSLEPT_S, AnswerStream
from starai.exchange.mailboxes import Bell
from starai.exchange.member import Member
from starai.protocol import tokens
from starai.protocol.generation import Part
from starai.protocol.identity import PartyId
from starai.protocol.tasks import RefusalCode

_LOG = logging.getLogger(__name__)

#: Ends of an attempt that speak against nobody and count as no failure.
_NO_FAILURE = (FailureKind.HANDED_OVER, FailureKind.OUTRUN, FailureKind.LEFT)


@dataclass(frozen=True)
class Carrier:
    """Carries answers for a gateway or a distributor.

    ``on_settled`` is awaited for every attempt with accepted tokens and told how its callee will
    be (the close, as `Offering.say_closed` takes it), before its last part is
    handed on. After a refusal with one of the ``final`` codes one other callee is tried, and only
    if it is free now. With ``paces``, callees that give signs of life but no tokens are left for
    others; with ``hedging``, late first tokens are asked for twice.
    """

    member: Member
    offering: Offering
    route: Route
    on_settled: Callable[[Settled, bytes], Awaitable[None]] | None = None
    final: Collection[str] = ()
    paces: Paces | None = None
    hedging: Hedging | None = None

    def carry(self, journey: Journey) -> Carried:
        """An answer to read; leaving it as a context early cancels the work."""
        return Carried(self, journey)


class Carried:
    """One answer on its way. Made by `Carrier.carry`; read by one task."""

    def __init__(self, carrier: Carrier, journey: Journey) -> None:
        """Stand before the first attempt."""
        self._by = carrier
        self._journey = journey
        self._num_prompt = tokens.count(journey.generation.prompt)
        self._accepted = bytearray(journey.generation.accepted)
        self._failed: list[PartyId] = []
        self._number = 0
        self._failures = 0
        #: Whether somebody else was tried after a final refusal.
        self._spilled = False
        self._bell = Bell()
        #: One attempt; two while a hedge races with the first.
        self._attempts: list[Attempt] = []
        #: Whether none of these has brought a token yet.
        self._is_race = True
        #: Whether somebody was given up already, here or elsewhere, and nobody has gone on yet.
        self._is_urgent = bool(journey.generation.accepted or journey.first_attempt)
        #: What has ended and is not on record yet: whoever goes on is asked first.
        self._ended: list[AnswerStream] = []
        #: Who was chosen to take over before the present attempt is given up.
        self._heir: Target | None = None
        self._hedge_s: float | None = None
        self._began_s: float | None = None
        #: When the last attempt was given up, until somebody goes on.
        self._gave_up_s: float | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def receive(self) -> Part:
        """The next part, whoever made it. The last one is on record when it returns.

        Raises:
            StarAIError: it cannot be carried on; see `StarAIError.retryable`.
        """
        while True:
            if self._attempts:
                part = await self._read()
                if part is not None:
                    return part
                await self._see_to_what_is_due()
            else:
                await self._begin()
            if self._attempts:
                await self._wait()

    async def leave(self) -> None:
        """End whatever is under way: the reader is done, or gone."""
        if not self._attempts and not self._ended and self._heir is None:
            return  # nearly always: the answer came to its end
        left = AttemptFailed(FailureKind.LEFT)
        for attempt in (*self._attempts,):
            self._part(attempt, left)
        await self._settle()
        if self._heir is not None:
            self._by.route.ended(self._heir, self._journey, left)
            self._heir = None

    async def _read(self) -> Part | None:
        """A part that has come; None: none has, or the attempt that failed was the last."""
        for attempt in (*self._attempts,):
            try:
                part = attempt.poll()
            except AttemptFailed as failure:
                self._give_up(attempt, failure)
                continue
            if part is not None:
                await self._take(attempt, part)
                return part
        return None

    async def _take(self, attempt: Attempt, part: Part) -> None:
        if part.ids or part.finish is not None:
            self._accepted += part.ids
            if self._is_race:
                await self._won(attempt)
        if part.finish is not None:
            self._part(attempt, None)
            await self._settle()

    async def _won(self, winner: Attempt) -> None:
        """The race for the next token is over, if there was one."""
        self._is_race = self._is_urgent = False
        # Who failed before this may do better now; what it was worth then, the route knows.
        self._failures, self._spilled = 0, False
        self._failed.clear()
        by_hedge = len(self._attempts) > 1 and winner is self._attempts[-1]
        hedging, began_s = self._by.hedging, self._began_s
        if hedging is not None and began_s is not None:
            root, took_s = self._journey.model_root, loop_time() - began_s
            hedging.first_token(root, self._num_prompt, took_s, by_hedge=by_hedge)
        self._hedge_s = self._began_s = None
        if self._gave_up_s is not None:
            self._tell_resumed(winner, self._gave_up_s, by_hedge=by_hedge)
            self._gave_up_s = None
        for other in (*self._attempts,):
            if other is not winner:
                self._part(other, AttemptFailed(FailureKind.OUTRUN))
        await self._settle()

    def _tell_resumed(self, winner: Attempt, gave_up_s: float, *, by_hedge: bool) -> None:
        """Say how long nobody went on after somebody was given up, and how much of it unasked."""
        event(
            _LOG,
            "answer_resumed",
            task=self._journey.task_id.hex(),
            callee=short(winner.target.callee),
            gap_ms=round(1000 * (loop_time() - gave_up_s), 1),
            wait_ms=round(1000 * max(0.0, winner.began_s - gave_up_s), 1),
            by_hedge=by_hedge,
        )

    async def _wait(self) -> None:
        """Until something comes, or until something is due."""
        due_s = min(attempt.due_s() for attempt in self._attempts)
        if self._hedge_s is not None:
            due_s = min(due_s, self._hedge_s)
        await self._bell.wait(due_s)
        now_s = loop_time()
        if now_s > due_s + OVERSLEPT_S:
            for attempt in self._attempts:
                attempt.excuse(now_s)

    async def _see_to_what_is_due(self) -> None:
        now_s = loop_time()
        if self._hedge_s is not None and now_s >= self._hedge_s:
            await self._hedge(now_s)
        for attempt in (*self._attempts,):
            self._see_to(attempt, now_s)

    def _see_to(self, attempt: Attempt, now_s: float) -> None:
        """Do what is due with an attempt of which nothing has come."""
        # The last try is not left for a stall: slow may be all that there is today.
        match attempt.due(now_s, patient=self._failures >= ATTEMPTS_MAX - 1):
            case Due.SILENT:
                self._give_up(attempt, AttemptFailed(FailureKind.SILENT))
            case Due.STALLED:
                kind = FailureKind.STALLED if attempt.has_token else FailureKind.LATE
                self._hand_over(attempt, kind, now_s)
            case Due.RELIEVED:
                self._hand_over(attempt, FailureKind.HANDED_OVER, now_s)
            case None:
                pass

    def _hand_over(self, attempt: Attempt, kind: FailureKind, now_s: float) -> None:
        """Let somebody else take over, if there is somebody: else this one may yet go on."""
        if len(self._attempts) == 1:
            self._heir = self._free_now((*self._failed, attempt.target.callee))
            if self._heir is None:
                attempt.look_later(now_s)
                return
        self._give_up(attempt, AttemptFailed(kind))

    async def _hedge(self, now_s: float) -> None:
        """Ask a second callee for the next token, if there is a place to spare."""
        hedging, self._hedge_s = self._by.hedging, None
        if hedging is None or len(self._attempts) != 1 or self._number >= ATTEMPT_NUMBERS:
            return
        first = self._attempts[0]
        if self._is_urgent:  # it has one for itself, when its callee serves nobody
            if first.late_s > now_s:
                self._hedge_s = first.late_s
                return
        elif not hedging.may_hedge():
            return
        others = (*self._failed, first.target.callee)
        target = self._free_now(others, spare=True, even_resting=self._is_urgent)
        if target is not None:
            if not self._is_urgent:
                hedging.hedged()
            with contextlib.suppress(AttemptFailed):  # then the first goes on alone
                await self._offer(target)
        elif self._is_urgent:
            self._hedge_s = now_s + LOOK_AGAIN_S

    def _free_now(
        self, others: Collection[PartyId], *, spare: bool = False, even_resting: bool = False
    ) -> Target | None:
        """Somebody who is free, none of ``others``, and gets on with what it has."""
        if self._by.paces is not None:
            others = (*others, *self._by.paces.pausing(loop_time()))
        return self._by.route.choose_now(
            self._journey, others, spare=spare, even_resting=even_resting
        )

    def _give_up(self, attempt: Attempt, failure: AttemptFailed) -> None:
        """End a failed attempt; raise when another makes no sense."""
        if failure.refusal != RefusalCode.UNKNOWN_SESSION:
            self._failed.append(attempt.target.callee)
        self._is_urgent, now_s = True, loop_time()
        if self._gave_up_s is None:
            self._gave_up_s = now_s
        event(
            _LOG,
            "attempt_given_up",
            task=self._journey.task_id.hex(),
            callee=short(attempt.target.callee),
            why=failure.refusal or failure.kind.value,
            quiet_ms=round(1000 * attempt.quiet_s(failure.kind, now_s)),
            accepted=tokens.count(bytes(self._accepted)),
        )
        self._part(attempt, failure)
        if not self._attempts:
            self._judge(failure)

    def _judge(self, failure: AttemptFailed) -> None:
        if failure.kind not in _NO_FAILURE and failure.refusal != RefusalCode.DRAINING:
            self._failures += 1
        error = verdict(failure)
        if not error.retryable and not isinstance(error, ModelNotFound | UnsupportedField):
            raise error from failure
        exhausted = self._failures >= ATTEMPTS_MAX or self._number >= ATTEMPT_NUMBERS
        if exhausted or (failure.refusal in self._by.final and not self._spills_over()):
            raise error from failure

    def _spills_over(self) -> bool:
        """Whether one other goes on after a final refusal: the load grows by two, not by all."""
        if not self._spilled:
            self._heir = self._by.route.choose_now(self._journey, self._failed)
        self._spilled = True
        return self._heir is not None

    def _part(self, attempt: Attempt, failure: AttemptFailed | None) -> None:
        """Have done with an attempt and tell the route; `_settle` puts it on record."""
        self._attempts.remove(attempt)
        attempt.end()
        self._ended.append(attempt.stream)
        self._by.route.ended(attempt.target, self._journey, failure)

    async def _settle(self) -> None:
        """Put on record what has ended, and close it.

        Also when the reader is cancelled meanwhile: the callee will put it on record too. The
        shield is none against a `Cut`: whoever keeps the record has it before it first waits.
        """
        by = self._by
        while self._ended:
            stream = self._ended.pop()
            try:
                if by.on_settled is not None:
                    settled = stream.settle(by.member.clock.now_ms())
                    if settled.is_owed:
                        with anyio.CancelScope(shield=True):
                            await by.on_settled(settled, by.offering.closing(stream))
            finally:
                by.offering.end(stream)

    async def _begin(self) -> None:
        """Offer the task to whoever is next; a failure to do so is one of the attempt."""
        target, self._heir = self._heir, None
        self._is_race = True
        if target is None and self._failed:
            target = self._free_now(self._failed)
        if target is None:
            await self._settle()  # it may take long
            target = await self._choose()
        if self._number == 0 and self._by.hedging is not None:
            now_s = self._began_s = loop_time()
            delay_s = self._by.hedging.begin(self._journey.model_root, self._num_prompt)
            self._hedge_s = None if delay_s is None else now_s + delay_s
        try:
            await self._offer(target)
        except AttemptFailed as failure:
            self._failed.append(target.callee)
            self._judge(failure)
        else:
            if self._is_urgent:
                self._hedge_s = self._attempts[-1].late_s
        await self._settle()

    async def _choose(self) -> Target:
        """Whom the route chooses, unless nothing gets on there and somebody else is free."""
        by = self._by
        target = await by.route.choose(self._journey, self._failed)
        if by.paces is not None and by.paces.pauses(target.callee, loop_time()):
            other = self._free_now(self._failed, spare=True)
            if other is not None:
                by.route.ended(target, self._journey, AttemptFailed(FailureKind.LEFT))
                return other
        return target

    async def _offer(self, target: Target) -> None:
        by, journey = self._by, self._journey
        generation = journey.generation
        if self._number:  # the first offer is of what came, under its own salt
            salt = by.member.randomness.take(16)
            generation = msgspec.structs.replace(
                generation, accepted=bytes(self._accepted), salt=salt
            )
        price = journey.price
        if generation.accepted:  # whoever answered with that was paid for the prompt
            price = msgspec.structs.replace(price, input_nano_usd=0)
        ask = Ask(
            task_id=journey.task_id,
            attempt=journey.first_attempt + self._number,
            callee=target.callee,
            role=target.role,
            prekey=target.prekey,
            model_root=journey.model_root,
            customer=journey.customer,
            deadline_ms=journey.deadline_ms,
            generation=generation,
            price=price,
        )
        self._number += 1
        try:
            stream = await by.offering.begin(ask, self._bell)
        except AttemptFailed as failure:
            by.route.ended(target, journey, failure)
            raise
        except BaseException:
            by.route.ended(target, journey, AttemptFailed(FailureKind.LEFT))
            raise
        num_read = self._num_prompt + tokens.count(generation.accepted)
        now_s = loop_time()
        pace = by.paces.begin(target.callee, num_read, now_s) if by.paces else None
        self._attempts.append(Attempt(target, stream, pace))
