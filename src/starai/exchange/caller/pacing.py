"""When the next token is overdue: from how fast the answer came so far, and how fast its node is.

Signs of life say that a callee is there, not that it gets on. So the caller keeps, for each answer,
an exponential average of the time between its tokens, which begins at the average of its callee;
a token that takes eight times as long, and at least most of a second, is overdue. The first token
is overdue after eight times what the prompt should take, by the prefill rate that was seen of this
callee. All of it is measured here: what a callee says of itself does not count.

A callee none of whose answers gets on is perhaps the next to be given up: whoever else is free is
asked rather. An answer that was broken off has waited already: it is offered to a second callee
when its first token takes twice as long as it should. Pure: time is an argument, in seconds of the
event loop.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from starai.protocol.identity import PartyId

#: A token is overdue after this many times the average, but never sooner than after `TOKEN_S`:
#: a stall of a fast answer is noticed within a second.
STALL_FACTOR: Final = 8.0
TOKEN_S: Final = 0.9
#: How long the second token may take while nothing is known of the callee's speed.
TOKEN_UNKNOWN_S: Final = 10.0
#: The same for the first token: the callee may be loading, and other prompts go before.
FIRST_S: Final = 2.0
FIRST_UNKNOWN_S: Final = 60.0
#: The first token of an answer that goes on is late when its callee brought nobody a token for this
#: many times what it should take, but never sooner than after a few steps of an engine; this long
#: while nothing is known of the callee.
LATE_FACTOR: Final = 2.0
LATE_S: Final = 0.1
LATE_UNKNOWN_S: Final = 0.3
#: A callee pauses when none of its answers has brought a token for this many times the average; one
#: that only has answers that have not begun, when the first is late.
PAUSE_FACTOR: Final = 3.0
PAUSE_S: Final = 0.2
#: How much a new measurement counts against the average, and how many times the average it counts
#: for at most: one hiccup must not make the next stall go unnoticed for long.
WEIGHT: Final = 0.2
OUTLIER_FACTOR: Final = 4.0
#: Callees whose speed is kept.
CALLEES_MAX: Final = 4096


@dataclass
class _Speed:
    """Averages of one callee in seconds; 0: not measured yet."""

    between_s: float = 0.0
    per_prompt_token_s: float = 0.0
    #: Answers under way, and how many of them have brought a token.
    num_open: int = 0
    num_begun: int = 0
    #: When any of them last brought one, or when the first was asked for; and how long the longest
    #: of their prompts should take.
    heard_s: float = 0.0
    reading_s: float = 0.0

    def open(self, num_prompt: int, now_s: float) -> None:
        if not self.num_open:
            self.heard_s, self.reading_s = now_s, 0.0
        self.num_open += 1
        self.reading_s = max(self.reading_s, self.per_prompt_token_s * num_prompt)

    def pauses(self, now_s: float) -> bool:
        if not self.num_open:
            return False
        known_s = PAUSE_FACTOR * self.between_s if self.num_begun else LATE_FACTOR * self.reading_s
        return known_s > 0 and now_s - self.heard_s > max(PAUSE_S, known_s)


def _average(known_s: float, new_s: float) -> float:
    if not known_s:
        return new_s
    return known_s + WEIGHT * (min(new_s, OUTLIER_FACTOR * known_s) - known_s)


class Paces:
    """How fast each callee was lately."""

    def __init__(self) -> None:
        """Know nobody."""
        self._speeds: OrderedDict[PartyId, _Speed] = OrderedDict()

    def begin(self, callee: PartyId, num_prompt: int, now_s: float) -> Pace:
        """An answer of ``callee`` begins, to a prompt of so many tokens."""
        speed = self._speeds.setdefault(callee, _Speed())
        self._speeds.move_to_end(callee)
        if len(self._speeds) > CALLEES_MAX:
            self._speeds.popitem(last=False)
        speed.open(num_prompt, now_s)
        return Pace(speed, num_prompt, now_s)

    def pauses(self, callee: PartyId, now_s: float) -> bool:
        """Whether none of the answers of ``callee`` gets on."""
        speed = self._speeds.get(callee)
        return speed is not None and speed.pauses(now_s)

    def pausing(self, now_s: float) -> list[PartyId]:
        """Callees none of whose answers gets on: perhaps the next to be given up."""
        return [callee for callee, speed in self._speeds.items() if speed.pauses(now_s)]


class Pace:
    """One answer's tokens in time. ``due_s`` is when the next one is overdue."""

    __slots__ = ("_at_s", "_between_s", "_has_token", "_num_prompt", "_speed", "due_s")

    def __init__(self, speed: _Speed, num_prompt: int, now_s: float) -> None:
        """Made by `Paces.begin`."""
        self._speed = speed
        self._num_prompt = max(1, num_prompt)
        self._at_s = now_s
        self._between_s = speed.between_s
        self._has_token = False
        self.due_s = now_s + self._patience_s()

    def late_s(self, began_s: float) -> float:
        """When a second callee should be asked for the first token of an answer in its middle.

        Later for a callee that has brought a token of any answer since ``began_s``.
        """
        known_s = self._speed.per_prompt_token_s * self._num_prompt
        patience_s = max(LATE_S, LATE_FACTOR * known_s) if known_s else LATE_UNKNOWN_S
        return max(began_s, self._speed.heard_s) + patience_s

    def token(self, now_s: float) -> None:
        """One or more tokens have come."""
        took_s = max(1e-6, now_s - self._at_s)
        speed = self._speed
        if self._has_token:
            self._between_s = _average(self._between_s, took_s)
            speed.between_s = _average(speed.between_s, took_s)
        else:
            self._has_token = True
            speed.num_begun += 1
            per_token_s = took_s / self._num_prompt
            speed.per_prompt_token_s = _average(speed.per_prompt_token_s, per_token_s)
        self._at_s = speed.heard_s = now_s
        self.due_s = now_s + self._patience_s()

    def end(self) -> None:
        """No more tokens are awaited; to be said once."""
        self._speed.num_open -= 1
        self._speed.num_begun -= self._has_token
        self._has_token = False

    def excuse(self, now_s: float) -> None:
        """The time until now does not count: it was the caller that did not listen."""
        self._at_s = self._speed.heard_s = now_s
        self.due_s = now_s + self._patience_s()

    def _patience_s(self) -> float:
        if self._has_token:
            known_s, least_s, unknown_s = self._between_s, TOKEN_S, TOKEN_UNKNOWN_S
        else:
            known_s = self._speed.per_prompt_token_s * self._num_prompt
            least_s, unknown_s = FIRST_S, FIRST_UNKNOWN_S
        return max(least_s, STALL_FACTOR * known_s) if known_s else unknown_s
