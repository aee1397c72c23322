"""Routes to the parties of one role that are there now: what each serves, how busy, how reliable.

A distributor routes to nodes, a gateway to distributors. All of it is rebuilt from beats: whoever
starts anew knows everything after half a second. In-flight tasks are counted here by
themselves, because beats lag behind bursts. Which candidate is best, `starai.matching` says.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator

import anyio
import msgspec

from starai.core.clock import Clock
from starai.core.errors import ContextTooLong, ModelNotFound, Overloaded, SealBroken, Unavailable
from starai.core.logging import event
from starai.exchange.attempt import Target
from starai.exchange.base import AttemptFailed, short
from starai.exchange.carrying import Journey
from starai.exchange.ladder import Fault, Ladder, Rung
from starai.exchange.presence import Presence
from starai.matching import Candidate, Demand, FinishTime, Policy
from starai.protocol import tokens
from starai.protocol.identity import PartyId
from starai.protocol.ports import Wire
from starai.protocol.presence import MODELS_MAX, SLOTS_MAX, Beat, ServedModel
from starai.protocol.subjects import Role
from starai.protocol.tasks import Prekey
from starai.sealing import check_prekey

_LOG = logging.getLogger(__name__)

#: Tasks that may wait for a free node; beyond that the answer is "overloaded, come back".
WAITING_MAX = 256
#: How long a task waits for a free node before it is refused.
WAIT_FOR_SLOT_S = 30.0
#: How long a task waits for any node at all: a node or NATS that restarts is back within this.
WAIT_FOR_NODE_S = 8.0
#: A node that failed a task may have it again after this long, when there is no other.
SAME_AGAIN_S = 0.5
#: How often the waiting look again although nothing was heard.
LOOK_AGAIN_S = 0.25
#: A prekey that is not good is looked at again after this long; a signature costs 0.1 ms.
CHECK_AGAIN_S = 5.0
#: A task may go to a party that rests (see `Ladder.is_last_resort`) after it waited this long.
LAST_RESORT_S = 1.0


class _Waiter:
    """A task in the line for a model: ``news`` is set when it should look again."""

    __slots__ = ("news",)

    def __init__(self) -> None:
        self.news = anyio.Event()


class Routing:
    """The routes from one party to those of a role (see `starai.exchange.carrying.Route`)."""

    def __init__(
        self,
        wire: Wire,
        role: Role,
        clock: Clock,
        on_gone: Callable[[PartyId], None],
        policy: Policy | None = None,
        on_draining: Callable[[PartyId], None] = lambda _party: None,
    ) -> None:
        """Watch the parties of ``role`` on ``wire`` and rank them by ``policy``.

        ``on_draining`` hears with each beat of a party that drains: its tasks may be handed over.
        """
        self._role = role
        self._clock = clock
        self._policy = policy or FinishTime()
        self._in_flight: Counter[PartyId] = Counter()
        # Who failed how often, who rests, and why: all of that is the ladder's.
        self.ladder = Ladder(self._on_step)
        #: Tasks that other callers have on a party, as its last beat tells.
        self._others: dict[PartyId, int] = {}
        #: Who waits, by model: the first of a line goes first.
        self._lines: dict[bytes, deque[_Waiter]] = {}
        self._good: dict[PartyId, Prekey] = {}
        self._bad: dict[PartyId, tuple[Prekey, float]] = {}
        self._tell_gone = on_gone
        self._tell_draining = on_draining
        self.presence = Presence(
            wire, role, clock, self._on_gone, on_beat=self._on_beat, on_fault=self.blame
        )

    def models(self) -> tuple[ServedModel, ...]:
        """What can be served now: per model the longest context and all slots together.

        Those that most parties serve come first, and there is an end to them: one party that
        makes models up keeps no other's from being seen.
        """
        found: dict[bytes, ServedModel] = {}
        parties: Counter[bytes] = Counter()
        for _, model in self._serving():
            root = model.model_root
            known = found.get(root, msgspec.structs.replace(model, slots=0))
            parties[root] += 1
            found[root] = msgspec.structs.replace(
                known,
                context_length=max(known.context_length, model.context_length),
                slots=min(known.slots + model.slots, SLOTS_MAX),
            )
        return tuple(found[root] for root, _ in parties.most_common(MODELS_MAX))

    @property
    def num_waiting(self) -> int:
        """Tasks that wait for somebody free."""
        return sum(map(len, self._lines.values()))

    async def choose(self, journey: Journey, failed: Collection[PartyId]) -> Target:
        """The best that is free; waits for one, but not for ever and not with too many others."""
        line = self._lines.get(journey.model_root)
        # An answer that was broken off goes to the front: somebody is in the middle of it.
        if failed or not line:
            target = self._try(journey, failed)
            if target is not None:
                return target
        if self.num_waiting >= WAITING_MAX:
            raise Overloaded("too many requests wait for a node; try again", retry_after_s=2.0)
        line = self._lines.setdefault(journey.model_root, deque())
        waiter = _Waiter()
        line.insert(0 if failed else len(line), waiter)
        try:
            return await self._wait(journey, failed, waiter)
        finally:
            line.remove(waiter)
            if line:
                line[0].news.set()
            else:
                self._lines.pop(journey.model_root, None)

    def ended(self, target: Target, journey: Journey, failure: AttemptFailed | None) -> None:
        """Free the place; remember a failure that was the callee's fault."""
        self._in_flight[target.callee] -= 1
        if not self._in_flight[target.callee]:
            del self._in_flight[target.callee]
        self.ladder.ended(target.callee, failure, self._clock.monotonic_s())
        self._wake()

    def choose_now(
        self, journey: Journey, failed: Collection[PartyId], *, spare: bool = False
    ) -> Target | None:
        """See `starai.exchange.carrying.Route.choose_now`."""
        if spare and self._lines.get(journey.model_root):
            return None
        return self._try(journey, failed)

    def blame(self, party: PartyId, fault: Fault) -> None:
        """Hold a fault that was seen outside of an attempt against a party."""
        self.ladder.blame(party, fault, self._clock.monotonic_s())

    async def _wait(self, journey: Journey, failed: Collection[PartyId], waiter: _Waiter) -> Target:
        began_s = self._clock.monotonic_s()
        line = self._lines[journey.model_root]
        while True:
            self._refuse_too_long(journey)
            waited_s = self._clock.monotonic_s() - began_s
            if line[0] is waiter:
                excluded = failed if waited_s < SAME_AGAIN_S else ()
                target = self._try(journey, excluded, even_resting=waited_s >= LAST_RESORT_S)
                if target is not None:
                    return target
            served = any(m.model_root == journey.model_root for _, m in self._serving())
            if not served and waited_s >= WAIT_FOR_NODE_S:
                if len(self.presence):
                    raise ModelNotFound("nobody serves that model any more")
                raise Unavailable("no node is connected; try again shortly", retry_after_s=2.0)
            if waited_s >= WAIT_FOR_SLOT_S:
                raise Overloaded("all nodes are busy; try again shortly", retry_after_s=5.0)
            waiter.news = anyio.Event()
            with anyio.move_on_after(LOOK_AGAIN_S):
                await waiter.news.wait()

    def _refuse_too_long(self, journey: Journey) -> None:
        """Waiting does not help a prompt that fits nobody's context."""
        contexts = [one.context_length for one in self._candidates(journey.model_root)]
        num_prompt = tokens.count(journey.generation.prompt)
        if contexts and num_prompt >= max(contexts):
            raise ContextTooLong(
                f"a prompt of {num_prompt} tokens does not fit the model's context of "
                f"{max(contexts)}; shorten it"
            )

    def _try(
        self, journey: Journey, excluded: Collection[PartyId], *, even_resting: bool = False
    ) -> Target | None:
        """Hold a place on the best that is free now and not excluded."""
        demand = Demand(tokens.count(journey.generation.prompt), journey.generation.max_tokens)
        now_s = self._clock.monotonic_s()
        here = [*self._candidates(journey.model_root)]
        open_ones = [one for one in here if self.ladder.may_serve(PartyId(one.party), now_s)]
        if even_resting or not open_ones:  # a party that rests is better than nobody
            resting = [one for one in here if one not in open_ones]
            resting = [o for o in resting if self.ladder.is_last_resort(PartyId(o.party), now_s)]
        else:
            resting = []
        ranked = self._policy.rank(demand, open_ones) + self._policy.rank(demand, resting)
        for candidate in ranked:
            if candidate.party in excluded:
                continue
            seen = self.presence.get(PartyId(candidate.party))
            if seen is not None and seen.prekey is not None and self._is_sound(seen):
                self._in_flight[seen.party] += 1
                self.ladder.began(seen.party, now_s)
                return Target(seen.party, self._role, seen.prekey)
        return None

    def _candidates(self, model_root: bytes) -> Iterator[Candidate]:
        now_s = self._clock.monotonic_s()
        for seen, model in self._serving():
            if model.model_root != model_root:
                continue
            yield Candidate(
                party=seen.party,
                slots=model.slots,
                running=self._in_flight[seen.party] + self._others.get(seen.party, 0),
                context_length=model.context_length,
                prefill_tps=model.prefill_tps,
                decode_tps=model.decode_tps,
                failures=self.ladder.failures(seen.party, now_s),
            )

    def _serving(self) -> Iterator[tuple[Beat, ServedModel]]:
        for seen in self.presence:
            if not seen.draining and not seen.paused and seen.prekey is not None:
                for model in seen.models:
                    yield seen, model

    def _is_sound(self, seen: Beat) -> bool:
        """Whether a beat's prekey is its party's own and good now; its signature is seen once."""
        prekey = seen.prekey
        if prekey is None or prekey.party != seen.party:
            return False
        now_ms, now_s = self._clock.now_ms(), self._clock.monotonic_s()
        if self._good.get(seen.party) == prekey:
            return now_ms <= prekey.not_after_ms
        bad, again_s = self._bad.get(seen.party, (None, 0.0))
        if bad == prekey and now_s < again_s:
            return False
        try:
            check_prekey(prekey, now_ms)
        except SealBroken as error:
            # Looked at again later: it may be our clock that is behind.
            self._bad[seen.party] = (prekey, now_s + CHECK_AGAIN_S)
            name = short(seen.party)
            event(_LOG, "bad_prekey", logging.WARNING, party=name, why=error.message)
            return False
        self._good[seen.party] = prekey
        return True

    def _on_beat(self, beat: Beat) -> None:
        # Own tasks are counted to the moment; only what others have there is hearsay.
        self._others[beat.party] = max(0, beat.running - self._in_flight[beat.party])
        if beat.draining:
            self._tell_draining(beat.party)
        self._wake()

    def _on_gone(self, party: PartyId) -> None:
        self._others.pop(party, None)
        self._good.pop(party, None)
        self._bad.pop(party, None)
        self.ladder.forget_faded(self._clock.monotonic_s())
        self._tell_gone(party)
        self._wake()

    def _wake(self) -> None:
        """Let the first of each line look again."""
        for line in self._lines.values():
            line[0].news.set()

    def _on_step(self, party: PartyId, rung: Rung, why: str) -> None:
        sound = rung in (Rung.GOOD, Rung.SUSPECT)
        level = logging.INFO if sound else logging.WARNING
        event(_LOG, "ladder", level, party=short(party), rung=rung.value, why=why)
