"""Draws the next tokens of a step's answers, and verifies what was guessed ahead of them.

A guess is right when the keyed race would have drawn it anyway: the tokens are those of one step
at a time, whatever was guessed (lossless speculation with a deterministic sampler; Leviathan et
al., 2023, need the rejection step only because their noise is not tied to the position).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from starai.core.errors import InternalFault
from starai.engines.answer import Answer
from starai.engines.base import Emitted
from starai.engines.sampler import sample, token_logprobs


@dataclass(slots=True)
class Draw:
    """What one answer draws from: logits from row ``first`` on, one more than it has drafts."""

    answer: Answer
    first: int
    drafts: Sequence[int] = ()
    emitted: list[Emitted] = field(default_factory=list)


def draw(draws: Sequence[Draw], logits: NDArray[np.float32]) -> list[Emitted]:
    """The next tokens of each answer, appended to it.

    Args:
        draws: the answers; row ``first + n`` of one holds only if its first n drafts were right.
        logits: [rows, vocabulary].

    Returns:
        One report for each answer, in order; it has an error if the logits are not numbers.
    """
    live, depth = list(draws), 0
    while live:
        sound = [d for d in live if np.isfinite(logits[d.first + depth].max())]
        for one in live:
            if one not in sound:
                one.emitted.append(one.answer.failed(InternalFault.code))
        rows = logits[[d.first + depth for d in sound]] if sound else logits[:0]
        chosen = sample(rows, [d.answer.race for d in sound])
        for one, row, token_id in zip(sound, rows, chosen, strict=True):
            top = one.answer.top_logprobs
            logprobs = None if top is None else token_logprobs(row, token_id, top)
            one.emitted.append(one.answer.take(token_id, logprobs))
        live = [
            one
            for one, token_id in zip(sound, chosen, strict=True)
            if depth < len(one.drafts)
            and token_id == one.drafts[depth]
            and one.answer.finish is None
        ]
        depth += 1
    return [_joined(one.emitted) for one in draws]


def _joined(parts: Sequence[Emitted]) -> Emitted:
    last = parts[-1]
    if len(parts) == 1:
        return last
    return Emitted(
        last.key,
        tuple(token_id for part in parts for token_id in part.ids),
        tuple(one for part in parts for one in part.logprobs),
        last.finish,
        last.error,
    )
