"""``POST /v1/chat/completions``: the shapes of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from starai.gateway.endpoints import Answer, Endpoint, Usage, usage_of
from starai.gateway.jobs import Job
from starai.gateway.logprobs import ChatLogprobs, chat_logprobs
from starai.gateway.parsing import parse_chat
from starai.gateway.reading import Piece
from starai.protocol.generation import Finish

_ENCODE: Final = msgspec.json.Encoder().encode


class AssistantMessage(msgspec.Struct, frozen=True):
    """The answer of one choice."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """One choice of a chat completion."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(msgspec.Struct, frozen=True):
    """The body of a whole answer."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    object: Literal["chat.completion"] = "chat.completion"


def whole(job: Job, answers: Sequence[Answer]) -> bytes:
    """The body of a finished job."""
    codec = job.model.codec
    wanted = job.ask.logprobs is not None
    choices = [
        ChatChoice(
            index=index,
            message=AssistantMessage(answer.text),
            logprobs=chat_logprobs(codec, answer.tokens) if wanted else None,
            finish_reason=answer.finish,
        )
        for index, answer in enumerate(answers)
    ]
    return _ENCODE(
        ChatCompletion(
            id=f"chatcmpl-{job.hex_id}",
            created=job.created,
            model=job.model.name,
            choices=choices,
            usage=usage_of(job),
            system_fingerprint=job.model.fingerprint,
        )
    )


class ChatStream:
    """Writes the chunks of a stream around what is the same in all of them."""

    __slots__ = ("_head", "_job", "_tail")

    def __init__(self, job: Job) -> None:
        """Prepare the constant parts."""
        self._job = job
        self._head = (
            f'data: {{"id":"chatcmpl-{job.hex_id}","object":"chat.completion.chunk",'
            f'"created":{job.created},"model":'.encode()
            + _ENCODE(job.model.name)
            + f',"system_fingerprint":"{job.model.fingerprint}","choices":['.encode()
        )
        self._tail = b'}],"usage":null}\n\n' if job.ask.include_usage else b"}]}\n\n"

    def _chunk(self, index: int, delta: bytes, logprobs: bytes, finish: bytes) -> bytes:
        return b'%b{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b%b' % (
            self._head,
            index,
            delta,
            logprobs,
            finish,
            self._tail,
        )

    def opening(self, index: int) -> bytes:
        """The role comes first."""
        delta = b'{"role":"assistant","content":"","refusal":null}'
        return self._chunk(index, delta, b"null", b"null")

    def piece(self, index: int, piece: Piece) -> bytes:
        """A chunk with text."""
        logprobs = b"null"
        if piece.tokens:
            logprobs = _ENCODE(chat_logprobs(self._job.model.codec, piece.tokens))
        delta = b'{"content":%b}' % _ENCODE(piece.text)
        return self._chunk(index, delta, logprobs, b"null")

    def closing(self, index: int, finish: Finish) -> bytes:
        """A chunk with the reason why it ended."""
        return self._chunk(index, b"{}", b"null", _ENCODE(finish))

    def usage(self) -> bytes:
        """A chunk without choices."""
        return b'%b],"usage":%b}\n\n' % (self._head, _ENCODE(usage_of(self._job)))


CHAT: Final = Endpoint(name="chat", parse=parse_chat, whole=whole, stream=ChatStream)
