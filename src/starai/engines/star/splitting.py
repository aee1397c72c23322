"""Where a prompt's context ends and its query begins, in token ids.

Star Attention computes the context in blocks and the query against all of it. The prompt is always
tokenised whole and then cut: two texts tokenised apart need not give the tokens of the whole, and
the model would see a border that dense attention does not have.

Documents belong before the question: unless the request says where they end, the last tokens of a
prompt are the query. Knows nothing about templates or models.
"""

from __future__ import annotations

from typing import Final

from starai.core.errors import InvalidRequest

#: Query tokens see everything; a question with its instructions rarely is longer.
QUERY_TOKENS_MAX: Final = 512


def split_prompt(
    num_tokens: int,
    *,
    explicit: int | None = None,
    query_max: int = QUERY_TOKENS_MAX,
) -> int:
    """How many of a prompt's tokens are context; the rest, at least one, is the query.

    Args:
        num_tokens: of the whole prompt.
        explicit: the caller's own split; overrides everything.
        query_max: the query of an automatic split, if the prompt is longer.

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
    return min(max(0, num_tokens - query_max), num_tokens - 1)
