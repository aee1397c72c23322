"""What the scheduler promises, one promise a test."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from starai.core.errors import ContextTooLong, InternalFault, InvalidRequest, Overloaded
from starai.core.randomness import SeededRandomness
from starai.engines.paging.cost import Action
from starai.engines.paging.memory import PagedMemory
from starai.engines.scheduling.base import AGING_S, PATIENCE_S
from starai.engines.scheduling.scheduler import Budget, Job, Limits

if TYPE_CHECKING:
    from tests.unit.engines.scheduling.conftest import Simulation

#: Makes a simulation: blocks, then options of `PagedMemory` and `Limits`.
Start = Callable[..., "Simulation"]


@pytest.fixture
def start(simulate: type[Simulation]) -> Start:
    """Makes simulations with blocks of 4 tokens."""

    def make(num_blocks: int, tier: int = 0, running: int = 8, waiting: int = 99) -> Simulation:
        memory = PagedMemory(num_blocks, block_tokens=4, tier_blocks=tier)
        return simulate(memory, Limits(max_running=running, max_waiting=waiting))

    return make


def job(key: bytes, prompt: int = 4, answer: int = 4, **rest: object) -> Job:
    """A job whose prompt no other key has."""
    ids = [(key[0] * 7 + key[-1] * 5 + i * 3) % 40 for i in range(prompt)]
    return Job(key, ids, prompt + answer, **rest)  # type: ignore[arg-type]


def distinct(key: bytes, prompt: int, answer: int, **rest: object) -> Job:
    """A job whose prompt shares no block with any other."""
    made = job(key, prompt, answer, **rest)
    made.ids[:2] = divmod(int(key[1:]) * 2 + key[0] % 2, 200)
    return made


def order_of_first_tokens(run: Simulation, step_s: float = 0.01) -> list[bytes]:
    """Runs to the end; the keys in the order in which they were begun."""
    seen: dict[bytes, None] = {}
    while run.scheduler.has_work:
        seen.update(dict.fromkeys(work.key for work in run.step().works))
        run.now_s += step_s
    run.check_answers()
    run.check_empty()
    return list(seen)


def test_prompts_share_a_step_in_chunks(start: Start) -> None:
    """The budget goes to the oldest prompt first, what is left of it to the next ones."""
    run = start(100)
    for key, prompt in ((b"a", 10), (b"b", 5), (b"c", 9)):
        run.add(job(key, prompt, arrived_s=key[0]))
    works = [[(w.key, w.start, w.count) for w in run.step(8).works] for _ in range(4)]
    assert works == [
        [(b"a", 0, 8)],
        [(b"a", 8, 2), (b"b", 0, 5), (b"c", 0, 1)],
        [(b"a", 10, 1), (b"b", 5, 1), (b"c", 1, 8)],
        [(b"a", 11, 1), (b"b", 6, 1), (b"c", 9, 1)],
    ]


def test_a_long_prompt_starves_no_decode(start: Start) -> None:
    """While a prompt of many steps is computed, running answers get a token in each step."""
    run = start(300)
    run.add(job(b"a", 3, 60))
    run.step()
    run.add(job(b"z", 800, 2))
    for _ in range(50):
        works = run.step(16).works
        assert [(w.key, w.count) for w in works] == [(b"a", 1), (b"z", 16)]
        run.now_s += 0.01


def test_a_step_without_prompt_tokens_still_moves(start: Start) -> None:
    """An engine that grants no prompt tokens at all does not stand still."""
    run = start(10)
    run.add(job(b"a", 5, 1))
    assert run.run(prompt_tokens=0) == 5
    run.check_answers()


def test_higher_priorities_go_first(start: Start) -> None:
    """With one place, jobs begin by priority and then by arrival."""
    run = start(50, running=1)
    for number, priority in enumerate([0, 5, -3, 5, 0]):
        run.add(job(b"%d" % number, priority=priority, arrived_s=number / 100))
    assert order_of_first_tokens(run) == [b"1", b"3", b"0", b"4", b"2"]


def test_earlier_deadlines_go_first_within_a_tenant(start: Start) -> None:
    """Among equals the more urgent goes first; no deadline counts as a late one."""
    run = start(50, running=1)
    for number, deadline_s in enumerate([math.inf, 50.0, 10.0, PATIENCE_S + 1]):
        run.add(job(b"%d" % number, deadline_s=deadline_s))
    assert order_of_first_tokens(run) == [b"2", b"1", b"0", b"3"]


def test_urgent_jobs_pass_the_patient_only_for_a_while(start: Start) -> None:
    """A job without a deadline is begun although urgent ones keep coming."""
    run = start(50, running=1)
    run.add(job(b"patient"))
    begun_s = None
    for number in range(400):
        run.add(job(b"%d" % number, 4, 1, deadline_s=run.now_s + 30, arrived_s=run.now_s))
        if b"patient" in [work.key for work in run.step().works] and begun_s is None:
            begun_s = run.now_s
        run.now_s += 0.5
    assert begun_s is not None
    assert PATIENCE_S - 31 < begun_s < PATIENCE_S


def test_expired_jobs_end_wherever_they_are(start: Start) -> None:
    """At its deadline a job ends, running or waiting, and its blocks are free."""
    run = start(50, running=1)
    run.add(job(b"a", 4, 100, deadline_s=1.0))
    run.add(job(b"b", deadline_s=1.0))
    run.add(job(b"c", arrived_s=0.5))
    run.step()
    run.now_s = 1.0
    plan = run.step()
    assert sorted(plan.expired) == [b"a", b"b"]
    assert [work.key for work in plan.works] == [b"c"]
    run.run()
    run.check_empty()


def test_waiting_makes_more_deserving(start: Start) -> None:
    """A job of low priority is begun after a bounded time although better ones keep coming."""
    run = start(50, running=1)
    run.add(job(b"low", priority=-2, arrived_s=0.0))
    begun_s = None
    for number in range(200):
        run.add(job(b"%d" % number, 4, 1, priority=0, tenant=b"x", arrived_s=run.now_s))
        if b"low" in [work.key for work in run.step().works] and begun_s is None:
            begun_s = run.now_s
        run.now_s += 0.5
    assert begun_s is not None
    assert 2 * AGING_S <= begun_s < 2 * AGING_S + 5


def test_age_gives_no_tenant_an_advantage_over_equals(start: Start) -> None:
    """A tenant's old backlog does not pass the fresh jobs of another one."""
    run = start(50, running=1, waiting=300)
    for number in range(300):
        run.add(job(b"a%d" % number, 4, 2, tenant=b"a"))
    for _ in range(200):
        run.step()
        run.now_s += 1.0
    run.add(job(b"fresh", 4, 2, tenant=b"b", arrived_s=run.now_s))
    begun = [work.key for _ in range(5) for work in run.step().works]
    assert b"fresh" in begun


