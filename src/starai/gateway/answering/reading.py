"""From the parts of an answer to what a client sees of it: text, log-probabilities, the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from starai.gateway.asking.asks import Ask
from starai.gateway.catalogue import TextModel
from starai.models.stops import StopScanner
from starai.protocol.generation import Finish, Part, TokenLogprobs
from starai.protocol.tokens import unpack


class Placed(msgspec.Struct, frozen=True, gc=False):
    """A token's log-probabilities, and at which character of the answer the token begins."""

    offset: int
    token: TokenLogprobs


class Piece(msgspec.Struct, frozen=True, gc=False):
    """What one part adds: text (may be empty), the tokens behind it, and the end if it is one.

    ``embedding`` is the vector, little-endian float32, where one was asked for.
    """

    text: str
    tokens: tuple[Placed, ...] = ()
    finish: Finish | None = None
    embedding: bytes = b""


class AnswerReader:
    """Reads one answer, part by part.

    Text behind the first stop string is never shown, nor is a token that begins there. A token
    whose text is held back (half a character, the beginning of a stop string) waits with it.
    """

    __slots__ = (
        "_decoded",
        "_decoder",
        "_ends",
        "_pending",
        "_scanner",
        "_shown",
        "_wants_logprobs",
        "num_tokens",
    )

    def __init__(self, ask: Ask, model: TextModel) -> None:
        """Read an answer of ``model`` to ``ask``."""
        self._decoder = model.codec.stream()
        self._ends = model.eos_token_ids
        self._scanner = StopScanner(ask.stops) if ask.stops else None
        self._wants_logprobs = ask.logprobs is not None
        self._pending: deque[Placed] = deque()
        self._decoded = 0
        self._shown = 0
        #: Tokens read so far, an end token included.
        self.num_tokens = 0

    def read(self, part: Part) -> Piece:
        """What ``part`` lets a client see."""
        ids = unpack(part.ids) if part.ids else ()
        self.num_tokens += len(ids)
        finish = part.finish
        if finish is Finish.STOP:
            # The end token is one of the answer's ids, but none of its text.
            ids = [token_id for token_id in ids if token_id not in self._ends]
        if self._wants_logprobs:
            text = self._decode_placed(ids, part.logprobs)
        else:
            text = self._decoder.push(ids) if ids else ""
        if finish is not None:
            text += self._decoder.flush()
        if self._scanner is not None:
            text = self._scanner.push(text)
            if finish is not None:
                text += self._scanner.flush()
            if self._scanner.stopped:
                finish = Finish.STOP
        self._shown += len(text)
        released = self._release(finish) if self._pending else ()
        return Piece(text, released, finish, part.embedding)

    def _decode_placed(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> str:
        text = ""
        for token_id, token in zip(ids, logprobs, strict=False):
            added = self._decoder.push((token_id,))
            self._pending.append(Placed(self._decoded, token))
            self._decoded += len(added)
            text += added
        rest = self._decoder.push(ids[len(logprobs) :])
        self._decoded += len(rest)
        return text + rest

    def _release(self, finish: Finish | None) -> tuple[Placed, ...]:
        cut = self._scanner is not None and self._scanner.stopped
        every = finish is not None and not cut
        released = []
        while self._pending and (every or self._pending[0].offset < self._shown):
            released.append(self._pending.popleft())
        return tuple(released)
