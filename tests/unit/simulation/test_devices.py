"""The model of a device, held against sums on paper."""

from __future__ import annotations

import pytest

from starai.exchange.caller.attempt import Target
from starai.protocol.identity import PartyId
from starai.protocol.subjects import Role
from starai.simulation.devices import Node
from starai.simulation.events import Events
from starai.simulation.policies import PREKEY
from starai.simulation.tasks import Attempt, Task
from starai.simulation.world import Arrival, Device

DEVICE = Device(
    city=0,
    region=0,
    last_mile_s=0.01,
    prefill_tps=100.0,
    decode_tps=10.0,
    slots=2,
    context=4096,
    crowding=0.5,
    told=1.0,
)


class Desk:
    """Offers tasks to one node and notes when what comes of them."""

    def __init__(self) -> None:
        self.events = Events()
        self.node = Node(0, DEVICE, self.events)
        self.node.up = True
        self.read: list[float] = []
        self.written: list[float] = []

    def has_read(self, attempt: Attempt) -> None:
        self.read.append(self.events.now_s)

    def has_written(self, attempt: Attempt) -> None:
        self.written.append(self.events.now_s)

    def offer(self, prompt: int, answer: int, blocks: tuple[int, ...] = ()) -> Attempt:
        task = Task(0, Arrival(0.0, 0, 1, prompt, answer, blocks), 0.0)
        target = Target(PartyId("n0"), Role.NODE, PREKEY)
        attempt = Attempt(task, self, self.node, target, 0.02)
        self.node.take(attempt, queues=False)
        return attempt

    def run(self, until_s: float = 1e9) -> None:
        self.events.at(until_s, lambda: None)
        while self.events.step() and self.events.now_s < until_s:
            pass


def test_one_answer_takes_what_reading_and_writing_take() -> None:
    """A second to read a hundred tokens, and a tenth for each token after the first."""
    desk = Desk()
    desk.offer(100, 11)
    desk.run()
    assert desk.read == pytest.approx([1.0])
    assert desk.written == pytest.approx([2.0])


def test_prompts_are_read_one_by_one_and_answers_written_together() -> None:
    """The second is read after the first; two at once take half as long again for a token."""
    desk = Desk()
    desk.offer(100, 21)
    desk.offer(100, 21)
    desk.run()
    assert desk.read == pytest.approx([1.0, 2.0])
    # The first writes 10 tokens alone, then 10 in 0.15 s each; the second 10 more alone.
    assert desk.written == pytest.approx([3.5, 4.5])


def test_what_was_read_before_is_not_read_again() -> None:
    """A block of 512 tokens in common leaves a hundred to read."""
    desk = Desk()
    desk.offer(512, 1, (1,))
    desk.run(100.0)
    desk.offer(612, 1, (1, 2))
    desk.run()
    assert desk.read == pytest.approx([5.12, 101.0])


def test_a_full_node_takes_no_more_and_a_dropped_task_makes_room() -> None:
    """Two slots: the third is refused until one is dropped, half written."""
    desk = Desk()
    first = desk.offer(100, 100)
    desk.offer(100, 100)
    task = Task(0, Arrival(0.0, 0, 1, 1, 1, ()), 0.0)
    third = Attempt(task, desk, desk.node, Target(PartyId("n0"), Role.NODE, PREKEY), 0.02)
    assert not desk.node.take(third, queues=False)
    desk.run(1.95)
    assert desk.node.accepted(first) == 10
    desk.node.drop(first)
    assert desk.node.running == 1
    assert desk.node.take(third, queues=False)


def test_dropping_what_never_came_changes_nothing() -> None:
    """An offer that was taken back on its way has no slot to give back."""
    desk = Desk()
    desk.offer(100, 100)
    task = Task(0, Arrival(0.0, 0, 1, 1, 1, ()), 0.0)
    target = Target(PartyId("n0"), Role.NODE, PREKEY)
    desk.node.drop(Attempt(task, desk, desk.node, target, 0.02))
    assert desk.node.running == 1


def test_an_engine_that_hangs_writes_nothing_until_it_recovers() -> None:
    """Five seconds of hanging end the answer five seconds later."""
    desk = Desk()
    desk.offer(100, 11)
    desk.run(1.5)
    desk.node.hang()
    desk.run(6.5)
    assert desk.written == []
    desk.node.recover()
    desk.run()
    assert desk.written == pytest.approx([7.0])