@pytest.mark.parametrize("blocks", [400, 40])
@pytest.mark.parametrize("shape", [(20, 40), (40, 2)])
def test_tenants_are_served_alike(start: Start, blocks: int, shape: tuple[int, int]) -> None:
    """Backlogged tenants' service differs by no more than the paper's bound, whatever they ask."""
    run = start(blocks, tier=20, running=16, waiting=10_000)
    served = {b"s": 0, b"l": 0}
    for number in range(2000):
        run.add(distinct(b"s%d" % number, 3, 5, tenant=b"short"))
        run.add(distinct(b"l%d" % number, *shape, tenant=b"long"))
    bound = 2 * max(1 * shape[0], 2 * min(blocks * 4, 16 * sum(shape)))
    furthest = 0
    for _ in range(400):
        lengths = {key: len(each.ids) for key, each in run.jobs.items()}
        for work in run.step(200).works:
            each = run.jobs.get(work.key)
            ids = run.finished[work.key] if each is None else each.ids
            served[work.key[:1]] += 2 * (len(ids) - lengths[work.key])
            if lengths[work.key] == len(run.prompts[work.key]) < len(ids):
                served[work.key[:1]] += lengths[work.key]
        furthest = max(furthest, abs(served[b"s"] - served[b"l"]))
        run.now_s += 0.01
    assert min(served.values()) > 2 * bound
    assert furthest <= bound


