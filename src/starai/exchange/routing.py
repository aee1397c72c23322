"""Routes to the parties of one role that are there now: what each serves, how busy, how reliable.

A distributor routes to nodes, a gateway to distributors. All of it is rebuilt from beats: whoever
starts anew knows everything after half a second. In-flight tasks are counted here as sets of
keys, because beats lag behind bursts. Which candidate is best, `starai.matching` says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import anyio
import msgspec

from starai.core.clock import Clock
from starai.core.errors import ContextTooLong, ModelNotFound, Overloaded, SealBroken, Unavailable
from starai.exchange.base import AttemptFailed, FailureKind
from starai.exchange.carrying import Journey, Target
from starai.exchange.presence import Presence
from starai.matching import Candidate, Demand, FinishTime, Policy
from starai.protocol import tokens
from starai.protocol.identity import PartyId
from starai.protocol.ports import Wire
from starai.protocol.presence import Beat, ServedModel
from starai.protocol.subjects import Role
from starai.protocol.tasks import RefusalCode
from starai.sealing import check_prekey

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
#: A failure counts half after this many seconds.
FAILURE_HALF_LIFE_S = 15.0


class Health(msgspec.Struct):
    """Recent failures of a party, decayed; ``at_s`` is when they were last counted."""

    failures: float = 0.0
    at_s: float = 0.0

    def now(self, now_s: float) -> float:
        """The failures as they weigh now."""
        return float(self.failures * 0.5 ** ((now_s - self.at_s) / FAILURE_HALF_LIFE_S))


class Routing:
    """The routes from one party to those of a role (see `starai.exchange.carrying.Route`)."""

    def __init__(
        self,
        wire: Wire,
        role: Role,
        clock: Clock,
        on_gone: Callable[[PartyId], None],
        policy: Policy | None = None,
    ) -> None:
        """Watch the parties of ``role`` on ``wire`` and rank them by ``policy``."""
        self._role = role
        self._clock = clock
        self._policy = policy or FinishTime()
        self._in_flight: dict[PartyId, set[bytes]] = {}
        self._health: dict[PartyId, Health] = {}
        self._waiting = 0
        self._changed = anyio.Event()
        self._checked: set[bytes] = set()
        self._tell_gone = on_gone
        self.presence = Presence(
            wire, role, clock, on_gone=self._on_gone, on_beat=lambda _: self._wake()
        )

    def models(self) -> tuple[ServedModel, ...]:
        """What can be served now: per model the longest context and all slots together."""
        found: dict[bytes, ServedModel] = {}
        for _, model in self._serving():
            known = found.get(model.model_root, msgspec.structs.replace(model, slots=0))
            found[model.model_root] = msgspec.structs.replace(
                known,
                context_length=max(known.context_length, model.context_length),
                slots=known.slots + model.slots,
            )
        return tuple(found.values())

    @property
    def num_waiting(self) -> int:
        """Tasks that wait for somebody free."""
        return self._waiting

    async def choose(self, journey: Journey, failed: Collection[PartyId]) -> Target:
        """The best that is free; waits for one, but not for ever and not with too many others."""
        target = self._try(journey, failed)
        if target is not None:
            return target
        if self._waiting >= WAITING_MAX:
            raise Overloaded("too many requests wait for a node; try again", retry_after_s=2.0)
        self._waiting += 1
        try:
            return await self._wait(journey, failed)
        finally:
            self._waiting -= 1

    def ended(self, target: Target, journey: Journey, failure: AttemptFailed | None) -> None:
        """Free the place; remember a failure that was the callee's fault."""
        self._in_flight.get(target.callee, set()).discard(journey.task_id)
        if failure is not None and _is_fault(failure):
            now_s = self._clock.monotonic_s()
            health = self._health.setdefault(target.callee, Health())
            health.failures, health.at_s = health.now(now_s) + 1.0, now_s
        self._wake()

    async def _wait(self, journey: Journey, failed: Collection[PartyId]) -> Target:
        began_s = self._clock.monotonic_s()
        while True:
            self._refuse_too_long(journey)
            waited_s = self._clock.monotonic_s() - began_s
            target = self._try(journey, failed if waited_s < SAME_AGAIN_S else ())
            if target is not None:
                return target
            served = any(m.model_root == journey.model_root for _, m in self._serving())
            if not served and waited_s >= WAIT_FOR_NODE_S:
                if len(self.presence):
                    raise ModelNotFound("nobody serves that model any more")
                raise Unavailable("no node is connected; try again shortly", retry_after_s=2.0)
            if waited_s >= WAIT_FOR_SLOT_S:
                raise Overloaded("all nodes are busy; try again shortly", retry_after_s=5.0)
            with anyio.move_on_after(LOOK_AGAIN_S):
                await self._changed.wait()

    def _refuse_too_long(self, journey: Journey) -> None:
        """Waiting does not help a prompt that fits nobody's context."""
        contexts = [one.context_length for one in self._candidates(journey.model_root)]
        num_prompt = tokens.count(journey.generation.prompt)
        if contexts and num_prompt >= max(contexts):
            raise ContextTooLong(
                f"a prompt of {num_prompt} tokens does not fit the model's context of "
                f"{max(contexts)}; shorten it"
            )

    def _try(self, journey: Journey, excluded: Collection[PartyId]) -> Target | None:
        """Hold a place on the best that is free now and not excluded."""
        demand = Demand(tokens.count(journey.generation.prompt), journey.generation.max_tokens)
        ranked = self._policy.rank(demand, self._candidates(journey.model_root))
        for candidate in ranked:
            if candidate.party in excluded:
                continue
            seen = self.presence.get(PartyId(candidate.party))
            if seen is not None and seen.prekey is not None and self._is_sound(seen):
                self._in_flight.setdefault(seen.party, set()).add(journey.task_id)
                return Target(seen.party, self._role, seen.prekey)
        return None

    def _candidates(self, model_root: bytes) -> Iterator[Candidate]:
        now_s = self._clock.monotonic_s()
        for seen, model in self._serving():
            if model.model_root != model_root:
                continue
            health = self._health.get(seen.party)
            yield Candidate(
                party=seen.party,
                slots=model.slots,
                running=max(seen.running, len(self._in_flight.get(seen.party, ()))),
                context_length=model.context_length,
                prefill_tps=model.prefill_tps,
                decode_tps=model.decode_tps,
                failures=health.now(now_s) if health else 0.0,
            )

    def _serving(self) -> Iterator[tuple[Beat, ServedModel]]:
        for seen in self.presence:
            if not seen.draining and seen.prekey is not None:
                for model in seen.models:
                    yield seen, model

    def _is_sound(self, seen: Beat) -> bool:
        """Whether a beat's prekey is its party's own; each prekey is checked once."""
        prekey = seen.prekey
        if prekey is None or prekey.party != seen.party:
            return False
        if prekey.prekey_id not in self._checked:
            try:
                check_prekey(prekey, self._clock.now_ms())
            except SealBroken:
                return False
            if len(self._checked) > 10_000:
                self._checked.clear()
            self._checked.add(prekey.prekey_id)
        return True

    def _on_gone(self, party: PartyId) -> None:
        self._tell_gone(party)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def _is_fault(failure: AttemptFailed) -> bool:
    """Whether a failure speaks against the callee; being busy or draining does not."""
    excused = (
        RefusalCode.BUSY,
        RefusalCode.DRAINING,
        RefusalCode.UNKNOWN_SESSION,
        RefusalCode.CONTEXT_TOO_LONG,
        RefusalCode.DEADLINE,
    )
    return failure.kind is not FailureKind.REFUSED or failure.refusal not in excused
