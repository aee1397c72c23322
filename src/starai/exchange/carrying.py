"""Carries one answer to its end over as many attempts as it takes: fail-over, in token ids.

When a callee refuses, falls silent, breaks the chain or dies, the task is offered to another one
with the tokens accepted so far; with the same sample key the answer goes on as if nothing had
happened. Who the next callee is, a `Route` decides.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

import anyio
import msgspec

from starai.core.errors import (
    ContextTooLong,
    DeadlinePassed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    StarAIError,
    Unavailable,
)
from starai.core.limits import ATTEMPTS_MAX
from starai.exchange.base import AttemptFailed, Settled
from starai.exchange.member import Member
from starai.exchange.offering import AnswerStream, Ask, Offering
from starai.protocol.generation import Generation, Part
from starai.protocol.identity import PartyId
from starai.protocol.subjects import Role
from starai.protocol.tasks import Prekey, RefusalCode


class Target(msgspec.Struct, frozen=True):
    """A callee that was chosen for an attempt."""

    callee: PartyId
    role: Role
    prekey: Prekey


class Journey(msgspec.Struct, frozen=True):
    """What is to be carried: one answer, for one customer, until a deadline in Unix ms.

    Attempts are numbered from ``first_attempt`` on. Whoever carries on what was offered to it
    under some attempt takes `attempts_within` that: so no two attempts at one task ever bear the
    same number, whichever distributors carried it, and each has its own place in the books.
    """

    task_id: bytes
    model_root: bytes
    customer: int
    deadline_ms: int
    generation: Generation
    price_id: int = 0
    first_attempt: int = 0


def attempts_within(attempt: int) -> int:
    """The first number of the attempts that are made on behalf of ``attempt``."""
    return attempt * ATTEMPTS_MAX


class Route(Protocol):
    """Chooses who is next."""

    async def choose(self, journey: Journey, failed: Collection[PartyId]) -> Target:
        """The next callee, preferably none of ``failed``; may wait for one to be free.

        Raises:
            Overloaded: too many wait already.
            Unavailable: there is nobody.
            ModelNotFound: nobody serves the model.
        """
        ...

    def ended(self, target: Target, journey: Journey, failure: AttemptFailed | None) -> None:
        """Hear how an attempt ended; called once for each `choose` that returned."""
        ...


class Carried:
    """One answer on its way. Made by `Carrier.carry`; read by one task."""

    def __init__(
        self,
        member: Member,
        offering: Offering,
        route: Route,
        journey: Journey,
        on_settled: Callable[[Settled], Awaitable[None]] | None,
        final: Collection[str],
    ) -> None:
        """Stand before the first attempt."""
        self._member = member
        self._offering = offering
        self._route = route
        self._journey = journey
        self._on_settled = on_settled
        self._final = final
        self._accepted = bytearray(journey.generation.accepted)
        self._failed: list[PartyId] = []
        self._attempt = 0
        self._target: Target | None = None
        self._stream: AnswerStream | None = None
        self._exchange = AsyncExitStack()

    async def receive(self) -> Part:
        """The next part, whoever made it. The last one is durable on record when it returns.

        Raises:
            StarAIError: it cannot be carried on; see `StarAIError.retryable`.
        """
        while True:
            try:
                if self._stream is None:
                    self._stream = await self._begin()
                part = await self._stream.receive()
            except AttemptFailed as failure:
                if self._target is not None and failure.refusal != RefusalCode.UNKNOWN_SESSION:
                    self._failed.append(self._target.callee)
                await self.end(failure)
                self._give_up_after(failure)
                continue
            self._accepted += part.ids
            if part.finish is not None:
                await self.end(None)
            return part

    async def end(self, failure: AttemptFailed | None) -> None:
        """End the current attempt: put it on record, close it, tell the route.

        Also when the reader is cancelled meanwhile: the callee will put it on record too.
        """
        stream, target = self._stream, self._target
        self._stream = self._target = None
        if target is None:
            return
        with anyio.CancelScope(shield=True):
            try:
                if stream is not None and self._on_settled is not None:
                    settled = stream.settle(self._member.clock.now_ms())
                    if settled.is_owed:
                        await self._on_settled(settled)
            finally:
                exchange, self._exchange = self._exchange, AsyncExitStack()
                await exchange.aclose()
                self._route.ended(target, self._journey, failure)

    async def _begin(self) -> AnswerStream:
        journey = self._journey
        left_s = (journey.deadline_ms - self._member.clock.now_ms()) / 1000
        with anyio.move_on_after(max(left_s, 0)) as waiting:
            self._target = await self._route.choose(journey, self._failed)
        if self._target is None or waiting.cancelled_caught:
            raise DeadlinePassed("no node was free before the request's deadline")
        generation = msgspec.structs.replace(
            journey.generation,
            accepted=bytes(self._accepted),
            salt=self._member.randomness.take(16),
        )
        ask = Ask(
            task_id=journey.task_id,
            attempt=journey.first_attempt + self._attempt,
            callee=self._target.callee,
            role=self._target.role,
            prekey=self._target.prekey,
            model_root=journey.model_root,
            customer=journey.customer,
            deadline_ms=journey.deadline_ms,
            generation=generation,
            price_id=journey.price_id,
        )
        self._attempt += 1
        return await self._exchange.enter_async_context(self._offering.offer(ask))

    def _give_up_after(self, failure: AttemptFailed) -> None:
        """Raise when another attempt makes no sense."""
        error = _verdict(failure)
        if not error.retryable and not isinstance(error, ModelNotFound):
            raise error from failure
        if self._attempt >= ATTEMPTS_MAX or failure.refusal in self._final:
            raise error from failure


def _verdict(failure: AttemptFailed) -> StarAIError:
    """What a failed attempt means for whoever asked."""
    after_s = failure.retry_after_s or 1.0
    match failure.refusal:
        case RefusalCode.CONTEXT_TOO_LONG:
            return ContextTooLong("prompt and max_tokens exceed the model's context")
        case RefusalCode.INVALID_REQUEST:
            return InvalidRequest("the model cannot do what this request asks for")
        case RefusalCode.DEADLINE:
            return DeadlinePassed("the request's deadline passed; ask for fewer tokens")
        case RefusalCode.BUSY:
            return Overloaded("all queues are full; try again shortly", retry_after_s=after_s)
        case RefusalCode.UNKNOWN_MODEL:
            return ModelNotFound("nobody serves that model any more")
        case _:
            return Unavailable(
                "no node could carry the answer to its end; try again", retry_after_s=after_s
            )


class Carrier:
    """Carries answers for a gateway or a distributor."""

    def __init__(
        self,
        member: Member,
        offering: Offering,
        route: Route,
        on_settled: Callable[[Settled], Awaitable[None]] | None = None,
        final: Collection[str] = (),
    ) -> None:
        """Offer through ``offering`` along ``route``.

        ``on_settled`` is awaited for every attempt with accepted tokens, before its last part
        is handed on. After a refusal with one of the ``final`` codes nobody else is tried.
        """
        self._member = member
        self._offering = offering
        self._route = route
        self._on_settled = on_settled
        self._final = final

    @asynccontextmanager
    async def carry(self, journey: Journey) -> AsyncIterator[Carried]:
        """An answer to read; leaving the context early cancels the work."""
        carried = Carried(
            self._member, self._offering, self._route, journey, self._on_settled, self._final
        )
        try:
            yield carried
        finally:
            await carried.end(None)