def test_a_pause_saves_up_no_service(start: Start) -> None:
    """A tenant that comes late is served like the others from then on, not before them."""
    run = start(100, running=1)
    for number in range(60):
        run.add(job(b"a%d" % number, 4, 2, tenant=b"a"))
    for _ in range(60):
        run.step()
        run.now_s += 0.01
    for number in range(20):
        run.add(job(b"b%d" % number, 4, 2, tenant=b"b"))
    begun = [w.key[:1] for _ in range(40) for w in run.step().works if w.start == 0]
    assert abs(begun.count(b"a") - begun.count(b"b")) <= 2


def test_a_cancelled_job_frees_its_blocks_at_once(start: Start) -> None:
    """After `remove` the blocks are free and the next plan knows nothing of the job."""
    run = start(10)
    run.add(job(b"a", 30, 10))
    run.step()
    assert run.memory.free_blocks == 2
    run.remove(b"a")
    run.remove(b"a")
    assert run.memory.free_blocks == 10
    assert not run.scheduler.has_work
    assert run.scheduler.plan(0.0, Budget(10)).works == ()


def test_what_can_never_fit_is_refused(start: Start) -> None:
    """A job that may outgrow the memory, is empty or of a known key is refused with the reason."""
    run = start(10)
    with pytest.raises(ContextTooLong, match="41 tokens, but the KV memory holds 40"):
        run.add(job(b"a", 11, 30))
    with pytest.raises(InvalidRequest, match="at least one token"):
        run.add(Job(b"a", [], 10))
    with pytest.raises(InvalidRequest, match="at most its limit"):
        run.add(Job(b"a", [1, 2, 3], 2))
    run.add(job(b"a", 10, 30))
    with pytest.raises(InvalidRequest, match="in use"):
        run.add(job(b"a"))
    with pytest.raises(InvalidRequest, match="no such sequence"):
        run.fork(b"b", job(b"c"))
    run.run()
    run.check_answers()
    run.check_empty()


def test_the_line_is_bounded(start: Start) -> None:
    """Beyond the free places and ``max_waiting`` a job is refused as overload."""
    run = start(10, running=2, waiting=1)
    for key in (b"a", b"b", b"c"):
        run.add(job(key))
    with pytest.raises(Overloaded):
        run.add(job(b"d"))
    run.step()
    assert run.scheduler.num_running == 2
    assert run.scheduler.num_waiting == 1
    with pytest.raises(Overloaded):
        run.add(job(b"d"))
    run.remove(b"a")
    run.add(job(b"d"))
    run.run()
    run.check_answers()


def test_admission_leaves_room_to_grow(start: Start) -> None:
    """A job whose blocks would take the last ones waits until the others are through."""
    run = start(10)
    run.add(job(b"a", 16, 8))
    run.step()
    run.add(job(b"b", 20, 1))
    while b"a" in run.jobs:
        assert [work.key for work in run.step().works] == [b"a"]
    run.run()
    assert run.preempted == []
    run.check_answers()


def test_nobody_passes_the_first_in_line(start: Start) -> None:
    """A small job does not take the memory that a large one before it waits for."""
    run = start(10)
    run.add(job(b"a", 16, 8))
    run.step()
    run.add(job(b"large", 24, 1, arrived_s=1.0))
    run.add(job(b"small", 2, 1, arrived_s=2.0))
    assert order_of_first_tokens(run) == [b"a", b"large", b"small"]


@pytest.mark.parametrize("tier", [0, 2, 20])
def test_the_least_deserving_gives_way_and_comes_back(start: Start, tier: int) -> None:
    """The latest of the lowest priority is preempted; the first runs unhindered."""
    run = start(14, tier=tier)
    run.add(job(b"late", 6, 30, arrived_s=2.0))
    run.add(job(b"early", 6, 30, arrived_s=1.0))
    run.add(job(b"high", 6, 30, priority=1, arrived_s=3.0))
    plan = run.step()
    assert len(plan.works) == 3
    steps = run.run() + 1
    assert {key for key, _ in run.preempted} <= {b"late", b"early"}
    assert run.preempted[0][0] == b"late"
    actions = {action for _, action in run.preempted}
    assert actions == ({Action.RECOMPUTE} if tier < 20 else {Action.SWAP, Action.RECOMPUTE})
    assert list(run.finished) == [b"high", b"early", b"late"]
    assert steps < 100
    run.check_answers()
    run.check_empty()


