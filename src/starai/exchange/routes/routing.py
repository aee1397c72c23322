"""Routes to the parties of one role that are there now: who gets a task, who waits, who is refused.

A distributor routes to nodes, a gateway to distributors. All of it is rebuilt from beats: whoever
starts anew knows everything after half a second. Which party is best, `starai.matching` says, of
what `starai.exchange.routes.roster` knows; when nobody is free, tenants wait in turn.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from itertools import islice

import anyio

from starai.core.errors import (
    ContextTooLong,
    DeadlinePassed,
    ModelNotFound,
    Overloaded,
    StarAIError,
    Unavailable,
)
from starai.core.limits import BEAT_INTERVAL_S
from starai.core.logging import event
from starai.exchange.base import AttemptFailed, FailureKind, short
from starai.exchange.caller.attempt import Target
from starai.exchange.caller.journey import Journey
from starai.exchange.member import Member
from starai.exchange.routes.roster import Roster
from starai.exchange.standing.ladder import Fault, Ladder, Rung
from starai.exchange.standing.presence import Presence
from starai.matching import Demand, FairQueue, PrefixIndex, Ticket, block_hashes
from starai.matching.filtering import Reason, closed, reasons
from starai.matching.queueing import cost
from starai.protocol import tokens
from starai.protocol.identity import PartyId
from starai.protocol.presence import Beat, ServedModel
from starai.protocol.subjects import Role
from starai.protocol.tasks import RefusalCode

_LOG = logging.getLogger(__name__)

#: Tasks that may wait for a free node; beyond that the answer is "overloaded, come back".
WAITING_MAX = 256
#: How long a task waits for a free node before it is refused.
WAIT_FOR_SLOT_S = 30.0
#: How long a task waits for any node at all: a node or NATS that restarts is back within this.
WAIT_FOR_NODE_S = 8.0
#: It waits at its gateway: a distributor without a node for it says so after two beats, and at once
#: of an answer that was broken off, because another distributor may have such a node.
NOBODY_S = 2 * BEAT_INTERVAL_S
#: A node that failed a task may have it again after this long, when there is no other.
SAME_AGAIN_S = 0.5
#: A task may go to a party that rests (see `Ladder.is_last_resort`) after it waited this long.
LAST_RESORT_S = 1.0
#: How often the waiting look again although nothing was heard, beside at those moments.
LOOK_AGAIN_S = 2.0
#: How many of a line are tried for a free place, when those before them cannot use it.
LOOK_AHEAD = 8


class _Task:
    """A task that is to be placed: what it needs, and, while it waits, what became of it."""

    __slots__ = (
        *("broken_off", "demand", "error", "failed", "hashes"),
        *("journey", "news", "since_s", "target"),
    )

    def __init__(
        self,
        journey: Journey,
        failed: Collection[PartyId],
        regions: tuple[str, ...],
        since_s: float,
    ) -> None:
        generation = journey.generation
        num_accepted = tokens.count(generation.accepted)
        self.journey = journey
        self.failed = failed
        #: Whether somebody is in the middle of the answer, which began here or elsewhere.
        self.broken_off = bool(failed or num_accepted)
        self.since_s = since_s
        self.demand = Demand(
            tokens.count(generation.prompt) + num_accepted,
            max(0, generation.max_tokens - num_accepted),
            regions=regions,
        )
        self.hashes: list[int] = []
        #: What its waiting waits for; who is placed at once never waits.
        self.news: anyio.Event | None = None
        self.target: Target | None = None
        self.error: StarAIError | None = None

    def settle(self, target: Target | None, error: StarAIError | None = None) -> None:
        self.target, self.error = target, error
        if self.news is not None:
            self.news.set()


class Routing:
    """The routes from one party to those of a role (see `caller.journey.Route`)."""

    def __init__(
        self,
        member: Member,
        role: Role,
        on_gone: Callable[[PartyId], None],
        *,
        on_draining: Callable[[PartyId], None] = lambda _party: None,
        rtt_ms: Callable[[PartyId], float | None] = lambda _party: None,
    ) -> None:
        """Watch the parties of ``role``.

        ``on_draining`` hears with each beat of a party that drains: its tasks may be handed over.
        ``rtt_ms`` says how far a party is, if that was measured here; nodes tell by beats.
        """
        clock = member.clock
        self._role = role
        self._clock = clock
        self._tell_gone = on_gone
        self._tell_draining = on_draining
        self.ladder = Ladder(self._on_step)
        self.roster = Roster(
            role, member.identity.party, clock, member.randomness, self.ladder, rtt_ms
        )
        self._queue: FairQueue[_Task] = FairQueue(WAITING_MAX)
        # Only nodes keep what they have read; hashes of prompts are worth nothing without the key.
        self._prefixes = PrefixIndex() if role is Role.NODE else None
        self._prefix_key = member.randomness.take(32)
        self.presence = Presence(
            member.wire, role, clock, self._on_gone, on_beat=self._on_beat, on_fault=self.blame
        )

    def models(self) -> tuple[ServedModel, ...]:
        """What can be served now; see `Roster.models`."""
        return self.roster.models()

    @property
    def num_waiting(self) -> int:
        """Tasks that wait for somebody free."""
        return len(self._queue)

    def waiting(self) -> dict[bytes, int]:
        """How many tasks wait for each model."""
        return {root: self._queue.waiting(root) for root in map(_root, self._queue.lines())}

    async def choose(self, journey: Journey, failed: Collection[PartyId]) -> Target:
        """The best that is free; waits for one, but not for ever and not with too many others."""
        task = self._task(journey, failed)
        # An answer that was broken off goes to the front: somebody is in the middle of it.
        if task.broken_off or not self._queue.waiting(journey.model_root):
            target = self._hold(task, failed, even_resting=task.broken_off)
            if target is not None:
                self._charge(task)
                return target
        self._refuse_hopeless(task)
        weight = cost(task.demand.prompt_tokens, task.demand.answer_tokens)
        ticket, evicted = self._queue.join(
            *(task, journey.model_root, journey.customer, weight, task.since_s),
            urgent=task.broken_off,
        )
        if evicted is not None:
            evicted.item.settle(None, _too_many())
        if ticket is None:
            raise _too_many()
        try:
            return await self._wait(ticket)
        except BaseException:
            if task.target is not None:  # granted at the moment at which it gave up
                self.ended(task.target, journey, AttemptFailed(FailureKind.LEFT))
            raise
        finally:
            self._queue.leave(ticket)

    def choose_now(
        self,
        journey: Journey,
        failed: Collection[PartyId],
        *,
        spare: bool = False,
        even_resting: bool = False,
    ) -> Target | None:
        """See `starai.exchange.caller.journey.Route.choose_now`."""
        if spare and self._queue.waiting(journey.model_root):
            return None
        return self._hold(self._task(journey, failed), failed, even_resting=even_resting)

    def ended(self, target: Target, journey: Journey, failure: AttemptFailed | None) -> None:
        """Free the place; remember a failure that was the callee's fault."""
        self.ladder.ended(target.callee, failure, self._clock.monotonic_s())
        self.roster.free(target)
        if failure and failure.kind is FailureKind.SILENT:
            self.roster.silent(target.callee)
        # A distributor that is busy with one model may have room for another one's tasks.
        if failure and failure.refusal == RefusalCode.BUSY and self._role is Role.NODE:
            self.roster.full(target.callee)
        beat = self.presence.get(target.callee)
        if beat is not None and len(self._queue):
            self._grant_all(beat)

    def blame(self, party: PartyId, fault: Fault) -> None:
        """Hold a fault that was seen outside of an attempt against a party."""
        self.ladder.blame(party, fault, self._clock.monotonic_s())
        self.roster.changed(party)

    def _task(self, journey: Journey, failed: Collection[PartyId]) -> _Task:
        generation, now_s = journey.generation, self._clock.monotonic_s()
        # A distributor may be anywhere: it is the node that computes.
        regions = generation.regions if self._role is Role.NODE else ()
        task = _Task(journey, failed, regions, now_s)
        if self._prefixes is not None:
            scope = journey.model_root + generation.cache_salt + generation.adapter.encode()
            task.hashes = block_hashes(self._prefix_key, scope, generation.prompt)
        return task

    async def _wait(self, ticket: Ticket[_Task]) -> Target:
        task = ticket.item
        while task.target is None:
            if task.error is not None:
                raise task.error
            self._refuse_hopeless(task)
            self._refuse_late(task)
            self._grant(task.journey.model_root)
            if task.target is None and task.error is None:
                news = task.news = anyio.Event()
                with anyio.move_on_after(self._pause_s(task)):
                    await news.wait()
        return task.target

    def _pause_s(self, task: _Task) -> float:
        """How long until time alone may change something for a task; beats wake it sooner."""
        waited_s = self._clock.monotonic_s() - task.since_s
        moments = (SAME_AGAIN_S, LAST_RESORT_S, NOBODY_S, WAIT_FOR_NODE_S, WAIT_FOR_SLOT_S)
        left_s = min((at_s - waited_s for at_s in moments if at_s > waited_s), default=0.0)
        return min(left_s + 0.001, LOOK_AGAIN_S)

    def _grant_all(self, beat: Beat) -> None:
        for model in beat.models:
            self._grant(model.model_root)

    def _grant(self, model_root: bytes) -> None:
        """Give places to those who wait for a model, as long as there are any for the first."""
        now_s, pool = self._clock.monotonic_s(), self.roster.pool(model_root)
        while pool is not None and pool.num_open + pool.num_resting:
            for ticket in islice(self._queue.order(model_root, now_s), LOOK_AHEAD):
                task = ticket.item
                waited_s = now_s - task.since_s
                excluded = task.failed if waited_s < SAME_AGAIN_S else ()
                # An answer in the middle rather goes on with one that rests than pauses.
                even_resting = task.broken_off or waited_s >= LAST_RESORT_S
                target = self._hold(task, excluded, even_resting=even_resting)
                if target is not None:
                    self._queue.leave(ticket)
                    self._charge(task)
                    task.settle(target)
                    break
            else:
                return

    def _hold(
        self, task: _Task, excluded: Collection[PartyId], *, even_resting: bool = False
    ) -> Target | None:
        root, cached = task.journey.model_root, self._cached(task)
        target = self.roster.hold(root, task.demand, cached, excluded, even_resting=even_resting)
        if target is not None and self._prefixes is not None and task.hashes:
            self._prefixes.add(task.hashes, target.callee)
        return target

    def _cached(self, task: _Task) -> dict[str, float]:
        if self._prefixes is None or not task.hashes:
            return {}
        return self._prefixes.find(task.hashes)

    def _charge(self, task: _Task) -> None:
        if not task.failed:  # what was broken off was paid for when it began
            weight = cost(task.demand.prompt_tokens, task.demand.answer_tokens)
            self._queue.charge(task.journey.customer, weight)

    def _refuse_hopeless(self, task: _Task) -> None:
        """Waiting does not help a prompt that fits nobody's context, nor against a deadline."""
        pool = self.roster.pool(task.journey.model_root)
        best = pool.best(self._clock.monotonic_s()) if pool is not None else None
        if best is None or not best.context_length:
            return
        num_prompt = tokens.count(task.journey.generation.prompt)
        if num_prompt >= best.context_length:
            raise ContextTooLong(
                f"a prompt of {num_prompt} tokens does not fit the model's context of "
                f"{best.context_length}; shorten it"
            )
        left_s = (task.journey.deadline_ms - self._clock.now_ms()) / 1000
        # A prompt that somebody has read already takes less than any prompt of its length.
        if best.least_s(task.demand) > left_s and not self._cached(task):
            raise DeadlinePassed("no node could answer before the request's deadline")

    def _refuse_late(self, task: _Task) -> None:
        """Who has waited too long is told why."""
        pool = self.roster.pool(task.journey.model_root)
        waited_s = self._clock.monotonic_s() - task.since_s
        is_served = pool is not None and (
            pool.num_sound + pool.num_resting > 0
            # Those that rest and are full are neither.
            or any(closed(one) is Reason.RESTING for one in pool)
        )
        if not is_served and self._role is Role.NODE and (task.failed or waited_s >= NOBODY_S):
            raise ModelNotFound("no node here serves that model")
        if not is_served and waited_s >= WAIT_FOR_NODE_S:
            raise Unavailable("nobody serves that model now; try again shortly", retry_after_s=2.0)
        if self._clock.now_ms() >= task.journey.deadline_ms:
            raise DeadlinePassed("no node was free before the request's deadline")
        if waited_s >= WAIT_FOR_NODE_S and pool is not None and task.demand.regions:
            why = reasons(task.demand, pool)
            if why[Reason.REGION] and sum(why.values()) - why[Reason.FULL] == len(pool):
                raise Unavailable(f"no node that could answer: {_told(why)}", retry_after_s=5.0)
        if waited_s >= WAIT_FOR_SLOT_S:
            why = reasons(task.demand, pool or (), task.failed)
            event(_LOG, "not_placed", **{reason.name.lower(): n for reason, n in why.items()})
            raise Overloaded("all nodes are busy; try again shortly", retry_after_s=5.0)

    def _on_beat(self, beat: Beat) -> None:
        self.roster.heard(beat)
        if beat.draining:
            self._tell_draining(beat.party)
        if len(self._queue):
            self._grant_all(beat)

    def _on_gone(self, party: PartyId) -> None:
        self.roster.gone(party)
        if self._prefixes is not None:
            self._prefixes.forget(party)
        self.ladder.forget_faded(self._clock.monotonic_s())
        self._tell_gone(party)

    def _on_step(self, party: PartyId, rung: Rung, why: str) -> None:
        sound = rung in (Rung.GOOD, Rung.SUSPECT)
        level = logging.INFO if sound else logging.WARNING
        event(_LOG, "ladder", level, party=short(party), rung=rung.value, why=why)


def _told(why: Counter[Reason]) -> str:
    return ", ".join(f"{number}: {reason.value}" for reason, number in why.most_common())


def _root(line: object) -> bytes:
    assert isinstance(line, bytes)  # noqa: S101 - lines are named by model roots here
    return line


def _too_many() -> Overloaded:
    return Overloaded("too many requests wait for a node; try again", retry_after_s=2.0)
