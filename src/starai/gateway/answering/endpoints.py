"""What tells one hot route from another: how it reads a request and how it writes an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from starai.gateway.answering.reading import Piece, Placed
from starai.gateway.asking.asks import Ask
from starai.gateway.jobs import Job
from starai.protocol.generation import Finish


class Usage(msgspec.Struct, frozen=True):
    """The tokens of one request, and what they cost where a price is set."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_nano_usd: str | msgspec.UnsetType = msgspec.UNSET


def usage_of(job: Job) -> Usage:
    """What a job has used."""
    total = job.prompt_tokens + job.completion_tokens
    return Usage(job.prompt_tokens, job.completion_tokens, total, cost_of(job))


def cost_of(job: Job) -> str | msgspec.UnsetType:
    """What a job cost, in nano-USD: a string, for JavaScript cuts large numbers."""
    return msgspec.UNSET if job.is_free else str(job.cost)


class Answer:
    """One choice, collected."""

    __slots__ = ("embedding", "finish", "texts", "tokens")

    def __init__(self) -> None:
        """Start empty."""
        self.texts: list[str] = []
        self.tokens: list[Placed] = []
        self.finish = Finish.STOP
        self.embedding = b""

    def add(self, piece: Piece) -> None:
        """Take in a piece."""
        self.texts.append(piece.text)
        self.tokens.extend(piece.tokens)
        self.embedding += piece.embedding
        if piece.finish is not None:
            self.finish = piece.finish

    @property
    def text(self) -> str:
        """All of the text so far."""
        return "".join(self.texts)


class StreamWriter(Protocol):
    """Writes one job's server-sent events; ``index`` is the number of a choice."""

    def opening(self, index: int) -> bytes:
        """What comes before a choice's first piece; may be empty."""
        ...

    def piece(self, index: int, piece: Piece) -> bytes:
        """A piece of text."""
        ...

    def closing(self, index: int, finish: Finish) -> bytes:
        """Why a choice ended."""
        ...

    def usage(self) -> bytes:
        """The tokens used, behind all choices."""
        ...


class Endpoint(msgspec.Struct, frozen=True):
    """A hot route: ``name`` in metrics, how it parses, answers whole and, if it can, streams."""

    name: str
    parse: Callable[[bytes], Ask]
    whole: Callable[[Job, Sequence[Answer]], bytes]
    stream: Callable[[Job], StreamWriter] | None = None
