"""The candidates for one model, kept in order, so that a choice need not look at all of them.

A choice among a few candidates estimates them all exactly. Among many, for three shapes of task (a
long prompt, a usual one, a long answer), every open candidate lies in a bucket by its estimated
finish time; a bucket is a quarter wider than the one before. Whatever changes a candidate moves it,
in constant time, before the shape's buckets are next looked at. A choice takes some of the fastest
buckets of the shape that is nearest to its task, adds those whose prefix cache helps, and estimates
only these exactly. Within a bucket it begins at a random place: candidates there are about equal.

It does not know where candidates come from, nor who waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

import msgspec

from starai.matching.base import Candidate, Demand
from starai.matching.choice import two_choices
from starai.matching.filtering import Reason, closed, unfit
from starai.matching.finish_time import LONGEST_MS, finish_ms

#: The shapes: (tokens of the prompt, tokens of the answer).
SHAPES: Final = ((8192, 256), (1024, 256), (64, 256))
#: A task belongs to the first shape whose least prompt tokens per answer token it has.
_LEAST_RATIOS: Final = (16.0, 1.0)
#: Candidates that are estimated exactly; a few more than are drawn from.
EXAMINED_MAX: Final = 16
#: Candidates with a prefix that are looked at besides: those that hold most of it.
CACHED_MAX: Final = 4
#: What the best offer is looked up anew after so long: when one leaves, it is less.
BEST_FOR_S: Final = 1.0
#: An answer is seldom shorter than this share of what is expected.
SHORT: Final = 0.25
_NOTHING: Final[Mapping[str, float]] = {}
#: Buckets to a doubling of the time, and in all: to the longest of estimates.
_BUCKETS_A_DOUBLING: Final = 3
_BUCKETS: Final = int(math.log2(LONGEST_MS) * _BUCKETS_A_DOUBLING) + 1


class Best(msgspec.Struct, frozen=True):
    """The longest context, and the least seconds a token takes to be read, and to be written.

    A node that was not measured may be as fast as any.
    """

    context_length: int = 0
    prefill_s: float = math.inf
    decode_s: float = math.inf

    def raised(self, one: Candidate) -> Best:
        """With a candidate among those it is of."""
        prefill_s = 1.0 / one.prefill_tps if one.prefill_tps else 0.0
        decode_s = 1.0 / one.decode_tps if one.decode_tps else 0.0
        if (
            one.context_length <= self.context_length
            and prefill_s >= self.prefill_s
            and decode_s >= self.decode_s
        ):
            return self
        return Best(
            max(one.context_length, self.context_length),
            min(prefill_s, self.prefill_s),
            min(decode_s, self.decode_s),
        )

    def least_s(self, demand: Demand) -> float:
        """No candidate finishes sooner: it would be idle, near, and answer a quarter as much."""
        return demand.prompt_tokens * self.prefill_s + SHORT * demand.answer_tokens * self.decode_s


class _Entry:
    """A candidate and where it lies: its bucket and its place there, for each shape."""

    __slots__ = ("buckets", "candidate", "is_open", "places")

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        #: Whether it could take a task now.
        self.is_open = False
        self.buckets = [-1] * len(SHAPES)
        self.places = [0] * len(SHAPES)


class _Lane:
    """All open candidates in order of their finish times for one shape."""

    __slots__ = ("buckets", "changed", "demand", "number", "occupied")

    def __init__(self, number: int) -> None:
        self.number = number
        self.demand = Demand(*SHAPES[number])
        self.buckets: list[list[_Entry]] = [[] for _ in range(_BUCKETS)]
        #: A bit for each bucket that holds somebody.
        self.occupied = 0
        #: Those that may lie wrongly since they changed; a dict, for its order.
        self.changed: dict[_Entry, None] = {}

    def settle(self, now_s: float) -> None:
        """Put those that changed where they belong now."""
        for entry in self.changed:
            is_open = entry.is_open
            self._move(entry, _bucket(self.demand, entry.candidate, now_s) if is_open else -1)
        self.changed.clear()

    def drop(self, entry: _Entry) -> None:
        """Forget one that is gone."""
        self.changed.pop(entry, None)
        self._move(entry, -1)

    def _move(self, entry: _Entry, bucket: int) -> None:
        """Put the entry into a bucket; -1 takes it out."""
        before = entry.buckets[self.number]
        if before == bucket:
            return
        if before >= 0:
            members, place = self.buckets[before], entry.places[self.number]
            last = members.pop()
            if last is not entry:
                members[place] = last
                last.places[self.number] = place
            if not members:
                self.occupied &= ~(1 << before)
        entry.buckets[self.number] = bucket
        if bucket >= 0:
            members = self.buckets[bucket]
            entry.places[self.number] = len(members)
            members.append(entry)
            self.occupied |= 1 << bucket

    def walk(self, chance: Callable[[], float]) -> Iterator[_Entry]:
        """All in order of buckets, in each from a random place on."""
        left = self.occupied
        while left:
            lowest = left & -left
            left ^= lowest
            members = self.buckets[lowest.bit_length() - 1]
            start, number = int(chance() * len(members)), len(members)
            for place in range(start, start + number):
                yield members[place if place < number else place - number]


class Pool:
    """The candidates for one model."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._entries: dict[str, _Entry] = {}
        self._resting: dict[str, _Entry] = {}
        self._lanes = tuple(_Lane(number) for number in range(len(SHAPES)))
        self._num_open = 0
        self._num_sound = 0
        self._best = _NOBODY
        self._best_at_s = float("-inf")

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Candidate]:
        return (entry.candidate for entry in self._entries.values())

    @property
    def num_open(self) -> int:
        """Candidates that could take a task now."""
        return self._num_open

    @property
    def num_sound(self) -> int:
        """Candidates that can take a task, now or when a slot of theirs is free."""
        return self._num_sound

    @property
    def num_resting(self) -> int:
        """Candidates with a free slot that are asked only when there is nobody else."""
        return len(self._resting)

    def best(self, now_s: float) -> Best:
        """What the best of all offer; never too little, and too much for a second at most."""
        if now_s - self._best_at_s >= BEST_FOR_S:
            self._best, self._best_at_s = _NOBODY, now_s
            for entry in self._entries.values():
                if _is_serving(entry.candidate):
                    self._best = self._best.raised(entry.candidate)
        return self._best

    def get(self, party: str) -> Candidate | None:
        """A candidate as it was last put."""
        entry = self._entries.get(party)
        return entry.candidate if entry else None

    def put(self, candidate: Candidate) -> None:
        """A candidate came, or something about it changed."""
        entry = self._entries.get(candidate.party)
        if entry is None:
            entry = self._entries[candidate.party] = _Entry(candidate)
        else:
            self._num_sound -= _is_sound(entry.candidate)
        self._num_sound += _is_sound(candidate)
        entry.candidate = candidate
        if _is_serving(candidate):
            self._best = self._best.raised(candidate)
        why_not = closed(candidate)
        if why_not is Reason.RESTING and candidate.running < candidate.slots:
            self._resting[candidate.party] = entry
        else:
            self._resting.pop(candidate.party, None)
        is_open = why_not is None
        self._num_open += is_open - entry.is_open
        entry.is_open = is_open
        for lane in self._lanes:
            lane.changed[entry] = None

    def reload(self, party: str, running: int, unseen: int, free_at_s: float) -> None:
        """A candidate has more or less to do; nothing else about it changed."""
        entry = self._entries.get(party)
        if entry is None:
            return
        now = msgspec.structs.replace(
            entry.candidate, running=running, unseen=unseen, free_at_s=free_at_s
        )
        if not entry.is_open or running >= now.slots:
            self.put(now)  # it may be open now, or no longer
            return
        entry.candidate = now
        for lane in self._lanes:
            lane.changed[entry] = None

    def drop(self, party: str) -> None:
        """A candidate is gone."""
        entry = self._entries.pop(party, None)
        if entry is None:
            return
        self._resting.pop(party, None)
        self._num_sound -= _is_sound(entry.candidate)
        self._num_open -= entry.is_open
        for lane in self._lanes:
            lane.drop(entry)

    def choose(
        self,
        demand: Demand,
        now_s: float,
        chance: Callable[[], float],
        cached: Mapping[str, float] = _NOTHING,
        excluded: Collection[str] = (),
        *,
        even_resting: bool = False,
    ) -> Candidate | None:
        """Who should take a task now; None when nobody can.

        ``cached`` says how many tokens of the prompt a party holds. Those that rest are taken
        when there are no others at all, or ``even_resting`` says so and no other can.
        """
        if self._num_open:
            if len(self._entries) <= EXAMINED_MAX:
                able = self._all_able(demand, excluded)
            else:
                able = self._examine(demand, now_s, chance, cached, excluded)
            if len(able) == 1:
                return able[0]
            if able:
                ranked = [(finish_ms(demand, c, now_s, cached.get(c.party, 0.0)), c) for c in able]
                ranked.sort(key=_by_estimate)
                return two_choices(ranked, chance())
        if self._num_sound and not even_resting:
            return None
        last = [e.candidate for e in self._resting.values() if e.candidate.party not in excluded]
        able = [one for one in last if unfit(demand, one) is None]
        return min(able, key=lambda c: (finish_ms(demand, c, now_s), c.party)) if able else None

    def _all_able(self, demand: Demand, excluded: Collection[str]) -> list[Candidate]:
        """All that can take the task: few enough to look at each."""
        return [
            entry.candidate
            for entry in self._entries.values()
            if entry.is_open
            and entry.candidate.party not in excluded
            and unfit(demand, entry.candidate) is None
        ]

    def _examine(
        self,
        demand: Demand,
        now_s: float,
        chance: Callable[[], float],
        cached: Mapping[str, float],
        excluded: Collection[str],
    ) -> list[Candidate]:
        """Some of the fastest that can take the task, and those that have read it already."""
        found: list[Candidate] = []
        helpful = sorted(cached, key=cached.__getitem__, reverse=True)[:CACHED_MAX]
        for party in helpful:
            entry = self._entries.get(party)
            if entry is None or not entry.is_open or party in excluded:
                continue
            if unfit(demand, entry.candidate) is None:
                found.append(entry.candidate)
        enough = len(found) + EXAMINED_MAX
        lane = self._lanes[_shape(demand)]
        lane.settle(now_s)
        for entry in lane.walk(chance):
            candidate = entry.candidate
            if candidate.party in excluded or candidate.party in helpful:
                continue
            if unfit(demand, candidate) is None:
                found.append(candidate)
                if len(found) >= enough:
                    break
        return found


_NOBODY: Final = Best()


def _is_serving(candidate: Candidate) -> bool:
    return not (candidate.draining or candidate.paused or candidate.banned)


def _is_sound(candidate: Candidate) -> bool:
    return not candidate.resting and _is_serving(candidate)


def _by_estimate(pair: tuple[float, Candidate]) -> tuple[float, str]:
    # Equal estimates by name, so that a ranking is reproducible.
    return pair[0], pair[1].party


def _shape(demand: Demand) -> int:
    ratio = demand.prompt_tokens / max(1, demand.answer_tokens)
    for number, least in enumerate(_LEAST_RATIOS):
        if ratio >= least:
            return number
    return len(_LEAST_RATIOS)


def _bucket(demand: Demand, candidate: Candidate, now_s: float) -> int:
    estimate = finish_ms(demand, candidate, now_s)
    return int(math.log2(max(estimate, 1.0)) * _BUCKETS_A_DOUBLING)
