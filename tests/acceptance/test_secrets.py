"""A canary in a prompt and an API key: neither is in any log, any database, or on the NATS wire."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest

from starai.core.clock import SystemClock
from starai.core.randomness import SystemRandomness
from starai.models.catalog import open_model
from starai.models.codec import open_codec
from starai.protocol import tokens
from starai.protocol.api_keys import KEY_PREFIX
from starai.protocol.credentials import sign_claims
from starai.protocol.identity import Identity
from starai.protocol.ports import Delivery
from starai.wire.dialing import NatsSettings
from starai.wire.keeping import load_or_create_authority
from starai.wire.nats import connect_nats

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up

CANARY = "xylophone quagmire zeppelin 731"
#: Where the client's own copy of its key is meant to be, for its owner only.
ALLOWED = ("client.json",)


@contextmanager
def listening_to_everything(up: Up) -> Iterator[list[bytes]]:
    """All NATS messages of a network, heard with a credential that only its own keys can make."""
    heard: list[bytes] = []
    ready, stop = Event(), Event()

    async def listen() -> None:
        authority = load_or_create_authority(up.home / "authority", SystemRandomness())
        spy, now_s = Identity.create(SystemRandomness()), SystemClock().now_ms() // 1000
        everything = {"allow": [">"]}
        grant = {"pub": everything, "sub": everything, "type": "user", "version": 2, "subs": -1}
        claims: dict[str, object] = {
            "sub": spy.nkey,
            "iss": authority.account.nkey,
            "name": "spy",
            "iat": now_s,
            "exp": now_s + 600,
            "nats": {**grant, "data": -1, "payload": -1},
        }
        credential = sign_claims(authority.account, claims)
        settings = NatsSettings((f"nats://127.0.0.1:{up.nats_port}",), spy, lambda: credential)

        def hear(delivery: Delivery) -> None:
            heard.append(delivery.subject.encode() + b" " + delivery.payload)

        async with connect_nats(settings) as wire, wire.subscribe(">", hear):
            ready.set()
            while not stop.is_set():
                await anyio.sleep(0.05)

    thread = Thread(target=anyio.run, args=(listen,))
    thread.start()
    assert ready.wait(20)
    try:
        yield heard
    finally:
        time.sleep(3)  # the confirmations of the last block
        stop.set()
        thread.join()


def needles(key: str) -> dict[str, bytes]:
    """What must not be found: the prompt as text, as JSON numbers and as packed ids; the key."""
    ids = open_codec(open_model("embedded")).encode(CANARY)[1:-1]
    assert len(ids) > 4
    return {
        "prompt": CANARY.encode(),
        "a word of it": b"quagmire",
        "its token ids": tokens.pack(ids),
        "its token ids in JSON": json.dumps(ids)[1:-1].encode(),
        "the key": key.encode(),
        "the key's secret": key.removeprefix(KEY_PREFIX).encode()[-20:],
    }


@pytest.mark.timeout(240)
def test_no_prompt_and_no_key_is_left_anywhere(start_up: Callable[..., Up]) -> None:
    """Chats, failures and key creation leave nothing to be found."""
    up = start_up("--threads", "1")
    with listening_to_everything(up) as heard:
        other_key = up.starai("keys", "create", "canary").strip()
        for key, stream in ((up.api_key, True), (other_key, False), (other_key + "x", False)):
            body = {
                "model": "starai-tiny",
                "messages": [{"role": "user", "content": f"Say {CANARY}"}],
                "max_tokens": 30,
                "stream": stream,
                "user": CANARY,
            }
            httpx.post(
                f"{up.url}/v1/chat/completions",
                json=body,
                headers={"Authorization": f"Bearer {key}", "Idempotency-Key": CANARY},
                timeout=60,
                trust_env=False,
            )
        bad = {"model": CANARY, "messages": CANARY, CANARY: CANARY}
        httpx.post(f"{up.url}/v1/chat/completions", json=bad, headers=up.headers, trust_env=False)
        up.starai("chat", CANARY, "--max-tokens", "5")
    assert any(message.startswith(b"starai.offer.node.") for message in heard)
    assert any(message.startswith(b"starai.registry.confirm.") for message in heard)
    for key in (up.api_key, other_key):
        for what, needle in needles(key).items():
            on_wire = [message[:60] for message in heard if needle in message]
            assert not on_wire, f"{what} is on the wire: {on_wire}"
            in_files = [str(path) for path in files_of(up.home) if needle in path.read_bytes()]
            assert not in_files, f"{what} is in {in_files}"
    # The search can find something: what may be known is there.
    assert any(b"starai-tiny" in message for message in heard)
    assert any(b"canary" in path.read_bytes() for path in files_of(up.home))
    up.stop()


def files_of(home: Path) -> list[Path]:
    """Every file of the home folder: logs, databases and their journals, NATS' own files."""
    return [path for path in home.rglob("*") if path.is_file() and path.name not in ALLOWED]
