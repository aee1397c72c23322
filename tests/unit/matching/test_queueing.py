"""Who goes next: fair between tenants, bounded, and without a counter that leaks."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from starai.matching import FairQueue, Ticket
from starai.matching.queueing import AGING_TOKENS_A_SECOND, TENANTS_MAX, cost

LINE = "model"


def join(
    queue: FairQueue[str], item: str, tenant: int = 1, weight: int = 100, now_s: float = 0.0
) -> Ticket[str]:
    ticket, _ = queue.join(item, LINE, tenant, weight, now_s)
    assert ticket is not None
    return ticket


def items(queue: FairQueue[str], now_s: float = 0.0, line: str = LINE) -> list[str]:
    return [ticket.item for ticket in queue.order(line, now_s)]


def serve(queue: FairQueue[str], rounds: int, now_s: float = 0.0) -> list[str]:
    """Let the first of the line go, again and again."""
    served = []
    for _ in range(rounds):
        ticket = next(queue.order(LINE, now_s))
        assert queue.leave(ticket)
        queue.charge(ticket.tenant, ticket.cost)
        served.append(ticket.item)
    return served


def test_one_tenant_is_served_in_order_of_arrival() -> None:
    """Within a tenant nobody passes anybody."""
    queue: FairQueue[str] = FairQueue(9)
    for item in "abcd":
        join(queue, item)
    assert items(queue) == list("abcd")
    assert serve(queue, 4) == list("abcd")
    assert len(queue) == 0


def test_a_flood_does_not_keep_others_from_their_share() -> None:
    """A tenant with a hundred tickets and one with three take turns."""
    queue: FairQueue[str] = FairQueue(200)
    for number in range(100):
        join(queue, f"flood{number}", tenant=1)
    for number in range(3):
        join(queue, f"few{number}", tenant=2)
    assert Counter(item[:3] for item in serve(queue, 6)) == {"flo": 3, "few": 3}


def test_service_is_counted_in_tokens_not_in_tickets() -> None:
    """Who asks for ten times as much per ticket gets a tenth of the tickets."""
    queue: FairQueue[str] = FairQueue(200)
    for _ in range(60):
        join(queue, "large", tenant=1, weight=1000)
        join(queue, "small", tenant=2, weight=100)
    counted = Counter(serve(queue, 44))
    assert counted["small"] == pytest.approx(10 * counted["large"], abs=10)


def test_nobody_saves_up_service() -> None:
    """Who was away is lifted to the others: it gets its share from now on, not the past's."""
    queue: FairQueue[str] = FairQueue(200)
    for _ in range(50):
        join(queue, "busy", tenant=1)
    serve(queue, 30)
    for _ in range(10):
        join(queue, "back", tenant=2)
    assert Counter(serve(queue, 10)) == {"busy": 5, "back": 5}


def test_a_long_wait_counts_like_service_that_was_not_given() -> None:
    """Aging lifts an old ticket past a tenant that was served a little less."""
    queue: FairQueue[str] = FairQueue(9)
    join(queue, "old", tenant=1)
    queue.charge(1, 100)
    join(queue, "new", tenant=2, now_s=20.0)
    queue._served[2] = 0.0
    assert 20 * AGING_TOKENS_A_SECOND > 100
    assert items(queue, 20.0) == ["old", "new"]


def test_urgent_ones_go_first_whoever_has_them() -> None:
    """An answer that broke off goes before all that have not begun."""
    queue: FairQueue[str] = FairQueue(9)
    join(queue, "new")
    queue.join("broken off", LINE, 1, 100, 0.0, urgent=True)
    assert items(queue) == ["broken off", "new"]


def test_lines_do_not_mix() -> None:
    """Who waits for one model is not in another's line."""
    queue: FairQueue[str] = FairQueue(9)
    join(queue, "a")
    queue.join("b", "other", 1, 1, 0.0)
    assert (items(queue), items(queue, line="other"), items(queue, line="?")) == (["a"], ["b"], [])
    assert queue.waiting(LINE) == 1
    assert queue.lines() == [LINE, "other"]


def test_a_full_queue_takes_from_who_has_most_of_it() -> None:
    """A newcomer displaces the newest ticket of the largest tenant; that one itself is refused."""
    queue: FairQueue[str] = FairQueue(4)
    for item in "abcd":
        join(queue, item)
    assert queue.join("e", LINE, 1, 1, 0.0) == (None, None)
    ticket, evicted = queue.join("guest", LINE, 2, 1, 0.0)
    assert ticket is not None
    assert evicted is not None
    assert evicted.item == "d"
    assert len(queue) == 4
    assert not queue.leave(evicted)


def test_tenants_that_are_gone_are_forgotten_and_those_who_wait_are_not() -> None:
    """Memory has an end however many tenants come by."""
    queue: FairQueue[str] = FairQueue(9)
    join(queue, "waits", tenant=-1)
    for tenant in range(2 * TENANTS_MAX):
        queue.charge(tenant, 1)
    assert queue.num_tenants <= TENANTS_MAX + 1
    assert items(queue) == ["waits"]


def test_what_a_task_weighs() -> None:
    """A generated token weighs as much as two that are read."""
    assert cost(10, 5) == 20


class QueueKeepsCount(RuleBasedStateMachine):
    """However tickets come and go, every counter is what it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue(6)
        self.here: list[Ticket[int]] = []
        self.gone: list[Ticket[int]] = []
        self.now_s = 0.0
        self.number = 0

    @rule(tenant=st.integers(0, 3), line=st.sampled_from("ab"), urgent=st.booleans())
    def join(self, tenant: int, line: str, urgent: bool) -> None:
        self.number += 1
        ticket, evicted = self.queue.join(self.number, line, tenant, 10, self.now_s, urgent=urgent)
        if evicted is not None:
            self.here.remove(evicted)
            self.gone.append(evicted)
        if ticket is not None:
            self.here.append(ticket)

    @rule(pick=st.integers(0, 9))
    def leave(self, pick: int) -> None:
        if pick < len(self.here):
            ticket = self.here.pop(pick)
            assert self.queue.leave(ticket)
            self.gone.append(ticket)

    @rule(pick=st.integers(0, 9))
    def leave_again(self, pick: int) -> None:
        if pick < len(self.gone):
            assert not self.queue.leave(self.gone[pick])

    @rule(tenant=st.integers(0, 3), weight=st.integers(0, 50), passed_s=st.floats(0, 5))
    def charge(self, tenant: int, weight: int, passed_s: float) -> None:
        self.now_s += passed_s
        before = self.queue.served(tenant)
        self.queue.charge(tenant, weight)
        assert self.queue.served(tenant) >= before

    @invariant()
    def the_counts_are_true(self) -> None:
        assert len(self.queue) == len(self.here) <= 6
        assert self.queue._waiting == Counter(ticket.tenant for ticket in self.here)
        assert set(self.queue.lines()) == {ticket.line for ticket in self.here}
        for line in "ab":
            ordered = [*self.queue.order(line, self.now_s)]
            mine = [ticket for ticket in self.here if ticket.line == line]
            assert sorted(one.item for one in ordered) == sorted(one.item for one in mine)
            assert self.queue.waiting(line) == len(mine)
            urgent = [ticket.urgent for ticket in ordered]
            assert urgent == sorted(urgent, reverse=True)
            for tenant in range(4):
                numbers = [t.item for t in ordered if t.tenant == tenant and not t.urgent]
                assert numbers == sorted(numbers)


QueueKeepsCount.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestQueueKeepsCount = QueueKeepsCount.TestCase
