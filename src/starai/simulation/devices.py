"""A node as the event-driven simulation models it: reads one prompt at a time, writes together.

A step takes longer with each further answer in it; a prompt whose beginning was read before takes
less. This is a model of an engine, not the engine. It knows nothing of who offers tasks.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol

from starai.simulation.events import Events
from starai.simulation.sources import TRACE_BLOCK
from starai.simulation.world import Device

if TYPE_CHECKING:
    from starai.simulation.tasks import Attempt

#: Tokens of prompts that a node's memory keeps for reuse, for each slot.
KEPT_TOKENS_A_SLOT: Final = 16_384
_NEARLY: Final = 1e-6


class Hears(Protocol):
    """Who offered a task hears what comes of it, at the moment it happens on the node."""

    def has_read(self, attempt: Attempt) -> None:
        """The prompt is read: the first token leaves."""

    def has_written(self, attempt: Attempt) -> None:
        """The last token leaves."""


class Node:
    """One device. ``up``: it runs; ``cut``: it runs and hears nobody; ``hung``: its engine does."""

    __slots__ = (
        "_at_s", "_events", "_kept", "_version", "cut", "device", "draining", "hung",
        "life", "number", "reading", "running", "up", "waiting", "writing",
    )  # fmt: skip

    def __init__(self, number: int, device: Device, events: Events) -> None:
        """Stand idle."""
        self.number = number
        self.device = device
        self._events = events
        self.up = self.cut = self.draining = self.hung = False
        #: Counts its sessions.
        self.life = 0
        self.reading: list[Attempt] = []
        self.writing: list[Attempt] = []
        #: Only for policies that know no slots: what lies before the engine.
        self.waiting: list[Attempt] = []
        self.running = 0
        self._at_s = 0.0
        self._version = 0
        self._kept: OrderedDict[int, None] | None = None

    @property
    def outstanding(self) -> int:
        """Tasks that it has."""
        return self.running + len(self.waiting)

    def attempts(self) -> list[Attempt]:
        """What it has, in a fixed order."""
        return [*self.reading, *self.writing, *self.waiting]

    def step_s(self) -> float:
        """How long a token takes now."""
        device = self.device
        return (1 + device.crowding * max(0, len(self.writing) - 1)) / device.decode_tps

    def take(self, attempt: Attempt, *, queues: bool) -> bool:
        """Begin a task, or let it wait; False: all slots are taken."""
        if self.running >= self.device.slots:
            if queues:
                self.waiting.append(attempt)
            return queues
        self.running += 1
        self.reading.append(attempt)
        if len(self.reading) == 1 and not self.hung:
            self._read()
        return True

    def drop(self, attempt: Attempt) -> None:
        """Stop working on a task."""
        self._advance()
        if attempt in self.waiting:
            self.waiting.remove(attempt)
            return
        if attempt in self.writing:
            self.writing.remove(attempt)
            self._plan()
        elif attempt in self.reading:
            was_first = self.reading[0] is attempt
            self.reading.remove(attempt)
            if was_first:
                self._read_next()
        else:
            return  # it never came, or has left
        self._freed()

    def clear(self) -> list[Attempt]:
        """Lose everything, as when the power goes; what it had."""
        self._advance()
        had = self.attempts()
        self.reading, self.writing, self.waiting = [], [], []
        self.running = 0
        self._version += 1
        self._kept = None
        return had

    def hang(self) -> None:
        """The engine stops getting on."""
        self._advance()
        self.hung = True
        self._version += 1

    def recover(self) -> None:
        """The engine gets on."""
        self._at_s = self._events.now_s
        self.hung = False
        self._plan()
        if self.reading:
            self._read()

    def accepted(self, attempt: Attempt) -> int:
        """Tokens of the answer that it has written in this attempt by now."""
        self._advance()
        if attempt not in self.writing:
            return 0
        return min(attempt.total - 1, int(attempt.total - attempt.left + _NEARLY))

    def _read(self) -> None:
        attempt = self.reading[0]
        hit = 0
        if self._kept is not None:
            for block in attempt.task.blocks:
                if block not in self._kept:
                    break
                hit += TRACE_BLOCK
        # One token is always computed: the logits of a prompt's last are not kept.
        seconds = max(1, attempt.num_read - hit) / self.device.prefill_tps
        attempt.reads_until_s = self._events.now_s + seconds
        self._events.at(attempt.reads_until_s, self._has_read, attempt, attempt.reads_until_s)

    def _read_next(self) -> None:
        if self.reading and not self.hung:
            self._read()

    def _has_read(self, attempt: Attempt, until_s: float) -> None:
        is_current = self.reading and self.reading[0] is attempt
        if not is_current or self.hung or attempt.reads_until_s != until_s:
            return
        self.reading.pop(0)
        self._keep(attempt.task.blocks)
        self._advance()
        attempt.left = float(attempt.total - 1)
        self.writing.append(attempt)
        attempt.hears.has_read(attempt)
        self._plan()
        self._read_next()

    def _keep(self, blocks: tuple[int, ...]) -> None:
        if not blocks:
            return
        kept = self._kept
        if kept is None:
            kept = self._kept = OrderedDict()
        for block in reversed(blocks):
            kept[block] = None
            kept.move_to_end(block)
        most = KEPT_TOKENS_A_SLOT * self.device.slots // TRACE_BLOCK
        while len(kept) > most:
            kept.popitem(last=False)

    def _advance(self) -> None:
        now_s = self._events.now_s
        if self.writing and not self.hung:
            passed_s = now_s - self._at_s
            if passed_s > 0:
                tokens = passed_s / self.step_s()
                for attempt in self.writing:
                    attempt.left -= tokens
        self._at_s = now_s

    def _plan(self) -> None:
        self._version += 1
        if self.writing and not self.hung:
            least = max(0.0, min(attempt.left for attempt in self.writing))
            at_s = self._events.now_s + least * self.step_s()
            self._events.at(at_s, self._done, self._version)

    def _done(self, version: int) -> None:
        if version != self._version:
            return
        self._advance()
        ready = [one for one in self.writing if one.left < _NEARLY]
        self.writing = [one for one in self.writing if one.left >= _NEARLY]
        self._plan()
        for attempt in ready:
            self._freed()
            attempt.hears.has_written(attempt)

    def _freed(self) -> None:
        self.running -= 1
        while self.waiting and self.running < self.device.slots:
            self.take(self.waiting.pop(0), queues=True)
