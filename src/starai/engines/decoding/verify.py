"""Draws the next tokens of answers: one each, or several where drafts were checked in one pass.

A row of logits behind a draft is what the model says if the draft is right. So the sampler draws
from the first row; if it draws the first draft, the second row is valid, and so on. Every token is
drawn by the canonical sampler at its own position, with its own penalties and mask: the answer is
the one that single steps give, token for token. No draft is the ordinary step.

::

    rows of one sequence   [ last | d1 | d2 ]    drafts d1 d2
    drawn                    d1     d2   x       d1 = d1, d2 = d2: three tokens in one pass
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from starai.core.errors import InternalFault, StarAIError
from starai.engines.answer import Answer
from starai.engines.base import Emitted
from starai.engines.decoding.constraint import Constraint
from starai.engines.sampler import Floats, sample, token_logprobs
from starai.protocol.generation import Finish, TokenLogprobs


@dataclass(slots=True)
class Turn:
    """One sequence in one step.

    Attributes:
        answer: is advanced by what is drawn.
        logits: float32 [1 + len(drafts), vocabulary]: behind the last token, then each draft.
        drafts: guesses of the next tokens.
        constraint: is advanced likewise.
    """

    answer: Answer
    logits: Floats
    drafts: Sequence[int] = ()
    constraint: Constraint | None = None
    _ids: list[int] = field(default_factory=list)
    _logprobs: list[TokenLogprobs] = field(default_factory=list)
    _finish: Finish | None = None
    _error: str = ""

    def _row(self) -> Floats | None:
        """The next row to draw from; None: it is no good."""
        row: Floats = self.logits[len(self._ids)]
        code = InternalFault.code
        try:
            masked = row if self.constraint is None else self.constraint.mask(row)
            if np.isfinite(masked.max()):
                return masked
        except StarAIError as error:
            code = error.code
        # What was drawn before stands; the next step meets the same row first, and fails.
        self._error = "" if self._ids else code
        return None

    def _take(self, token_id: int) -> bool:
        """Advance by a drawn token; whether the next row is valid."""
        place, top = len(self._ids), self.answer.top_logprobs
        logprobs = None
        if top is not None:
            logprobs = token_logprobs(self.logits[place], token_id, top)
            self._logprobs.append(logprobs)
        self._ids.append(token_id)
        self._finish = self.answer.take(token_id, logprobs).finish
        if self.constraint is not None and self._finish is None:
            try:
                self.constraint.take(token_id)
            except StarAIError:
                return False  # too complex from here on: its next mask says so, and fails
        as_guessed = place < len(self.drafts) and self.drafts[place] == token_id
        return as_guessed and self._finish is None

    def _emitted(self) -> Emitted:
        if self._error:
            return self.answer.failed(self._error)
        return Emitted(self.answer.key, tuple(self._ids), tuple(self._logprobs), self._finish)


def draw(turns: Sequence[Turn]) -> list[Emitted]:
    """The next tokens of each sequence, at least one; a sequence that cannot go on fails alone.

    The KV memory of a sequence is valid up to its old length plus ``len(ids)``, the last of which
    was not run yet; what drafts wrote behind is to be forgotten.
    """
    pending = list(turns)
    while pending:
        rows = [(turn, row) for turn in pending if (row := turn._row()) is not None]
        chosen = sample([row for _, row in rows], [turn.answer.race for turn, _ in rows])
        pending = [
            turn for (turn, _), token_id in zip(rows, chosen, strict=True) if turn._take(token_id)
        ]
    return [turn._emitted() for turn in turns]


def accept(
    answer: Answer,
    logits: Floats,
    drafts: Sequence[int] = (),
    constraint: Constraint | None = None,
) -> Emitted:
    """`draw` for one sequence."""
    return draw([Turn(answer, logits, drafts, constraint)])[0]
