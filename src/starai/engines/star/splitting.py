"""Where a prompt's context ends and its query begins, in token ids.

Star Attention computes the context in blocks and the query against all of it. The prompt is always
tokenised whole and then cut: two texts tokenised apart need not give the tokens of the whole, and
the model would see a border that dense attention does not have.

In a chat the query is the last user turn with all that follows it. Documents therefore belong into
earlier turns, or before the question in the last one: of a long last turn only the end is query.
Knows nothing about templates or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starai.core.errors import InvalidRequest

#: Query tokens see everything; a question with its instructions rarely is longer. Past this the
#: beginning of the last turn counts as context: documents first, question last.
QUERY_TOKENS_MAX: Final = 512


def turn_begins(ids: Sequence[int], without_last_turn: Sequence[int]) -> int:
    """Where the last turn begins in a rendered chat, for any template.

    Args:
        ids: the chat as it is sent to the model.
        without_last_turn: the same chat rendered without its last user turn.

    Returns:
        How many first ids both have in common.
    """
    shared = min(len(ids), len(without_last_turn))
    return next((n for n in range(shared) if ids[n] != without_last_turn[n]), shared)


def split_prompt(
    num_tokens: int,
    *,
    turn: int | None = None,
    explicit: int | None = None,
    query_max: int = QUERY_TOKENS_MAX,
) -> int:
    """How many of a prompt's tokens are context; the rest, at least one, is the query.

    Args:
        num_tokens: of the whole prompt.
        turn: where the last user turn begins, from `turn_begins`; None if it is not known, then
            the last ``query_max`` tokens are the query.
        explicit: the caller's own split; overrides everything.
        query_max: the longest query of an automatic split.

    Raises:
        InvalidRequest: the explicit split leaves no query, or the prompt is empty.
    """
    if num_tokens < 1:
        raise InvalidRequest("the prompt is empty", param="prompt")
    if explicit is not None:
        if not 0 <= explicit < num_tokens:
            raise InvalidRequest(
                f"the context has 0 to {num_tokens - 1} of the prompt's {num_tokens} tokens; the "
                "query needs at least one",
                param="context_tokens",
            )
        return explicit
    latest = max(0, num_tokens - query_max)
    begins = latest if turn is None else max(turn, latest)
    return min(begins, num_tokens - 1)
