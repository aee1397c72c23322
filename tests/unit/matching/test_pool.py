"""A pool chooses as a look at everybody would, without looking at everybody."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from starai.core.randomness import SeededRandomness
from starai.matching import Candidate, Demand, Pool
from starai.matching.choice import NEAR, near_best, two_choices
from starai.matching.filtering import closed, unfit
from starai.matching.finish_time import finish_ms
from starai.matching.pool import BEST_FOR_S, SHORT

DEMAND = Demand(100, 100)
#: Some more than are all looked at.
PARTIES = "ABCDEFGHIJKLMNOPQRSTUVWX"
CANDIDATES = st.builds(
    Candidate,
    party=st.sampled_from(PARTIES),
    slots=st.integers(0, 3),
    running=st.integers(0, 3),
    context_length=st.integers(50, 400),
    prefill_tps=st.floats(0, 1e9),
    decode_tps=st.floats(0, 1e9),
    rtt_ms=st.floats(0, 1e9),
    failures=st.floats(0, 1e6),
    share=st.floats(0.2, 1),
    region=st.sampled_from(["", "eu", "us-west"]),
    draining=st.booleans(),
    paused=st.booleans(),
    resting=st.booleans(),
    banned=st.booleans(),
)
DEMANDS = st.builds(
    Demand,
    prompt_tokens=st.integers(0, 400),
    max_tokens=st.integers(0, 10_000),
    regions=st.sampled_from([(), ("us",)]),
)


def always_first() -> float:
    return 0.0


def pool_of(*candidates: Candidate) -> Pool:
    pool = Pool()
    for one in candidates:
        pool.put(one)
    return pool


def chosen(pool: Pool, demand: Demand = DEMAND, **how: object) -> str | None:
    found = pool.choose(demand, 0.0, always_first, **how)
    return found.party if found else None


def test_of_two_the_one_that_finishes_first() -> None:
    """Speed, load and distance decide; with two there is no chance in it."""
    slow = Candidate("slow", 4, 0, 4096, decode_tps=10.0)
    fast = Candidate("fast", 4, 0, 4096, decode_tps=11.0)
    assert chosen(pool_of(slow, fast)) == "fast"
    equal = Candidate("equal", 4, 0, 4096, decode_tps=11.0, rtt_ms=50.0)
    assert chosen(pool_of(equal, fast)) == "fast"
    assert chosen(pool_of(replace(fast, running=3), replace(fast, party="idle"))) == "idle"


def test_the_nearest_is_first_when_all_else_is_equal() -> None:
    """Of many equal nodes the two nearest alone are chosen between, whatever chance says."""
    nodes = [Candidate(f"{ms:03}", 4, 0, 4096, rtt_ms=ms) for ms in range(0, 80, 10)]
    pool, source = pool_of(*nodes), SeededRandomness(1)
    counted = Counter(pool.choose(DEMAND, 0.0, source.fraction).party for _ in range(2000))
    order = [party for party, _ in counted.most_common()]
    assert order == sorted(order)
    assert len(order) == len(nodes) - 1  # the farthest of all can only be the worse of two


def test_a_prefix_that_was_read_attracts_and_a_queue_repels() -> None:
    """The credit for a prefix is time saved, so that a busy node loses it: no hot spot."""
    demand = Demand(1000, 10)
    warm, cold = Candidate("warm", 4, 0, 4096), Candidate("cold", 4, 0, 4096)
    cached = {"warm": 900.0}
    assert chosen(pool_of(warm, cold), demand, cached=cached) == "warm"
    assert chosen(pool_of(replace(warm, free_at_s=9.0), cold), demand, cached=cached) == "cold"
    assert chosen(pool_of(replace(warm, running=4), cold), demand, cached=cached) == "cold"


def test_a_slow_node_with_the_prefix_is_seen_among_many_faster_ones() -> None:
    """Who holds the prompt is looked at although the buckets would not lead there."""
    fast = [Candidate(f"{n}", 4, 0, 9000, prefill_tps=400.0, decode_tps=40.0) for n in range(99)]
    warm = Candidate("warm", 4, 0, 9000, prefill_tps=100.0, decode_tps=10.0)
    assert chosen(pool_of(warm, *fast), Demand(8000, 1), cached={"warm": 7900.0}) == "warm"


def test_those_that_rest_are_asked_when_there_is_nobody_else() -> None:
    """A resting node is better than none, a banned one is not."""
    rests = Candidate("rests", 4, 0, 4096, resting=True)
    banned = Candidate("banned", 4, 0, 4096, banned=True)
    assert chosen(pool_of(rests, banned)) == "rests"
    assert chosen(pool_of(rests, banned, Candidate("slow", 4, 0, 4096, decode_tps=0.1))) == "slow"
    assert chosen(pool_of(rests), excluded=["rests"]) is None
    full = Candidate("full", 4, 4, 4096)
    assert chosen(pool_of(rests, full)) is None
    assert chosen(pool_of(rests, full), even_resting=True) == "rests"


def test_what_the_best_offer_bounds_what_anybody_can_do() -> None:
    """A deadline that the fastest cannot keep is kept by nobody; an unmeasured one might."""
    fast = Candidate("fast", 4, 4, 4096, prefill_tps=1000.0, decode_tps=100.0)
    slow = Candidate("slow", 4, 0, 8192, prefill_tps=10.0, decode_tps=1.0)
    pool, demand = pool_of(fast, slow), Demand(2000, 100)
    assert pool.best(0.0).context_length == 8192
    assert pool.best(0.0).least_s(demand) == 2.0 + SHORT * 1.0
    assert all(pool.best(0.0).least_s(demand) <= finish_ms(demand, c, 0.0) / 1000 for c in pool)
    pool.drop("fast")
    assert pool.best(0.1).least_s(demand) < 3
    assert pool.best(BEST_FOR_S).least_s(demand) > 200
    pool.put(Candidate("new", 4, 0, 4096))
    assert pool.best(1.0).least_s(demand) == 0.0


def test_several_who_choose_do_not_choose_the_same() -> None:
    """Fifty distributors with one picture of a hundred equal nodes spread over most of them."""
    pool = pool_of(*(Candidate(f"{number:02}", 8, 0, 4096) for number in range(100)))
    picks = Counter(
        pool.choose(DEMAND, 0.0, SeededRandomness(seed).fraction).party for seed in range(50)
    )
    assert max(picks.values()) <= 4
    assert len(picks) > 25


@given(st.floats(0, 1, exclude_max=True), st.lists(st.floats(1, 3), min_size=1, max_size=12))
def test_two_choices_never_takes_who_is_much_worse(chance: float, times: list[float]) -> None:
    """Whoever is chosen is about as good as the best; the worst of several never is."""
    ranked = [(time, time) for time in sorted(times)]
    taken = two_choices(ranked, chance)
    assert taken <= ranked[0][0] * (1 + NEAR)
    number = near_best(ranked)
    assert number == 1 or taken <= ranked[number - 2][0]


class PoolAgainstScan(RuleBasedStateMachine):
    """Whatever comes, changes and goes, the pool holds what a plain table holds."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool()
        self.table: dict[str, Candidate] = {}

    @rule(candidate=CANDIDATES)
    def put(self, candidate: Candidate) -> None:
        self.table[candidate.party] = candidate
        self.pool.put(candidate)

    @rule(candidates=st.lists(CANDIDATES, min_size=12, max_size=20))
    def put_many(self, candidates: list[Candidate]) -> None:
        for one in candidates:
            self.put(one)

    @rule(
        party=st.sampled_from(PARTIES),
        running=st.integers(0, 3),
        unseen=st.integers(0, 3),
        free_at_s=st.floats(0, 1e6),
    )
    def reload(self, party: str, running: int, unseen: int, free_at_s: float) -> None:
        if party in self.table:
            self.table[party] = replace(
                self.table[party], running=running, unseen=unseen, free_at_s=free_at_s
            )
        self.pool.reload(party, running, unseen, free_at_s)

    @rule(party=st.sampled_from(PARTIES))
    def drop(self, party: str) -> None:
        self.table.pop(party, None)
        self.pool.drop(party)

    @rule(demand=DEMANDS, seed=st.integers(0, 9), excluded=st.sets(st.sampled_from("ABC")))
    def choose(self, demand: Demand, seed: int, excluded: set[str]) -> None:
        able = [
            one
            for one in self.table.values()
            if one.party not in excluded and closed(one) is None and unfit(demand, one) is None
        ]
        found = self.pool.choose(demand, 0.0, SeededRandomness(seed).fraction, excluded=excluded)
        if able:
            best = min(finish_ms(demand, one, 0.0) for one in able)
            assert found in able
            assert finish_ms(demand, found, 0.0) <= best * (1 + NEAR)
        else:
            assert found is None or (found.resting and found.party not in excluded)
            assert found is None or not self.pool.num_sound

    @invariant()
    def nothing_leaks(self) -> None:
        assert {one.party: one for one in self.pool} == self.table
        able = [one for one in self.table.values() if closed(one) is None]
        assert self.pool.num_open == len(able)
        there = [c for c in self.table.values() if not (c.draining or c.paused or c.banned)]
        assert self.pool.num_sound == sum(not one.resting for one in there)
        assert self.pool.num_resting == sum(c.resting and c.running < c.slots for c in there)
        best = self.pool.best(0.0)
        assert all(best.raised(one) == best for one in there)
        for lane in self.pool._lanes:
            members = [entry for bucket in lane.buckets for entry in bucket]
            assert {entry.candidate.party for entry in (*members, *lane.changed)} <= {*self.table}
            settled = {e.candidate.party for e in members if e not in lane.changed}
            changed = {entry.candidate.party for entry in lane.changed}
            assert settled == {one.party for one in able} - changed
            bits = sum(1 << number for number, bucket in enumerate(lane.buckets) if bucket)
            assert lane.occupied == bits
            for number, bucket in enumerate(lane.buckets):
                for place, entry in enumerate(bucket):
                    assert entry.buckets[lane.number] == number
                    assert entry.places[lane.number] == place


PoolAgainstScan.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestPoolAgainstScan = PoolAgainstScan.TestCase


def test_among_very_many_the_choice_is_still_near_the_best() -> None:
    """Of 5,000 candidates sixteen are looked at, and the choice is within twice the best."""
    source = SeededRandomness(7)

    def uniform(least: int, most: int) -> float:
        return least + source.fraction() * (most - least)

    nodes = [
        Candidate(f"{number}", 8, 0, 4096, uniform(100, 9000), uniform(1, 90))
        for number in range(5_000)
    ]
    pool = pool_of(*nodes)
    for _ in range(20):
        demand = Demand(int(uniform(1, 4000)), int(uniform(1, 500)))
        best = min(finish_ms(demand, one, 0.0) for one in nodes)
        found = pool.choose(demand, 0.0, source.fraction)
        assert found is not None
        assert finish_ms(demand, found, 0.0) < 2 * best
