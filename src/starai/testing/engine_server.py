"""A server of the ``mock`` model that speaks as vLLM, llama.cpp, Ollama and others do, and fails.

Real sockets on the loopback. Its answer to a prompt is a story of bytes that depends on the place
in prompt and answer alone, so that a resumed answer can be compared. Knows nothing of the code
under test.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from starai.core.errors import InternalFault

#: What it tells, again and again; characters of one to four bytes.
STORY: Final = "Once upon a time, a naïve cat met 你 and 🐈.\n".encode()
EOS: Final = 256
_STOPPED_WITHIN_S: Final = 10.0


@dataclass
class EngineServer:
    """What it is, and what goes wrong; change it while it runs.

    ``speaks`` is a name of `starai.engines.external.servers.SERVERS`. An answer has ``length``
    tokens and then ends by itself. ``cut_after`` and ``stall_after`` count events, ``rubbish``
    is sent in the place of the second one; ``endless`` answers every other question without end.
    ``asked`` holds the bodies of requests for answers,
    ``open`` how many streams there are, ``broken`` how many were left by their readers.
    """

    speaks: str
    length: int = 40
    status: int = 200
    cut_after: int = -1
    stall_after: int = -1
    rubbish: bytes = b""
    delay_s: float = 0.0
    key: str = ""
    odd_tokenizer: bool = False
    healthy: bool = True
    endless: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    open: int = 0
    broken: int = 0
    url: str = ""

    def app(self) -> Starlette:
        """The ASGI application."""
        answers = ("/v1/completions", "/v3/completions", "/completion", "/generate")
        routes = [Route(path, self._answer, methods=["POST"]) for path in answers]
        routes += [Route("/api/generate", self._answer, methods=["POST"])]
        routes += [Route("/{path:path}", self._tell, methods=["GET", "POST"])]
        return Starlette(routes=routes)

    async def _tell(self, request: Request) -> Response:
        """Everything but answers."""
        if not self.healthy:
            return Response(status_code=503)
        if self.endless:
            return StreamingResponse(_blanks())
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return Response(status_code=401)
        body = msgspec.json.decode(await request.body() or b"{}")
        told = self._facts(request.url.path, body)
        return Response(status_code=404) if told is None else _json(told)

    def _facts(self, path: str, body: dict[str, Any]) -> Any:
        text = body.get("prompt", body.get("content", ""))
        ids = list(text.encode()) if isinstance(text, str) else []
        tokens = [id_ + 1 for id_ in ids] if self.odd_tokenizer else ids
        models = {"data": [{"id": "mock", "owned_by": "somebody"}]}
        facts: dict[str, dict[str, Any]] = {
            "vllm": {
                "/version": {"version": "0.32.0"},
                "/v1/models": {"data": [{"id": "mock", "owned_by": "vllm", "max_model_len": 512}]},
                "/tokenize": {"tokens": tokens},
                "/health": {},
            },
            "sglang": {
                "/get_server_info": {
                    "model_path": "mock",
                    "stream_output": True,
                    "context_length": 512,
                    "max_running_requests": 3,
                },
                "/health": {},
            },
            "llama-server": {
                "/props": {
                    "default_generation_settings": {"n_ctx": 512},
                    "total_slots": 2,
                    "build_info": "b9000",
                },
                "/tokenize": {"tokens": tokens},
                "/v1/models": models,
                "/health": {"status": "ok"},
            },
            "ollama": {
                "/api/version": {"version": "0.20.0"},
                "/api/tags": {"models": [{"name": "mock"}]},
                "/api/show": {
                    "model_info": {
                        "general.architecture": "llama",
                        "llama.context_length": 512,
                        "llama.vocab_size": 300 if self.odd_tokenizer else 257,
                    }
                },
            },
            "lm-studio": {
                "/api/v0/models": {
                    "data": [{"id": "mock", "state": "loaded", "loaded_context_length": 512}]
                }
            },
            "openvino": {"/v3/models": models},
            "llama-cpp-python": {"/extras/tokenize/count": {"count": 1}, "/v1/models": models},
            "openai": {"/v1/models": models},
        }
        return facts[self.speaks].get(path)

    async def _answer(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return Response(status_code=401)
        if not self.healthy or self.status != 200:
            return Response(status_code=self.status if self.healthy else 503)
        body = msgspec.json.decode(await request.body())
        if not body.get("stream"):
            return _json(self._whole(body))
        self.asked.append(body)
        return StreamingResponse(self._stream(body), media_type="text/event-stream")

    def _story(self, body: dict[str, Any]) -> list[int]:
        prompt = body.get("prompt") or body.get("input_ids") or ""
        begin = len(prompt.encode() if isinstance(prompt, str) else prompt)
        limit = body.get("sampling_params", body.get("options", body))
        names = ("max_tokens", "n_predict", "max_new_tokens", "num_predict")
        most = next(int(limit[name]) for name in names if name in limit)
        # The story is as long as its place says: a resumed one ends where the whole one would.
        ids = [STORY[place % len(STORY)] for place in range(begin, max(begin, self.length))]
        return ids[:most] if most <= len(ids) else [*ids, EOS]

    def _whole(self, body: dict[str, Any]) -> Any:
        ids = self._story({**body, "prompt": "A", "input_ids": [65]})
        choice = {"text": bytes(ids).decode("utf-8", "ignore"), "token_ids": ids}
        return {"choices": [choice], "output_ids": ids, "tokens": ids}

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        self.open += 1
        done = False
        try:
            ids = self._story(body)
            for number, event in enumerate(self._events(ids)):
                if number == self.cut_after:
                    raise ConnectionResetError  # the body ends without its end
                if number == self.stall_after:
                    await anyio.sleep(3600)
                await anyio.sleep(self.delay_s)
                yield self.rubbish if self.rubbish and number == 1 else self._framed(event)
            if self.speaks != "ollama":
                yield b"data: [DONE]\n\n"
            done = True
        finally:
            self.open -= 1
            self.broken += not done

    def _framed(self, event: dict[str, Any]) -> bytes:
        line = msgspec.json.encode(event)
        return line + b"\n" if self.speaks == "ollama" else b"data: " + line + b"\n\n"

    def _events(self, ids: list[int]) -> Iterator[dict[str, Any]]:
        """A token an event, held back inside a character as all of them do; then the end."""
        held: list[int] = []
        reason = "stop" if ids[-1:] == [EOS] else "length"
        for id_ in ids:
            held.append(id_)
            text = bytes(one for one in held if one != EOS)
            try:
                shown = text.decode()
            except UnicodeDecodeError:
                if self.speaks not in ("vllm", "sglang"):
                    continue
                shown = ""
            yield self._event([id_], shown, None)
            held = [] if shown or id_ == EOS else held
        yield self._event([], "", reason)

    def _event(self, ids: list[int], text: str, reason: str | None) -> dict[str, Any]:
        if self.speaks == "ollama":
            return {"response": text, "done": reason is not None, "done_reason": reason}
        if self.speaks == "llama-server":
            probabilities = [{"id": i, "logprob": -0.5, "top_logprobs": _tops(i)} for i in ids]
            end = {"stop_type": "limit" if reason == "length" else "eos"} if reason else {}
            event = {"content": text, "tokens": ids, "stop": reason is not None, **end}
            return {**event, "completion_probabilities": probabilities}
        if self.speaks == "sglang":
            finish = {"type": reason} if reason else None
            meta = {
                "finish_reason": finish,
                "output_token_logprobs": [[-0.5, i, ""] for i in ids],
                "output_top_logprobs": [[[-0.5, i, ""], [-1.5, (i + 1) % 256, ""]] for i in ids],
            }
            return {"output_ids": ids, "text": text, "meta_info": meta}
        told = {
            "token_logprobs": [-0.5] * len(ids),
            "top_logprobs": [
                {f"token_id:{i}": -0.5, f"token_id:{(i + 1) % 256}": -1.5} for i in ids
            ],
        }
        choice = {"index": 0, "text": text, "finish_reason": reason}
        if self.speaks == "vllm":
            choice |= {"token_ids": ids, "logprobs": told}
        return {"choices": [choice]}


async def _blanks() -> AsyncIterator[bytes]:
    while True:
        yield b" " * 65536
        # When the reader has gone nothing is sent, nor waited for: this loop must be interruptible.
        await anyio.sleep(0.001)


def _tops(id_: int) -> list[dict[str, Any]]:
    return [{"id": id_, "logprob": -0.5}, {"id": (id_ + 1) % 256, "logprob": -1.5}]


@contextmanager
def serving(server: EngineServer, port: int = 0) -> Iterator[EngineServer]:
    """Run it on a free port of the loopback, or on ``port``, in a thread; ``url`` says where."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        config = uvicorn.Config(
            server.app(), log_level="critical", lifespan="off", timeout_graceful_shutdown=0
        )
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.listen()
        thread.start()
        try:
            yield server
        finally:
            running.should_exit = running.force_exit = True
            thread.join(_STOPPED_WITHIN_S)
            if thread.is_alive():
                raise InternalFault("the server does not stop: it would slow what follows")


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
