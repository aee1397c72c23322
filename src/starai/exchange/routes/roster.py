"""The parties of one role as matching sees them: a pool of candidates for each model.

Beats, tasks that begin and end here, and the ladder move candidates in their pools; a choice takes
one out of a pool. Own tasks are counted by themselves, because beats lag behind bursts: each holds
a place with a number of its own, so that no place is given back twice. Who waits, it does not know.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Final

import msgspec

from starai.core.clock import Clock
from starai.core.errors import SealBroken
from starai.core.logging import event
from starai.core.randomness import Randomness
from starai.exchange.base import short
from starai.exchange.caller.attempt import Target
from starai.exchange.standing.ladder import Ladder
from starai.matching import Candidate, Demand, Pool
from starai.matching.finish_time import reading_s, share_at
from starai.protocol.identity import PartyId
from starai.protocol.presence import MODELS_MAX, SLOTS_MAX, Beat, ServedModel
from starai.protocol.subjects import Role
from starai.protocol.tasks import Prekey
from starai.sealing import check_prekey

_LOG = logging.getLogger(__name__)

#: A prekey that is not good is looked at again after this long; a signature costs 0.1 ms.
CHECK_AGAIN_S: Final = 5.0
#: A party whose distance is not known is taken to be on the same continent.
ASSUMED_RTT_MS: Final = 50.0
#: Models of a party whose load is told at once; those of one that serves more, by its next beat.
TOLD_AT_ONCE_MAX: Final = 32


class _Party:
    """What is known of one party between its beats."""

    __slots__ = (
        "beat",
        "free_at_s",
        "good",
        "others",
        "places",
        "rested",
        "silent",
        "since_s",
        "unheard",
        "unsound_s",
    )

    def __init__(self, beat: Beat, now_s: float) -> None:
        self.beat = beat
        self.since_s = now_s
        #: Own tasks, and how many others have there as its last beat tells.
        self.places: set[int] = set()
        self.others = 0
        #: Own tasks that are younger than its last beat.
        self.unheard = 0
        self.free_at_s = 0.0
        self.rested = False
        #: Whether a task was given up for silence, and nothing has been heard since.
        self.silent = False
        self.good: Prekey | None = None
        #: Until when its prekey is not looked at again.
        self.unsound_s = 0.0


class Roster:
    """Who is there, how busy, and who is best."""

    def __init__(
        self,
        role: Role,
        me: PartyId,
        clock: Clock,
        randomness: Randomness,
        ladder: Ladder,
        rtt_ms: Callable[[PartyId], float | None],
    ) -> None:
        """Rank parties of ``role`` as seen by ``me``; ``rtt_ms`` has own measurements."""
        #: How many others place tasks on the same parties.
        self.num_peers = 0
        self._role = role
        self._me = me
        self._clock = clock
        self._chance = randomness.fraction
        self._ladder = ladder
        self._rtt_ms = rtt_ms
        #: What is believed of what a party says of a model: whoever measured it may know better.
        self.believe: Callable[[PartyId, ServedModel], ServedModel] = lambda _party, model: model
        #: Hears when somebody is the first to serve a model, or the last.
        self.on_served: Callable[[], None] = lambda: None
        self._num_serving: Counter[bytes] = Counter()
        self._parties: dict[PartyId, _Party] = {}
        self._pools: dict[bytes, Pool] = {}
        # Moved in their pools before somebody looks there, and not for every task that comes and
        # goes in between. Whether more than a party's tasks may have changed; in order.
        self._changed: dict[PartyId, bool] = {}
        self._next_place = 0

    def __len__(self) -> int:
        return len(self._parties)

    @property
    def num_held(self) -> int:
        """Places that are held here."""
        return sum(len(known.places) for known in self._parties.values())

    def pool(self, model_root: bytes) -> Pool | None:
        """The candidates for a model, those that cannot take a task included."""
        self._settle()
        return self._pools.get(model_root)

    def models(self) -> tuple[ServedModel, ...]:
        """What can be served now: per model the longest context and all slots together.

        Speeds are left out: they are one party's, and say nothing of a task among many.
        Those that most parties serve come first, and there is an end to them: one party that
        makes models up keeps no other's from being seen.
        """
        found: dict[bytes, ServedModel] = {}
        parties: Counter[bytes] = Counter()
        for _, model in self.serving():
            root = model.model_root
            known = found.get(root)
            if known is None:
                known = msgspec.structs.replace(model, slots=0, prefill_tps=0.0, decode_tps=0.0)
            parties[root] += 1
            found[root] = msgspec.structs.replace(
                known,
                context_length=max(known.context_length, model.context_length),
                slots=min(known.slots + model.slots, SLOTS_MAX),
            )
        return tuple(found[root] for root, _ in parties.most_common(MODELS_MAX))

    def serving(self) -> Iterator[tuple[Beat, ServedModel]]:
        """Who serves what, of those that take tasks at all."""
        for known in self._parties.values():
            beat = known.beat
            if _served(beat):
                for model in beat.models:
                    yield beat, model

    def heard(self, beat: Beat) -> None:
        """A beat came."""
        now_s = self._clock.monotonic_s()
        known = self._parties.get(beat.party)
        before = _served(known.beat) if known is not None else frozenset()
        if known is None:
            known = self._parties[beat.party] = _Party(beat, now_s)
        gone = {one.model_root for one in known.beat.models} - {m.model_root for m in beat.models}
        known.beat = beat
        # Own tasks are counted to the moment; only what others have there is hearsay.
        known.unheard = 0
        known.silent = False
        speeds = [model.prefill_tps for model in beat.models if model.prefill_tps]
        known.free_at_s = now_s + beat.unread / max(speeds) if speeds else 0.0
        known.others = max(0, beat.running + beat.queued - len(known.places))
        for model_root in gone:
            self._leave_pool(model_root, beat.party)
        for model in beat.models:
            self._put(known, model, now_s)
        self._count(before, _served(beat))

    def gone(self, party: PartyId) -> None:
        """A party is there no longer, nor are its places."""
        known = self._parties.pop(party, None)
        if known is not None:
            for model in known.beat.models:
                self._leave_pool(model.model_root, party)
            self._count(_served(known.beat), frozenset())

    def _count(self, before: frozenset[bytes], after: frozenset[bytes]) -> None:
        """Count who serves what, for `on_served`."""
        if before == after:
            return
        self._num_serving.update(after - before)
        self._num_serving.subtract(before - after)
        changed = [root for root in before ^ after if self._num_serving[root] == (root in after)]
        self._num_serving = +self._num_serving
        if changed:
            self.on_served()

    def changed(self, party: PartyId) -> None:
        """Something about a party is different, such as its place on the ladder."""
        self._changed[party] = True

    def _worked(self, party: PartyId) -> None:
        """A task of a party began or ended; what time alone changes, its next beat will tell."""
        self._changed[party] = self._changed.get(party, False) or self._ladder.weighs(party)

    def _settle(self) -> None:
        now_s = self._clock.monotonic_s()
        for party, in_all in self._changed.items():
            known = self._parties.get(party)
            if known is not None:
                for model in known.beat.models[:TOLD_AT_ONCE_MAX]:
                    if in_all:
                        self._put(known, model, now_s)
                    else:
                        self._reload(known, model.model_root, now_s)
        self._changed.clear()

    def hold(
        self,
        model_root: bytes,
        demand: Demand,
        cached: dict[str, float],
        excluded: Collection[PartyId],
        *,
        even_resting: bool = False,
    ) -> Target | None:
        """Hold a place on who is best and free now; None when nobody is."""
        self._settle()
        pool, now_s = self._pools.get(model_root), self._clock.monotonic_s()
        while pool is not None:
            chosen = pool.choose(
                demand, now_s, self._chance, cached, excluded, even_resting=even_resting
            )
            if chosen is None:
                break
            party = PartyId(chosen.party)
            known = self._parties[party]
            prekey = self._sound_prekey(known, now_s)
            if prekey is None:
                # Whoever is found to be unsound is not found again, so that this ends.
                pool.put(msgspec.structs.replace(chosen, banned=True))
                continue
            self._next_place += 1
            known.places.add(self._next_place)
            known.unheard += 1
            if chosen.prefill_tps:
                hit = cached.get(chosen.party, 0.0)
                # The others have probably done the same since its last beat, which tells of none.
                reading = reading_s(demand, chosen, hit) * (1 + self.num_peers)
                known.free_at_s = max(now_s, known.free_at_s) + reading
            self._ladder.began(party, now_s)
            self._worked(party)
            return Target(party, self._role, prekey, self._next_place)
        return None

    def full(self, party: PartyId) -> None:
        """A party says that it is full: others were faster. Its next beat tells how it is then."""
        known = self._parties.get(party)
        if known is not None:
            slots = max((model.slots for model in known.beat.models), default=0)
            known.others = max(known.others, slots - len(known.places))
            self.changed(party)

    def silent(self, party: PartyId) -> None:
        """A task was given up for silence: until its next beat it is a last resort."""
        known = self._parties.get(party)
        if known is not None:
            known.silent = True
            self.changed(party)

    def free(self, target: Target) -> None:
        """Give a place back; once more does no harm, nor when its party is gone."""
        known = self._parties.get(target.callee)
        if known is not None:
            known.places.discard(target.place)
            if not known.places and not known.others:
                known.free_at_s = 0.0  # who has no tasks has nothing to read
            self._worked(target.callee)

    def _put(self, known: _Party, model: ServedModel, now_s: float) -> None:
        model = self.believe(known.beat.party, model)
        candidate = self._candidate(known, model, now_s)
        pool = self._pools.get(model.model_root)
        if pool is None:
            pool = self._pools[model.model_root] = Pool()
        if pool.get(candidate.party) != candidate:
            pool.put(candidate)

    def _reload(self, known: _Party, model_root: bytes, now_s: float) -> None:
        """Its tasks alone are different."""
        self._pools[model_root].reload(
            known.beat.party,
            len(known.places) + known.others,
            known.unheard * self.num_peers,
            known.free_at_s if known.free_at_s > now_s else 0.0,
        )

    def _candidate(self, known: _Party, model: ServedModel, now_s: float) -> Candidate:
        beat, ladder = known.beat, self._ladder
        rests = not ladder.may_serve(beat.party, now_s)
        if known.rested and not rests:
            known.since_s = now_s  # recovered: it begins slowly
        known.rested = rests
        unsound = beat.prekey is None or now_s < known.unsound_s
        return Candidate(
            party=beat.party,
            slots=model.slots,
            running=len(known.places) + known.others,
            context_length=model.context_length,
            prefill_tps=model.prefill_tps,
            decode_tps=model.decode_tps,
            rtt_ms=self._distance_ms(beat),
            failures=ladder.failures(beat.party, now_s),
            unseen=known.unheard * self.num_peers,
            free_at_s=known.free_at_s if known.free_at_s > now_s else 0.0,
            share=share_at(now_s - known.since_s),
            quantisation=model.quantisation,
            modality=model.modality,
            region=beat.region,
            draining=beat.draining,
            paused=bool(beat.paused),
            resting=rests or known.silent,
            banned=unsound or (rests and not ladder.is_last_resort(beat.party, now_s)),
        )

    def _distance_ms(self, beat: Beat) -> float:
        for trip in beat.rtts:
            if trip.party == self._me:
                return trip.rtt_ms
        measured = self._rtt_ms(beat.party)
        return ASSUMED_RTT_MS if measured is None else measured

    def _leave_pool(self, model_root: bytes, party: PartyId) -> None:
        pool = self._pools.get(model_root)
        if pool is not None:
            pool.drop(party)
            if not len(pool):
                del self._pools[model_root]

    def _sound_prekey(self, known: _Party, now_s: float) -> Prekey | None:
        """A party's prekey, if it is its own and good now; its signature is checked once."""
        prekey, now_ms = known.beat.prekey, self._clock.now_ms()
        if prekey is None:
            return None
        if prekey == known.good and now_ms <= prekey.not_after_ms:
            return prekey
        try:
            _check_own(prekey, known.beat.party, now_ms)
        except SealBroken as error:
            # Looked at again later: it may be our clock that is behind.
            known.unsound_s = now_s + CHECK_AGAIN_S
            name = short(known.beat.party)
            event(_LOG, "bad_prekey", logging.WARNING, party=name, why=error.message)
            return None
        known.good = prekey
        return prekey


def _check_own(prekey: Prekey, party: PartyId, now_ms: int) -> None:
    if prekey.party != party:
        raise SealBroken("a prekey is another party's")
    check_prekey(prekey, now_ms)


def _served(beat: Beat) -> frozenset[bytes]:
    """What a party takes tasks for, as its beat says."""
    if beat.draining or beat.paused or beat.prekey is None:
        return frozenset()
    return frozenset(model.model_root for model in beat.models)