def test_preemption_does_not_thrash(start: Start) -> None:
    """Under twofold demand a sequence gains more than a block of tokens for each preemption."""
    run = start(60, tier=40, running=32, waiting=500)
    for number in range(120):
        run.add(job(b"%d" % number, 6, 30, arrived_s=number / 1000))
    run.run()
    assert len(run.preempted) > 10
    assert 120 * 30 / len(run.preempted) > 4
    run.check_answers()
    run.check_empty()


def test_a_preempted_job_comes_back_before_new_ones(start: Start) -> None:
    """Of the same priority, who was preempted is admitted before whoever was never begun."""
    run = start(12)
    run.add(job(b"a", 8, 24, tenant=b"t"))
    run.add(job(b"b", 8, 24, tenant=b"t", arrived_s=0.5))
    while not run.preempted:
        run.step()
    run.add(job(b"c", 2, 2, tenant=b"new", deadline_s=9.0, arrived_s=0.6))
    assert order_of_first_tokens(run) == [b"a", b"b", b"c"]


def test_equal_prompts_are_computed_once(start: Start) -> None:
    """A prompt whose blocks are known starts behind them, under the same salt only."""
    run = start(50)
    prompt = list(range(21))
    run.add(Job(b"a", prompt.copy(), 25, salt=b"s"))
    run.run()
    run.add(Job(b"b", prompt.copy(), 25, salt=b"s"))
    run.add(Job(b"c", prompt.copy(), 25, salt=b"other"))
    plan = run.step()
    assert {work.key: work.start for work in plan.works} == {b"b": 20, b"c": 0}
    run.run()
    run.check_answers()
    assert run.finished[b"a"] == run.finished[b"b"] != run.finished[b"c"]


def test_a_job_held_back_is_admitted_once_its_prefix_is_shared(start: Start) -> None:
    """What did not fit fits as soon as another job has computed most of it."""
    run = start(18)
    prompt = list(range(32))
    run.add(Job(b"a", [*prompt, 39], 56))
    run.add(Job(b"b", [*prompt, 38], 36, arrived_s=1.0))
    assert [work.key for work in run.step(64).works] == [b"a"]
    assert [(work.key, work.start) for work in run.step(64).works] == [(b"a", 33), (b"b", 32)]
    run.run()
    run.check_answers()
    run.check_empty()


def test_a_job_held_back_is_not_looked_up_in_each_plan(start: Start) -> None:
    """A long prompt that waits for memory is hashed now and then only."""
    run = start(600)
    run.add(job(b"a", 800, 40))
    run.add(job(b"b", 2000, 4, arrived_s=1.0))
    looked_up = 0
    for _ in range(30):
        run.step(4000)
        looked_up = max(looked_up, run.memory.report().looked_up_tokens)
    assert 800 + 2000 <= looked_up < 800 + 10 * 2000


def test_forks_share_blocks_and_go_their_own_way(start: Start) -> None:
    """Siblings of a running job start from its KV: no prompt is computed again."""
    run = start(30)
    run.add(job(b"a", 18, 10))
    run.step()
    for number in range(3):
        parent = run.jobs[b"a"].ids
        run.fork(b"a", Job(b"f%d" % number, [*parent[:-1], number], 28))
    assert run.memory.free_blocks == 30 - 5
    plan = run.step()
    assert [(work.start, work.count) for work in plan.works] == [(18, 1)] * 4
    assert len(plan.copies) == 3
    run.run()
    run.check_answers()
    run.check_empty()


def test_a_fork_may_turn_off_earlier(start: Start) -> None:
    """A fork with other ids keeps only the KV of what both have in common."""
    run = start(30)
    run.add(job(b"a", 18, 10))
    run.step()
    run.fork(b"a", Job(b"b", [*run.jobs[b"a"].ids[:10], 1, 2, 3], 28))
    run.fork(b"a", Job(b"c", run.jobs[b"a"].ids[:7], 28))
    plan = run.step()
    assert {w.key: (w.start, w.count) for w in plan.works} == {
        b"a": (18, 1),
        b"b": (10, 3),
        b"c": (6, 1),
    }
    run.run()
    run.check_answers()
    run.check_empty()


