"""Hands the gateway's tasks to distributors over the wire: the real `TaskPort`.

It seals each task to a distributor and, when that one dies, carries on with another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starai.core.concurrency import task_group
from starai.exchange.carrying import Carried, Carrier, Journey
from starai.exchange.member import Member
from starai.exchange.offering import Offering
from starai.exchange.presence import keep_beating
from starai.exchange.routing import Routing
from starai.protocol.generation import Part
from starai.protocol.ports import Submission
from starai.protocol.presence import Beat, ServedModel
from starai.protocol.subjects import Role
from starai.protocol.tasks import RefusalCode


class Dispatch:
    """A gateway's way to the distributors (a `starai.protocol.ports.TaskPort`)."""

    def __init__(self, member: Member) -> None:
        """Speak as ``member``."""
        self._member = member
        self._boot = member.clock.now_ms()
        self._running = 0
        self._done = 0
        self._offering = Offering(member)
        self._routing = Routing(member.wire, Role.DISTRIBUTOR, member.clock, self._offering.lose)
        # A distributor says "busy" after it has waited for all nodes itself: asking on would
        # multiply the load when there is too much of it.
        self._carrier = Carrier(member, self._offering, self._routing, final=(RefusalCode.BUSY,))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen and beat inside the context."""
        async with (
            self._routing.presence.watching(),
            self._offering.running(),
            task_group() as group,
        ):
            group.start_soon(keep_beating, self._member.wire, Role.GATEWAY, self._beat)
            yield
            group.cancel_scope.cancel()

    @property
    def is_ready(self) -> bool:
        """Whether a request could be served now."""
        return self._member.wire.connected and bool(self._routing.models())

    def models(self) -> tuple[ServedModel, ...]:
        """What can be served right now, one entry a model name, by name."""
        by_name = {model.name: model for model in self._routing.models()}
        return tuple(by_name[name] for name in sorted(by_name))

    @asynccontextmanager
    async def submit(self, submission: Submission) -> AsyncIterator[AsyncIterator[Part]]:
        """Have an answer generated; see `TaskPort.submit`."""
        journey = Journey(
            task_id=submission.task_id,
            model_root=submission.model_root,
            customer=submission.customer,
            deadline_ms=submission.deadline_ms,
            generation=submission.generation,
        )
        self._running += 1
        try:
            async with self._carrier.carry(journey) as answer:
                yield _Parts(answer)
                self._done += 1
        finally:
            self._running -= 1

    def _beat(self, seq: int) -> Beat:
        member = self._member
        return Beat(
            party=member.identity.party,
            role=Role.GATEWAY.value,
            boot=self._boot,
            seq=seq,
            sent_ms=member.clock.now_ms(),
            draining=False,
            running=self._running,
            queued=0,
            done=self._done,
            tokens=0,
        )


class _Parts:
    """The parts of an answer, until the one with a finish."""

    def __init__(self, answer: Carried) -> None:
        self._answer = answer
        self._finished = False

    def __aiter__(self) -> _Parts:
        return self

    async def __anext__(self) -> Part:
        if self._finished:
            raise StopAsyncIteration
        part = await self._answer.receive()
        self._finished = part.finish is not None
        return part
