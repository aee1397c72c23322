"""``POST /v1/chat/completions``: the shapes of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from starai.gateway.answering.calling import Call, CallReader, Found
from starai.gateway.answering.endpoints import Answer, Endpoint, Usage, usage_of
from starai.gateway.answering.logprobs import ChatLogprobs, chat_logprobs
from starai.gateway.answering.reading import Piece
from starai.gateway.asking.parsing import parse_chat
from starai.gateway.jobs import Job
from starai.protocol.generation import Finish

_ENCODE: Final = msgspec.json.Encoder().encode


class CalledFunction(msgspec.Struct, frozen=True):
    """What the model wants called; ``arguments`` is a JSON object, written out."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model makes; ``index`` counts an answer's calls in streams."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | msgspec.UnsetType = msgspec.UNSET


class AssistantMessage(msgspec.Struct, frozen=True):
    """The answer of one choice."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One choice of a chat completion."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish | Literal["tool_calls"]


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
    messages = [_message(job, index, answer.text) for index, answer in enumerate(answers)]
    choices = [
        ChatChoice(
            index=index,
            message=message,
            logprobs=chat_logprobs(codec, answer.tokens) if wanted else None,
            finish_reason="tool_calls" if message.tool_calls else answer.finish,
        )
        for index, (message, answer) in enumerate(zip(messages, answers, strict=True))
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


def _message(job: Job, index: int, text: str) -> AssistantMessage:
    reader = _reader(job)
    if reader is None:
        return AssistantMessage(text)
    parts = (reader.push(text), reader.flush())
    calls = [call for part in parts for call in part.calls]
    if not calls:
        return AssistantMessage(text)
    written = [_tool_call(job, index, number, call) for number, call in enumerate(calls)]
    return AssistantMessage("".join(part.text for part in parts) or None, tool_calls=written)


def _reader(job: Job) -> CallReader | None:
    """Who finds calls in an answer; None: there can be none."""
    style = job.model.codec.tool_style
    if job.ask.tools is None or style is None:
        return None
    return CallReader(style, {tool["function"]["name"] for tool in job.ask.tools.told})


def _tool_call(job: Job, choice: int, number: int, call: Call) -> ToolCall:
    name = f"call_{job.tasks[choice].task_id.hex()}{number:02x}"
    return ToolCall(name, CalledFunction(call.name, call.arguments))


class ChatStream:
    """Writes the chunks of a stream around what is the same in all of them."""

    __slots__ = ("_called", "_head", "_job", "_readers", "_tail")

    def __init__(self, job: Job) -> None:
        """Prepare the constant parts."""
        self._job = job
        self._readers = [_reader(job) for _ in job.tasks]
        self._called = [0 for _ in job.tasks]
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
        reader = self._readers[index]
        if reader is None:
            return self._chunk(index, b'{"content":%b}' % _ENCODE(piece.text), logprobs, b"null")
        return self._found(index, reader.push(piece.text), logprobs)

    def _found(self, index: int, found: Found, logprobs: bytes = b"null") -> bytes:
        """Chunks with what a reader of calls lets through; a call is one chunk."""
        chunks = []
        if found.text or logprobs != b"null":
            delta = b'{"content":%b}' % _ENCODE(found.text)
            chunks.append(self._chunk(index, delta, logprobs, b"null"))
        for call in found.calls:
            number = self._called[index]
            self._called[index] += 1
            written = msgspec.structs.replace(
                _tool_call(self._job, index, number, call), index=number
            )
            delta = b'{"tool_calls":[%b]}' % _ENCODE(written)
            chunks.append(self._chunk(index, delta, b"null", b"null"))
        return b"".join(chunks)

    def closing(self, index: int, finish: Finish) -> bytes:
        """A chunk with the reason why it ended."""
        reader = self._readers[index]
        rest = b"" if reader is None else self._found(index, reader.flush())
        reason = b'"tool_calls"' if self._called[index] else _ENCODE(finish)
        return rest + self._chunk(index, b"{}", b"null", reason)

    def usage(self) -> bytes:
        """A chunk without choices."""
        return b'%b],"usage":%b}\n\n' % (self._head, _ENCODE(usage_of(self._job)))


CHAT: Final = Endpoint(name="chat", parse=parse_chat, whole=whole, stream=ChatStream)
