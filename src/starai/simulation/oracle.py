"""The auditor: hears of every offer, every booking and every end, and finds what does not add up.

It keeps books of its own, apart from the simulation's: for each task up to where its answer is
paid for, and how it ended. Attempts must be booked in order, each once, each going on where the
one before ended; an answer must be paid for from its first token to its last and no further. What
a node books must be what its distributor booked. It does not know how tasks are carried.
"""

from __future__ import annotations

from array import array
from typing import Final

import msgspec

#: How a task stands.
OPEN: Final = 0
ANSWERED: Final = 1
REFUSED: Final = 2
#: Faults that are kept in words; all are counted.
KEPT_MAX: Final = 20


class Verdict(msgspec.Struct, frozen=True):
    """What the auditor found. ``lost`` tasks came and had no end; ``faults`` must be empty."""

    answered: int
    refused: int
    lost: int
    tokens_paid: int
    tokens_confirmed: int
    num_faults: int
    faults: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether no task was lost, and none paid twice."""
        return not self.lost and not self.num_faults


class Oracle:
    """The auditor's books."""

    def __init__(self, num_tasks: int) -> None:
        """Expect tasks numbered from 0 on."""
        self._states = array("b", bytes(num_tasks))
        self._came = bytearray(num_tasks)
        self._paid_to = array("l", [0]) * num_tasks
        self._last_attempt = array("l", [-1]) * num_tasks
        self._offered: dict[tuple[int, int], int] = {}
        self._booked: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._faults: list[str] = []
        self._num_faults = 0
        self._paid = self._confirmed = 0

    def came(self, task: int) -> None:
        """A task arrived."""
        if self._came[task]:
            self._fault(f"task {task} came twice")
        self._came[task] = 1

    def offered(self, task: int, attempt: int, node: int) -> None:
        """An attempt begins on a node."""
        if (task, attempt) in self._offered:
            self._fault(f"attempt {attempt} of task {task} was offered twice")
        if self._states[task] != OPEN:
            self._fault(f"task {task} was offered after its end")
        self._offered[task, attempt] = node

    def ended(self, task: int, attempt: int) -> None:
        """An attempt is over, and nothing was accepted of it or it is booked."""
        self._offered.pop((task, attempt), None)

    def booked(self, task: int, attempt: int, node: int, first: int, last: int) -> None:
        """The distributor books tokens ``first`` to ``last`` (not included) for a node."""
        where = f"attempt {attempt} of task {task}"
        if self._offered.get((task, attempt)) != node:
            self._fault(f"{where} was booked for a node that did not have it")
        if attempt <= self._last_attempt[task]:
            self._fault(f"{where} was booked out of order, or twice")
        if first != self._paid_to[task] or last <= first:
            self._fault(f"{where} books {first}-{last}, but {self._paid_to[task]} is paid")
        self._last_attempt[task] = attempt
        self._paid_to[task] = max(last, self._paid_to[task])
        self._paid += last - first
        self._booked[task, attempt] = (node, first, last)

    def confirmed(self, task: int, attempt: int, node: int, first: int, last: int) -> None:
        """The node books the same."""
        if self._booked.pop((task, attempt), None) != (node, first, last):
            self._fault(f"attempt {attempt} of task {task} is told otherwise by its node, or twice")
        self._confirmed += last - first

    def unconfirmed(self, task: int, attempt: int) -> None:
        """The node will never book it: it is gone."""
        self._booked.pop((task, attempt), None)

    def answered(self, task: int, num_tokens: int) -> None:
        """The answer is whole."""
        self._end(task, ANSWERED)
        if self._paid_to[task] != num_tokens:
            self._fault(f"task {task} has {num_tokens} tokens, {self._paid_to[task]} are paid")

    def refused(self, task: int) -> None:
        """The client was told why not."""
        self._end(task, REFUSED)

    def verdict(self) -> Verdict:
        """What was found; call it when nothing is under way any more."""
        for task, attempt in list(self._offered)[:KEPT_MAX]:
            self._fault(f"attempt {attempt} of task {task} never ended")
        for task, attempt in list(self._booked)[:KEPT_MAX]:
            self._fault(f"attempt {attempt} of task {task} was booked, and its node never heard")
        pairs = zip(self._came, self._states, strict=True)
        lost = sum(came and state == OPEN for came, state in pairs)
        return Verdict(
            answered=self._states.count(ANSWERED),
            refused=self._states.count(REFUSED),
            lost=lost,
            tokens_paid=self._paid,
            tokens_confirmed=self._confirmed,
            num_faults=self._num_faults,
            faults=tuple(self._faults),
        )

    def _end(self, task: int, state: int) -> None:
        if not self._came[task] or self._states[task] != OPEN:
            self._fault(f"task {task} ended twice, or never came")
        self._states[task] = state

    def _fault(self, what: str) -> None:
        self._num_faults += 1
        if len(self._faults) < KEPT_MAX:
            self._faults.append(what)
