"""What an engine used alone answers: text and ids, read token by token as they come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from starai.core.errors import ERRORS_BY_CODE, InternalFault
from starai.engines.base import Emitted
from starai.models.codec import TextCodec
from starai.models.stops import StopScanner
from starai.protocol.generation import Finish, TokenLogprobs

#: What an error that comes as a code alone is told as.
_TOLD: Final = "the engine gave this answer up"


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A token, its natural log-probability, and its likeliest rivals, itself maybe among them."""

    text: str
    logprob: float
    rivals: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer.

    ``ids`` are all tokens that were generated: an end token or a stop string is among them, but
    not in ``text``. ``finish`` is ``stop`` or ``length``. ``logprobs`` has an entry for each id,
    if they were asked for.
    """

    text: str
    ids: tuple[int, ...]
    finish: str
    logprobs: tuple[TokenChance, ...] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to one prompt; what is usually wanted is that of the first."""

    choices: tuple[Choice, ...]
    num_prompt_tokens: int

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.choices[0].text

    @property
    def ids(self) -> tuple[int, ...]:
        """The first answer's tokens."""
        return self.choices[0].ids

    @property
    def finish(self) -> str:
        """Why the first answer ended: ``stop`` or ``length``."""
        return self.choices[0].finish

    @property
    def logprobs(self) -> tuple[TokenChance, ...]:
        """The first answer's log-probabilities."""
        return self.choices[0].logprobs


@dataclass(frozen=True, slots=True)
class Beam:
    """An answer of a beam search; ``score`` is its log-probability by the length penalty."""

    text: str
    ids: tuple[int, ...]
    score: float


class Reading:
    """One sequence's answer on its way from tokens to text."""

    def __init__(self, codec: TextCodec, ends: Iterable[int], stops: tuple[str, ...] = ()) -> None:
        """Read with a model's codec; ``ends`` are its end tokens."""
        self._codec = codec
        self._decoder = codec.stream()
        self._ends = frozenset(ends)
        self._scanner = StopScanner(stops) if stops else None
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._text: list[str] = []
        self._drained = 0
        self._error = ""
        self._finish: Finish | None = None
        #: The vector, little-endian float32, where one was asked for.
        self.embedding = b""

    @property
    def done(self) -> bool:
        """Whether nothing more comes."""
        return self._finish is not None or bool(self._error)

    def take(self, news: Emitted) -> None:
        """The answer goes on."""
        self._ids += news.ids
        self._logprobs += news.logprobs
        self._error, self._finish, self.embedding = news.error, news.finish, news.embedding
        spoken = news.ids
        if news.finish is Finish.STOP:
            spoken = tuple(id_ for id_ in spoken if id_ not in self._ends)
        text = self._decoder.push(spoken)
        if self.done:
            text += self._decoder.flush()
        if self._scanner is not None:
            text = self._scanner.push(text)
            if self.done:
                text += self._scanner.flush()
            if self._scanner.stopped and not self._error:
                self._finish = Finish.STOP
        if text:
            self._text.append(text)

    def drain(self) -> str:
        """The text that is new since this was asked last.

        Raises:
            StarAIError: the answer failed, and all of its text was drained.
        """
        new = "".join(self._text[self._drained :])
        self._drained = len(self._text)
        if not new:
            self.check()
        return new

    def check(self) -> None:
        """See that nothing went wrong.

        Raises:
            StarAIError: something did.
        """
        if self._error:
            kind = ERRORS_BY_CODE.get(self._error, InternalFault)
            raise kind(f"{_TOLD}: {kind().message}")

    def choice(self) -> Choice:
        """The whole answer.

        Raises:
            StarAIError: it failed.
        """
        self.check()
        finish = (self._finish or Finish.LENGTH).value
        logprobs = tuple(map(self._chance, self._logprobs))
        return Choice("".join(self._text), tuple(self._ids), finish, logprobs)

    def _chance(self, one: TokenLogprobs) -> TokenChance:
        name = self._codec.token_text
        rivals = tuple((name(id_), logprob) for id_, logprob in one.top)
        return TokenChance(name(one.token_id), one.logprob, rivals)