def test_a_fork_without_a_place_waits(start: Start) -> None:
    """A fork that cannot run at once comes to the same tokens later."""
    run = start(30, running=1)
    run.add(job(b"a", 10, 6))
    run.step()
    run.fork(b"a", Job(b"b", [*run.jobs[b"a"].ids[:-1], 3], 16))
    assert run.scheduler.num_waiting == 1
    run.run()
    run.check_answers()
    run.check_empty()


def test_swapped_forks_do_not_block_the_memory_for_ever(start: Start) -> None:
    """Shared blocks of swapped jobs are given up when a better job needs them."""
    run = start(12, tier=40)
    run.add(job(b"a", 23, 17))
    run.step()
    for number in range(2):
        run.fork(b"a", Job(b"f%d" % number, [*run.jobs[b"a"].ids[:-1], number], 40, arrived_s=1.0))
    while not run.preempted:
        run.step()
    run.add(job(b"big", 40, 8, priority=1, arrived_s=2.0))
    run.run()
    run.check_answers()
    run.check_empty()


def test_drafts_change_nothing_but_the_number_of_steps(start: Start) -> None:
    """Right, partly right and wrong drafts lead to the same answers, in fewer steps."""
    run = start(60, tier=10)
    run.drafts = SeededRandomness(5)
    for number in range(12):
        run.add(job(b"%d" % number, 3 + number, 30))
    steps = run.run()
    assert run.accepted > 100
    assert run.granted > run.accepted
    assert steps < 12 * 30
    run.check_answers()
    run.check_empty()


def test_drafts_take_no_memory_from_growth(start: Start) -> None:
    """Without spare blocks only the drafts that fit the last block are granted."""
    run = start(8)
    run.add(job(b"a", 13, 18))
    run.add(job(b"b", 8, 3, arrived_s=1.0))
    run.step()
    wanted = {b"a": 9, b"b": 9}
    plan = run.scheduler.plan(0.0, Budget(8, wanted))
    counts = {work.key: work.count for work in plan.works}
    assert counts == {b"a": 1 + 2, b"b": 1 + 2}
    assert plan.preempted == ()


def test_a_pass_that_failed_is_planned_again(start: Start) -> None:
    """Without `done` the next plan has the same works and needs no more copies."""
    run = start(20)
    run.add(job(b"a", 6, 4))
    first = run.scheduler.plan(0.0, Budget(4))
    again = run.scheduler.plan(0.1, Budget(4))
    assert again.works == first.works
    assert again.copies == ()
    run.scheduler.failed(b"a")
    assert run.memory.free_blocks == 20


def test_rejected_drafts_give_their_blocks_back(start: Start) -> None:
    """After wrong drafts a job holds no more blocks than without."""
    run = start(40)
    run.drafts = Wrong()
    run.add(job(b"a", 4, 30))
    run.step()
    for _ in range(20):
        run.step()
        assert run.memory.num_blocks - run.memory.free_blocks <= len(run.jobs[b"a"].ids) // 4 + 1
    assert run.granted == 20 * 5


class Wrong(SeededRandomness):
    """Makes a simulation's drafts wrong from the first one on."""

    def __init__(self) -> None:
        super().__init__(0)

    def fraction(self) -> float:
        return 0.0


def test_a_fork_under_another_salt_shares_nothing(start: Start) -> None:
    """A job of another salt cannot go on from a tenant's KV; it computes its own."""
    run = start(40)
    run.add(job(b"a", 10, 6, salt=b"x"))
    run.step()
    run.fork(b"a", Job(b"b", run.jobs[b"a"].ids.copy(), 16, salt=b"y"))
    assert {work.key: work.start for work in run.step().works} == {b"a": 10, b"b": 0}
    run.run()
    run.check_answers()


def test_one_job_may_fill_the_memory(start: Start) -> None:
    """Where nobody else runs, nothing must stay free."""
    run = start(10)
    run.add(job(b"a", 39, 1))
    run.add(job(b"b", 1, 39))
    run.run()
    assert sorted(run.finished) == [b"a", b"b"]
    run.check_answers()
    run.check_empty()


