"""Whatever comes, a plan holds its promises and every answer is the one computed alone.

`Simulation.step` checks each plan: no more blocks than there are, each key at most once, decodes
never starve, decodes before prompt chunks, chunks within the budget, and something advances or
ends in every step.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings, strategies as st

from starai.core.errors import Overloaded
from starai.core.randomness import SeededRandomness
from starai.engines.paging.memory import PagedMemory
from starai.engines.scheduling.scheduler import Job, Limits

if TYPE_CHECKING:
    from tests.unit.engines.scheduling.conftest import Simulation

BLOCK_TOKENS = 3
NUMBERS = st.integers(0, 1000)
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=14)
ADD = st.tuples(
    st.just("add"),
    PROMPTS,
    st.integers(1, 16),
    st.integers(0, 2),
    st.integers(-1, 1),
    st.sampled_from([math.inf, math.inf, 0.3, 2.0]),
)
FORK = st.tuples(st.just("fork"), NUMBERS, st.integers(0, 3), PROMPTS)
REMOVE = st.tuples(st.just("remove"), NUMBERS)
STEP = st.tuples(st.just("step"), st.sampled_from([0, 1, 5, 40]))
EVENTS = st.lists(st.one_of(ADD, ADD, FORK, REMOVE, STEP, STEP, STEP), max_size=60)


def happen(run: Simulation, number: int, event: tuple) -> None:
    """One event, unless there is nothing to do it to."""
    kind, *rest = event
    room = run.memory.num_blocks * BLOCK_TOKENS
    if kind == "add":
        ids, answer, tenant, priority, patience_s = rest
        run.add(
            Job(
                b"%d" % number,
                ids.copy(),
                min(room, len(ids) + answer),
                b"%d" % tenant,
                b"%d" % (tenant % 2),
                priority,
                run.now_s + patience_s,
                run.now_s,
            )
        )
    elif kind == "step":
        run.step(rest[0])
        run.now_s += 0.1
    elif run.jobs:
        key = sorted(run.jobs)[rest[0] % len(run.jobs)]
        if kind == "remove":
            run.remove(key)
            return
        parent = run.jobs[key]
        ids = (parent.ids[: len(parent.ids) - rest[1]] + rest[2])[:room]
        limit = min(room, len(ids) + 9)
        run.fork(key, Job(b"%d" % number, ids, limit, parent.tenant, parent.salt))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    events=EVENTS,
    num_blocks=st.integers(10, 30),
    tier_blocks=st.sampled_from([0, 4, 40]),
    max_running=st.integers(1, 9),
    drafts=st.booleans(),
    slow=st.one_of(st.none(), st.integers(0, 99)),
)
def test_every_plan_holds_its_promises(
    simulate: type[Simulation],
    events: list[tuple],
    num_blocks: int,
    tier_blocks: int,
    max_running: int,
    drafts: bool,
    slow: int | None,
) -> None:
    """Any jobs, forks, cancels and budgets, in a memory of any size: all promises are kept."""
    memory = PagedMemory(num_blocks, block_tokens=BLOCK_TOKENS, tier_blocks=tier_blocks)
    run = simulate(memory, Limits(max_running, max_waiting=20))
    run.drafts = SeededRandomness(1) if drafts else None
    run.slow = None if slow is None else SeededRandomness(slow)
    for number, event in enumerate(events):
        try:
            happen(run, number, event)
        except Overloaded:
            assert run.scheduler.num_waiting >= 20
        memory.check_integrity()
    run.run()
    run.check_answers()
    run.check_empty()
