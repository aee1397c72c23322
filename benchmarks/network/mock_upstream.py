"""An OpenAI-compatible server that costs next to nothing: what every peer is measured in front of.

A raw protocol on uvloop: it finds ``content-length``, and answers a chat completion with fixed
bytes, or with ``--tokens`` server-sent events when the body asks for a stream. It knows nothing of
models; run it as ``python benchmarks/network/mock_upstream.py --port 9101``.
"""

from __future__ import annotations

import argparse
import asyncio
import json

import uvloop

WORD = " word"


def _head(kind: str, length: int | None) -> bytes:
    body = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{body}\r\n\r\n".encode()


def whole(tokens: int) -> bytes:
    """The body of an answer that is not streamed."""
    answer = {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": 1_800_000_000,
        "model": "mock",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": WORD * tokens},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens},
    }
    return json.dumps(answer).encode()


def events(tokens: int) -> list[bytes]:
    """The server-sent events of a streamed answer, one a token."""
    base = {
        "id": "chatcmpl-mock",
        "object": "chat.completion.chunk",
        "created": 1_800_000_000,
        "model": "mock",
    }
    first = {"role": "assistant", "content": WORD}
    deltas = [first, *({"content": WORD} for _ in range(tokens - 1)), {}]
    lines = []
    for number, delta in enumerate(deltas):
        finish = "stop" if number == tokens else None
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        lines.append(b"data: " + json.dumps({**base, "choices": [choice]}).encode() + b"\n\n")
    return [*lines, b"data: [DONE]\n\n"]


_LIST = b'{"object":"list","data":[{"id":"mock","object":"model","created":1,"owned_by":"mock"}]}'
MODELS = _head("application/json", len(_LIST)) + _LIST


class Mock(asyncio.Protocol):
    """One connection."""

    def __init__(self, tokens: int, delay_s: float = 0.0, die_after: int = 0) -> None:
        """Prepare both answers once; the rest is for streams, see `main`."""
        self.delay_s = delay_s
        self.die_after = die_after
        body = whole(tokens)
        self.whole = _head("application/json", len(body)) + body
        self.stream_head = _head("text/event-stream", None)
        self.chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in events(tokens)]
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each complete request in the buffer."""
        self.buffer += data
        while (split := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:split].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < split + 4 + length:
                return
            body = self.buffer[split + 4 : split + 4 + length]
            self.buffer = self.buffer[split + 4 + length :]
            if head.startswith(b"get "):
                self.transport.write(MODELS)  # routers ask what there is, and whether we live
                continue
            self.answer(b'"stream":true' in body.replace(b" ", b""))

    def answer(self, stream: bool) -> None:
        """Write the whole answer, or its events one write each."""
        write = self.transport.write
        if not stream:
            write(self.whole)
            return
        write(self.stream_head)
        if self.delay_s or self.die_after:
            self.write_slowly(0)
            return
        for chunk in self.chunks:
            write(chunk)
        write(b"0\r\n\r\n")

    def write_slowly(self, number: int) -> None:
        """Write one event after the other, with pauses, up to the end or to a sudden death."""
        if self.die_after and number == self.die_after:
            self.transport.abort()
        elif number == len(self.chunks):
            self.transport.write(b"0\r\n\r\n")
        else:
            self.transport.write(self.chunks[number])
            loop = asyncio.get_running_loop()
            loop.call_later(self.delay_s, self.write_slowly, number + 1)


async def serve(port: int, tokens: int, delay_s: float, die_after: int) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(
        lambda: Mock(tokens, delay_s, die_after), "127.0.0.1", port, backlog=256
    )
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds between events")
    parser.add_argument("--die-after", type=int, default=0, help="abort streams after so many")
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.tokens, options.delay, options.die_after))
