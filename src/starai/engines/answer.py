"""One answer as it grows: where it may begin, when it ends, what is emitted of it.

Shared by all engines, so that they agree on contexts, stops and resumption to the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from starai.core.errors import ContextTooLong, InternalFault, InvalidRequest, MalformedFrame
from starai.core.limits import TOP_LOGPROBS_MAX
from starai.engines.base import Emitted, EngineInfo
from starai.engines.sampler import TokenRace
from starai.protocol import tokens
from starai.protocol.generation import Finish, Generation, TokenLogprobs

#: A vector of zeros stays one.
_TINY: Final = 1e-30


class Answer:
    """A sequence of an engine: prompt, the answer so far (accepted tokens included), its end.

    Attributes:
        key: the name that the sequence was admitted under.
        prompt: its token ids.
        ids: the answer's token ids so far; generation continues at position ``len(ids)``.
        limit: how many tokens the whole answer may have: ``max_tokens``, or what the context
            leaves.
        embed: whether the answer is a vector instead of tokens; then ``limit`` is 0 and the
            answer ends with `embedded`.
        race: the sampler's state.
        top_logprobs: rivals to report per token; None reports nothing.
    """

    def __init__(self, key: bytes, generation: Generation, info: EngineInfo) -> None:
        """Check a generation against what the engine serves.

        Raises:
            ContextTooLong: the prompt leaves no room for one token.
            InvalidRequest: empty prompt, ids outside the vocabulary, impossible numbers.
        """
        self.key = key
        self.prompt = _ids(generation.prompt, "prompt", info.vocab_size)
        self.ids = _ids(generation.accepted, "accepted", info.vocab_size)
        self.embed = generation.embed
        room = info.context_length - len(self.prompt)
        if not self.prompt:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if room < (0 if self.embed else 1):
            raise ContextTooLong(
                f"the prompt has {len(self.prompt)} tokens; this model's context of "
                f"{info.context_length} must hold it and at least one token of the answer"
            )
        if self.embed:
            _check_embed(generation)
        elif generation.max_tokens < 1:
            raise InvalidRequest("max_tokens is at least 1", param="max_tokens")
        top = generation.top_logprobs
        if top is not None and not 0 <= top <= TOP_LOGPROBS_MAX:
            raise InvalidRequest(f"top_logprobs is 0 to {TOP_LOGPROBS_MAX}", param="top_logprobs")
        self.limit = min(generation.max_tokens, room)
        self.top_logprobs = top
        self.race = TokenRace(generation.sampling, info.vocab_size, self.ids)
        self._stops = frozenset(generation.stop_token_ids)

    @property
    def length(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.prompt) + len(self.ids)

    @property
    def finish(self) -> Finish | None:
        """Why the answer is at its end, if it is; a resumed one can be from the start."""
        if self.embed:
            return None
        if self.ids and self.ids[-1] in self._stops:
            return Finish.STOP
        return Finish.LENGTH if len(self.ids) >= self.limit else None

    def take(self, token_id: int, logprobs: TokenLogprobs | None) -> Emitted:
        """Append a token and say what is to be emitted."""
        self.ids.append(token_id)
        self.race.note(token_id)
        return Emitted(
            self.key, (token_id,), (logprobs,) if logprobs is not None else (), self.finish
        )

    def embedded(self, vector: NDArray[np.floating[Any]]) -> Emitted:
        """The end of an answer that is a vector: ``vector`` [width], scaled to unit length."""
        wide = vector.astype(np.float64)
        if not np.isfinite(wide).all():
            return self.failed(InternalFault.code)
        scaled = (wide / max(float(np.linalg.norm(wide)), _TINY)).astype("<f4")
        return Emitted(self.key, (), (), Finish.STOP, embedding=scaled.tobytes())

    def ended(self) -> Emitted:
        """The end of an answer that was complete when it was admitted."""
        return Emitted(self.key, (), (), self.finish)

    def failed(self, code: str) -> Emitted:
        """The end of an answer that cannot go on."""
        return Emitted(self.key, (), (), error=code)


def _check_embed(generation: Generation) -> None:
    asked = (generation.max_tokens, generation.accepted, generation.top_logprobs)
    if asked != (0, b"", None) or generation.grammar is not None:
        raise InvalidRequest("an embedding has no tokens, log-probabilities or grammar")


def _ids(packed: bytes, name: str, vocab_size: int) -> list[int]:
    try:
        ids: Sequence[int] = tokens.unpack(packed)
    except MalformedFrame as error:
        raise InvalidRequest(f"{name}: {error.message}", param=name) from error
    if ids and max(ids) >= vocab_size:
        raise InvalidRequest(
            f"{name} holds token {max(ids)}; this model's vocabulary ends at {vocab_size - 1}",
            param=name,
        )
    return list(ids)
