"""Beam search: the likeliest answers, found by following the best few at once.

Scores and stopping are those of transformers' ``generate(num_beams=...)`` without sampling. The
search itself is pure: likeliest next tokens in, which beams go on with which tokens out. `follow`
turns that into the fewest forks and removals of an engine's sequences; `run` drives a `Host`.

::

    beams    a b c        best continuations: a+x, a+y, c+z
    Move     parents (0, 0, 2), token_ids (x, y, z)
    engine   fork a -> a', remove b; a: x, a': y, c: z

Knows nothing about models, logits or memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from starai.core.errors import InvalidRequest
from starai.core.limits import CHOICES_MAX

#: The likeliest next tokens of one beam: ids and natural log-probabilities, best first.
Tops = Sequence[tuple[int, float]]
EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished answer, its end token included; ``score`` is log-probability by length penalty."""

    ids: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True)
class Move:
    """The new beams: number j goes on from old beam ``parents[j]`` with ``token_ids[j]``."""

    parents: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(slots=True)
class _Beam:
    ids: tuple[int, ...] = ()
    logprob: float = 0.0


@dataclass(slots=True)
class BeamSearch:
    """One search, step by step.

    Attributes:
        width: beams, and finished answers that are kept.
        ends: tokens that end an answer.
        max_tokens: the longest answer.
        length_penalty: a score is divided by length to this power; above 0 favours long answers.
        early_stopping: True: stop at ``width`` finished ones. False: when the best beam, at its
            present length, is worse than all of them. "never": when it is at any length.
        finished: the best so far, the best first.
    """

    width: int
    ends: Collection[int]
    max_tokens: int
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    finished: list[Hypothesis] = field(default_factory=list)
    _beams: list[_Beam] = field(default_factory=lambda: [_Beam()])

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidRequest: one makes no sense.
        """
        if not 1 <= self.width <= CHOICES_MAX or self.max_tokens < 1:
            raise InvalidRequest(f"a beam search has 1 to {CHOICES_MAX} beams and some tokens")
        if not math.isfinite(self.length_penalty):
            raise InvalidRequest("length_penalty is a number", param="length_penalty")

    @property
    def num_candidates(self) -> int:
        """How many of each beam's likeliest tokens `advance` needs.

        If the best of them all end an answer, as many beams are still left to go on.
        """
        return max(2, 1 + len(self.ends)) * self.width

    def advance(self, tops: Sequence[Tops]) -> Move | None:
        """One step: ``tops`` of each running beam, in order; None when the search is over.

        The first step has one beam, the prompt.
        """
        length = len(self._beams[0].ids) + 1
        candidates = sorted(
            (
                (-(beam.logprob + logprob), number, token_id)
                for number, (beam, top) in enumerate(zip(self._beams, tops, strict=True))
                for token_id, logprob in top[: self.num_candidates]
            ),
        )[: self.num_candidates]
        running: list[tuple[int, _Beam]] = []
        for rank, (negative, number, token_id) in enumerate(candidates):
            beam = _Beam((*self._beams[number].ids, token_id), -negative)
            if token_id in self.ends or length >= self.max_tokens:
                if rank < self.width:
                    self._finish(beam)
            elif len(running) < self.width:
                running.append((number, beam))
        self._beams = [beam for _, beam in running]
        if not running or self._is_over(length):
            return None
        return Move(
            tuple(number for number, _ in running), tuple(beam.ids[-1] for _, beam in running)
        )

    def _finish(self, beam: _Beam) -> None:
        score = beam.logprob / len(beam.ids) ** self.length_penalty
        self.finished.append(Hypothesis(beam.ids, score))
        self.finished.sort(key=lambda one: -one.score)
        del self.finished[self.width :]

    def _is_over(self, length: int) -> bool:
        if len(self.finished) < self.width:
            return False
        if self.early_stopping is True:
            return True
        if self.early_stopping == "never" and self.length_penalty > 0:
            length = self.max_tokens
        best: float = self._beams[0].logprob / length**self.length_penalty
        return best <= self.finished[-1].score


@dataclass(frozen=True, slots=True)
class Steps:
    """What an engine does for a move, in this order; ``feeds`` maps each sequence to its token.

    ``keys`` are the sequences of the new beams, in their order.
    """

    forks: tuple[tuple[bytes, bytes], ...]
    removals: tuple[bytes, ...]
    feeds: Mapping[bytes, int]
    keys: tuple[bytes, ...]


def follow(keys: Sequence[bytes], move: Move, new_key: Callable[[], bytes]) -> Steps:
    """A move on sequences ``keys``: a beam's first continuation takes over its sequence."""
    taken: set[int] = set()
    forks: list[tuple[bytes, bytes]] = []
    goes_on: list[bytes] = []
    for parent in move.parents:
        key = keys[parent]
        if parent in taken:
            key = new_key()
            forks.append((keys[parent], key))
        taken.add(parent)
        goes_on.append(key)
    removals = tuple(key for number, key in enumerate(keys) if number not in taken)
    feeds = dict(zip(goes_on, move.token_ids, strict=True))
    return Steps(tuple(forks), removals, feeds, tuple(goes_on))


class Host(Protocol):
    """What runs the sequences of a search."""

    def fork(self, key: bytes, new_key: bytes) -> None:
        """Begin ``new_key`` as a copy of ``key``."""
        ...

    def remove(self, key: bytes) -> None:
        """Forget a sequence."""
        ...

    def step(self, feeds: Mapping[bytes, int], count: int) -> Mapping[bytes, Tops]:
        """Append a token to each sequence; each one's ``count`` likeliest next tokens."""
        ...


def run(search: BeamSearch, host: Host, key: bytes, tops: Tops) -> list[Hypothesis]:
    """A whole search from sequence ``key``, whose next tokens are ``tops``; the best first.

    The sequences that it made are removed, and ``key`` too.
    """
    keys: tuple[bytes, ...] = (key,)
    rows: list[Tops] = [tops]
    made = 0

    def new_key() -> bytes:
        nonlocal made
        made += 1
        return key + made.to_bytes(4, "little")

    while (move := search.advance(rows)) is not None:
        steps = follow(keys, move, new_key)
        for source, copy in steps.forks:
            host.fork(source, copy)
        for gone in steps.removals:
            host.remove(gone)
        found = host.step(steps.feeds, search.num_candidates)
        keys = steps.keys
        rows = [found[one] for one in keys]
    for one in keys:
        host.remove(one)
    return search.finished
