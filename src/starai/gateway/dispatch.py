"""Hands the gateway's tasks to distributors over the wire: the real `TaskPort`.

It seals each task to a distributor and, when that one dies, carries on with another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Self

from starai.core.concurrency import task_group
from starai.core.errors import ModelNotFound, Unavailable
from starai.exchange.caller.carrying import Carried, Carrier
from starai.exchange.caller.journey import Journey
from starai.exchange.caller.offering import Offering
from starai.exchange.member import Member
from starai.exchange.routes.routing import Routing
from starai.exchange.routes.wanting import Wanted
from starai.exchange.standing.pinging import Pinger, answering_pings
from starai.exchange.standing.presence import keep_beating
from starai.protocol.generation import Part
from starai.protocol.ports import Submission
from starai.protocol.presence import Beat, ServedModel
from starai.protocol.subjects import Role
from starai.protocol.tasks import RefusalCode

#: What is served is asked of the beats this often; they come twice a second themselves.
_LOOK_S: Final = 0.05


class Dispatch:
    """A gateway's way to the distributors (a `starai.protocol.ports.TaskPort`)."""

    def __init__(self, member: Member) -> None:
        """Speak as ``member``."""
        self._member = member
        self._boot = member.clock.now_ms()
        self._running = 0
        self._done = 0
        self._models: tuple[ServedModel, ...] = ()
        self._looked_s = float("-inf")
        self._offering = Offering(member, closes_finished=False)
        self._pinger = Pinger(member)
        self._wanted = Wanted(member.clock)
        self._routing = Routing(
            member,
            Role.DISTRIBUTOR,
            self._offering.lose,
            on_draining=self._offering.drain,
            rtt_ms=self._pinger.rtt_ms,
        )
        # A distributor says "busy" after it has waited for all nodes itself: asking all the others
        # would multiply the load when there is too much of it. One may have nodes of its own.
        self._carrier = Carrier(member, self._offering, self._routing, final=(RefusalCode.BUSY,))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen and beat inside the context."""
        async with (
            self._routing.presence.watching(),
            self._offering.running(),
            self._pinger.running(),
            answering_pings(self._member),
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
        now_s = self._member.clock.monotonic_s()
        if now_s - self._looked_s >= _LOOK_S:
            by_name = {model.name: model for model in self._routing.models()}
            self._models = tuple(by_name[name] for name in sorted(by_name))
            self._looked_s = now_s
        return self._models

    def missed(self, name: str, model_root: bytes) -> None:
        """See `TaskPort.missed`: beats tell the distributors."""
        self._wanted.missed(name, model_root)

    def submit(self, submission: Submission) -> Submitted:
        """Have an answer generated; see `TaskPort.submit`."""
        journey = Journey(
            task_id=submission.task_id,
            model_root=submission.model_root,
            customer=submission.customer,
            deadline_ms=submission.deadline_ms,
            generation=submission.generation,
            price=submission.price,
        )
        return Submitted(self._carrier.carry(journey), self._count)

    def _count(self, begun: int, done: int) -> None:
        self._running += begun
        self._done += done

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
            models=self._wanted.models(),
            rtts=self._pinger.nearest(),
        )


class Submitted:
    """An answer on its way: a context, and inside it the parts up to the one with a finish."""

    def __init__(self, answer: Carried, count: Callable[[int, int], None]) -> None:
        """Made by `Dispatch.submit`; ``count`` hears how many tasks more run, and are done."""
        self._answer = answer
        self._count = count
        self._finished = False

    async def __aenter__(self) -> Self:
        self._count(1, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._answer.leave()
        finally:
            self._count(-1, self._finished)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Part:
        if self._finished:
            raise StopAsyncIteration
        try:
            part = await self._answer.receive()
        except ModelNotFound as error:
            # All that announced it have no node for it any more: one may come back.
            raise Unavailable(
                "nobody serves that model now; try again shortly", retry_after_s=2.0
            ) from error
        self._finished = part.finish is not None
        return part
