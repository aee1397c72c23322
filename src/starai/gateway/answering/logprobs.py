"""Log-probabilities in OpenAI's two shapes: chat's, and the older one of plain completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from starai.gateway.answering.reading import Placed
from starai.models.codec import TextCodec

#: What OpenAI says for "never": JSON has no minus infinity.
_LOWEST: Final = -9999.0


class TopLogprob(msgspec.Struct, frozen=True):
    """A token that could have stood here."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(msgspec.Struct, frozen=True):
    """A token of a chat answer and its likeliest rivals."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """The ``logprobs`` of a chat choice."""

    content: list[ChatToken]
    refusal: None = None


class LegacyLogprobs(msgspec.Struct, frozen=True):
    """The ``logprobs`` of a plain completion's choice: four lists of equal length.

    ``text_offset`` counts characters from the beginning of the choice's ``text``.
    """

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


def chat_logprobs(codec: TextCodec, tokens: Sequence[Placed]) -> ChatLogprobs:
    """Log-probabilities as chat completions show them."""
    content = []
    for placed in tokens:
        chosen = _top(codec, placed.token.token_id, placed.token.logprob)
        rivals = [_top(codec, token_id, logprob) for token_id, logprob in placed.token.top]
        content.append(ChatToken(chosen.token, chosen.logprob, chosen.bytes, rivals))
    return ChatLogprobs(content)


def _top(codec: TextCodec, token_id: int, logprob: float) -> TopLogprob:
    written = codec.token_text(token_id)
    return TopLogprob(written, max(logprob, _LOWEST), list(codec.token_bytes(token_id)))


def legacy_logprobs(codec: TextCodec, tokens: Sequence[Placed], wanted: int) -> LegacyLogprobs:
    """Log-probabilities as plain completions show them; the chosen token is among the top."""
    texts = [codec.token_text(placed.token.token_id) for placed in tokens]
    tops = []
    for text, placed in zip(texts, tokens, strict=True):
        top = {codec.token_text(rival): max(value, _LOWEST) for rival, value in placed.token.top}
        top[text] = max(placed.token.logprob, _LOWEST)
        tops.append(top)
    return LegacyLogprobs(
        tokens=texts,
        token_logprobs=[max(placed.token.logprob, _LOWEST) for placed in tokens],
        top_logprobs=tops if wanted else None,
        text_offset=[placed.offset for placed in tokens],
    )
