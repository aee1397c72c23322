"""A node whose engine is a server, end to end: from an OpenAI client to the server and back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from starai.testing.engine_server import STORY, EngineServer, serving

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up


def served(up: Up) -> list[dict[str, object]]:
    return [one for one in json.loads(up.starai("nodes", "--json")) if one["models"]]


def wait_until(true: Callable[[], bool], within_s: float = 40) -> None:
    limit = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.2)


def test_a_server_answers_through_the_network(start_up: Callable[..., Up]) -> None:
    """A stream comes from the server; when it is gone the node serves nothing until it is back."""
    up = start_up("--model", "mock")
    token = up.starai("tokens", "create").strip()
    server = EngineServer("vllm", length=400)
    messages = [{"role": "user", "content": "Tell me"}]

    def ask() -> str:
        with up.openai() as client:
            stream = client.chat.completions.create(
                model="mock", messages=messages, max_tokens=64, stream=True
            )
            return "".join(part.choices[0].delta.content or "" for part in stream if part.choices)

    with serving(server):
        node = up.spawn(
            *("node", "start", "--model", "mock", "--engine-url", server.url),
            home=up.home / "device",
            env={**os.environ, "STARAI_TOKEN": token},
        )
        try:
            up.wait_for_nodes(2)
            up.starai("node", "drain", "node-1")
            begin = len("Tell me\n")
            expected = (STORY * 9)[begin : begin + 64].decode("utf-8", "replace")
            assert ask() == expected
            assert server.asked[-1]["prompt"] == list(b"Tell me\n")
            server.healthy = False
            wait_until(lambda: len(served(up)) == 1)
            server.healthy = True
            wait_until(lambda: len(served(up)) == 2)
            assert ask() == expected
        finally:
            node.terminate()
            node.wait(30)
    up.stop()