def test_nothing_is_admitted_while_somebody_gives_way(start: Start) -> None:
    """What a preempted job leaves is for those who run, until the next plan."""
    run = start(12)
    run.add(job(b"a", 8, 24))
    run.add(job(b"b", 8, 24, arrived_s=0.5))
    while len(run.jobs[b"b"].ids) < 25:
        run.step()
    run.add(job(b"c", 2, 2, priority=1, arrived_s=0.6))
    plan = run.step()
    assert [key for key, _ in plan.preempted] == [b"b"]
    assert [work.key for work in plan.works] == [b"a"]
    assert [work.key for work in run.step().works] == [b"a", b"c"]
    run.run()
    run.check_answers()


def family(start: Start) -> Simulation:
    """One job that needs the whole memory, and two swapped forks that share blocks of their own."""
    run = start(10, tier=40)
    run.costs.always = Action.SWAP
    run.add(job(b"a", 23, 17))
    run.step()
    run.fork(b"a", Job(b"f", [*run.jobs[b"a"].ids[:-1], 1], 40, arrived_s=1.0))
    for _ in range(3):
        run.step()
    run.fork(b"f", Job(b"g", [*run.jobs[b"f"].ids[:-1], 2], 40, arrived_s=2.0))
    while len(run.preempted) < 2:
        run.step()
    return run


def test_the_most_deserving_never_gives_way(start: Start) -> None:
    """Blocks that only swapped jobs share are given up for the last one that runs."""
    run = family(start)
    run.run()
    assert b"a" not in [key for key, _ in run.preempted]
    run.check_answers()
    run.check_empty()


def test_a_cancelled_swapped_job_leaves_nothing(start: Start) -> None:
    """A job that is cancelled while its KV is away is forgotten there, too."""
    run = family(start)
    run.remove(b"g")
    run.run()
    run.check_answers()
    run.check_empty()


def test_outgrowing_the_limit_is_a_fault(start: Start) -> None:
    """An engine that lets a job outgrow its limit is told, not left to spin."""
    run = start(3)
    run.add(job(b"a", 4, 2))
    run.step()
    run.jobs[b"a"].ids.extend(range(9))
    with pytest.raises(InternalFault, match="longer than its limit"):
        run.step()


@pytest.mark.parametrize("late", [b"t", b"u"])
def test_who_comes_to_an_empty_line_is_lifted_too(start: Start, late: bytes) -> None:
    """After one tenant was served alone for long, another one does not go first for as long."""
    run = start(100, running=1)
    for number in range(30):
        run.add(job(b"a%d" % number, 4, 4, tenant=b"t"))
        run.run()
    for number in range(10):
        run.add(job(b"%d" % number, 4, 4, tenant=late))
    for number in range(10):
        run.add(job(b"b%d" % number, 4, 4, tenant=b"t" if late == b"u" else b"u"))
    begun = order_of_first_tokens(run)
    first_half = [key[:1] == b"b" for key in begun[:10]]
    assert 3 <= sum(first_half) <= 7


def test_prompts_take_no_memory_before_their_turn(start: Start) -> None:
    """A prompt that gets none of a step's tokens is not admitted yet, except a better one."""
    run = start(100)
    for number in range(3):
        run.add(job(b"%d" % number, 30, 2, arrived_s=number))
    run.step(16)
    assert run.scheduler.num_running == 1
    run.step(16)
    assert run.scheduler.num_running == 2
    run.add(job(b"high", 30, 1, priority=1, arrived_s=4.0))
    assert [(w.key, w.count) for w in run.step(16).works] == [(b"0", 1), (b"high", 16)]
    run.run()
    run.check_answers()


def test_a_fork_is_charged_for_its_own_tokens_only(start: Start) -> None:
    """The prompt that forks share is counted once."""
    run = start(300, running=7)
    run.add(job(b"a", 40, 3, tenant=b"forking"))
    for number in range(3):
        run.add(job(b"%d" % number, 40, 3, tenant=b"plain"))
    run.step(200)
    for number in range(3):
        parent = run.jobs[b"a"]
        run.fork(b"a", Job(b"f%d" % number, parent.ids.copy(), 43, b"forking"))
    run.run()
    for number in range(7):
        run.add(job(b"h%d" % number, 4, 100, tenant=b"other"))
    run.step()
    run.add(job(b"p", tenant=b"plain"))
    run.add(job(b"q", tenant=b"forking"))
    run.remove(b"h0")
    assert b"q" in [work.key for work in run.step().works]
    assert run.scheduler.num_waiting == 1
