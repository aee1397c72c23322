"""``POST /v1/completions``: the shapes of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from starai.gateway.answering.endpoints import Answer, Endpoint, Usage, usage_of
from starai.gateway.answering.logprobs import LegacyLogprobs, legacy_logprobs
from starai.gateway.answering.reading import Piece
from starai.gateway.asking.parsing import parse_completion
from starai.gateway.jobs import Job
from starai.protocol.generation import Finish

_ENCODE: Final = msgspec.json.Encoder().encode


class CompletionChoice(msgspec.Struct, frozen=True):
    """One choice of a completion."""

    text: str
    index: int
    logprobs: LegacyLogprobs | None
    finish_reason: Finish | None


class Completion(msgspec.Struct, frozen=True):
    """The body of a whole answer."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str
    object: Literal["text_completion"] = "text_completion"


def whole(job: Job, answers: Sequence[Answer]) -> bytes:
    """The body of a finished job."""
    codec = job.model.codec
    wanted = job.ask.logprobs
    choices = [
        CompletionChoice(
            text=answer.text,
            index=index,
            logprobs=legacy_logprobs(codec, answer.tokens, wanted) if wanted is not None else None,
            finish_reason=answer.finish,
        )
        for index, answer in enumerate(answers)
    ]
    return _ENCODE(
        Completion(
            id=f"cmpl-{job.hex_id}",
            created=job.created,
            model=job.model.name,
            choices=choices,
            usage=usage_of(job),
            system_fingerprint=job.model.fingerprint,
        )
    )


class CompletionStream:
    """Writes the chunks of a stream around what is the same in all of them."""

    __slots__ = ("_head", "_job", "_tail")

    def __init__(self, job: Job) -> None:
        """Prepare the constant parts."""
        self._job = job
        self._head = (
            f'data: {{"id":"cmpl-{job.hex_id}","object":"text_completion",'
            f'"created":{job.created},"model":'.encode()
            + _ENCODE(job.model.name)
            + f',"system_fingerprint":"{job.model.fingerprint}","choices":['.encode()
        )
        self._tail = b'],"usage":null}\n\n' if job.ask.include_usage else b"]}\n\n"

    def _chunk(self, choice: CompletionChoice) -> bytes:
        return b"".join((self._head, _ENCODE(choice), self._tail))

    def opening(self, index: int) -> bytes:
        """Nothing comes before the text."""
        return b""

    def piece(self, index: int, piece: Piece) -> bytes:
        """A chunk with text."""
        logprobs = None
        if piece.tokens:
            wanted = self._job.ask.logprobs or 0
            logprobs = legacy_logprobs(self._job.model.codec, piece.tokens, wanted)
        return self._chunk(CompletionChoice(piece.text, index, logprobs, None))

    def closing(self, index: int, finish: Finish) -> bytes:
        """A chunk with the reason why it ended."""
        return self._chunk(CompletionChoice("", index, None, finish))

    def usage(self) -> bytes:
        """A chunk without choices."""
        return b'%b],"usage":%b}\n\n' % (self._head, _ENCODE(usage_of(self._job)))


COMPLETIONS: Final = Endpoint(
    name="completions", parse=parse_completion, whole=whole, stream=CompletionStream
)
