"""The application under virtual time: limits a minute, heartbeats, deadlines, idempotency."""

import json
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import httpx
import pytest

from starai.core.clock import AnyioClock
from starai.core.errors import Unavailable
from starai.core.randomness import SeededRandomness
from starai.gateway.app import GatewayApp
from starai.gateway.paying.keys import KeyRing
from starai.gateway.web.incoming import Incoming
from starai.testing.gateways import MOCK_GATEWAY
from starai.testing.tasks import Script, ScriptedTasks, says

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
HELLO = {"model": "mock", "messages": [{"role": "user", "content": "Hello"}]}
STREAM = {**HELLO, "stream": True}


class Collected:
    """An outlet that keeps what it is given."""

    congested = False

    def __init__(self):
        self.status, self.headers, self.body = 0, [], b""

    def begin(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body or b""

    def more(self, data):
        self.body += data

    end = more

    async def drained(self):
        raise AssertionError("nothing is congested")


class InMemory(httpx.AsyncBaseTransport):
    """Carries requests to an application in this very loop."""

    def __init__(self, app):
        self.app = app

    async def handle_async_request(self, request):
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        incoming = Incoming(request.method, request.url.raw_path, headers, 1 << 20)
        incoming.feed(await request.aread())
        incoming.finish()
        outlet = Collected()
        await self.app.answer(incoming, outlet)
        return httpx.Response(outlet.status, headers=outlet.headers, content=outlet.body)


@asynccontextmanager
async def client_of(tasks, keys=None, *, key="sk-one", **changes):
    """A client of an application that runs in this very loop."""
    config = replace(MOCK_GATEWAY, **changes)
    app = GatewayApp(config, tasks, keys, AnyioClock(), SeededRandomness(1))
    async with app.running():
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(
            transport=InMemory(app), base_url="http://localhost", headers=headers, timeout=None
        ) as client:
            client.app = app
            yield client


async def call(app, body, headers=(), leave_after_s=1e9):
    """Call the application as a connection would; the client may leave in between."""
    named = [(name.encode(), value.encode()) for name, value in dict(headers).items()]
    incoming, outlet = Incoming("POST", CHAT.encode(), named, 1 << 20), Collected()
    incoming.feed(json.dumps(body).encode())
    incoming.finish()
    async with anyio.create_task_group() as group:

        async def leave():
            await anyio.sleep(leave_after_s)
            incoming.leave()

        group.start_soon(leave)
        await app.answer(incoming, outlet)
        group.cancel_scope.cancel()
    return outlet


async def test_requests_a_minute(new_entry, new_ring):
    """The limit is told, enforced with 429, and refills with time."""
    keys = new_ring(new_entry("sk-one", rpm=2), new_entry("sk-two", rpm=2))
    async with client_of(ScriptedTasks(), keys) as client:
        first = await client.post(CHAT, json=HELLO)
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        await client.post(CHAT, json=HELLO)
        refused = await client.post(CHAT, json=HELLO)
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert refused.headers["retry-after"] == "30"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        other = await client.post(CHAT, json=HELLO, headers={"authorization": "Bearer sk-two"})
        assert other.status_code == 200
        await anyio.sleep(30)
        assert (await client.post(CHAT, json=HELLO)).status_code == 200


async def test_tokens_a_minute(new_entry, new_ring):
    """Tokens are reserved for the longest answer and corrected by the real one."""
    keys = new_ring(new_entry("sk-one", tpm=200))
    tasks = ScriptedTasks(says("x" * 9, delay_s=1.0))
    async with client_of(tasks, keys) as client, anyio.create_task_group() as group:
        answers = []

        async def ask(max_tokens):
            answers.append(await client.post(CHAT, json={**HELLO, "max_tokens": max_tokens}))

        group.start_soon(ask, 150)
        await anyio.sleep(1)
        refused = await client.post(CHAT, json={**HELLO, "max_tokens": 100})
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")
        await anyio.sleep(20)
        assert answers[0].status_code == 200
        assert (await client.post(CHAT, json={**HELLO, "max_tokens": 150})).status_code == 200
        too_large = await client.post(CHAT, json={**HELLO, "max_tokens": 500})
        assert too_large.headers["x-should-retry"] == "false"


async def test_unstated_length_fits_the_limit(new_entry, new_ring):
    """A key with a small limit may leave the length open: it gets what its limit allows."""
    tasks = ScriptedTasks()
    async with client_of(tasks, new_ring(new_entry("sk-one", tpm=100))) as client:
        assert (await client.post(CHAT, json={**HELLO, "n": 2})).status_code == 200
    generation = tasks.submissions[0].generation
    assert generation.max_tokens == (100 - len(generation.prompt) // 4) // 2


async def test_a_task_that_never_began_costs_nothing(new_entry, new_ring):
    """Tokens of a request that no node took up are given back."""
    tasks = ScriptedTasks(Script(fails_at=-1, error=Unavailable("none")))
    async with client_of(tasks, new_ring(new_entry("sk-one", tpm=100))) as client:
        for _ in range(3):
            answer = await client.post(CHAT, json={**HELLO, "max_tokens": 90})
            assert answer.status_code == 503
            assert answer.headers["x-ratelimit-remaining-tokens"] == "100"


async def test_heartbeats_in_silence():
    """A stream says a comment every ten seconds in which nothing else comes."""
    tasks = ScriptedTasks(says("ab", first_delay_s=35, delay_s=24))
    async with client_of(tasks) as client:
        body = (await client.post(CHAT, json=STREAM)).text
    before, after = body.split('"content":"a"')
    assert before.count(": still working") == 3
    assert after.count(": still working") == 4
    assert body.endswith("data: [DONE]\n\n")


async def test_no_heartbeat_in_a_whole_answer():
    """An answer that is no stream stays silent until it is complete."""
    async with client_of(ScriptedTasks(says("ab", first_delay_s=35))) as client:
        assert (await client.post(CHAT, json=HELLO)).json()["object"] == "chat.completion"


@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "k"}])
@pytest.mark.parametrize("body", [HELLO, STREAM])
async def test_deadline(body, headers):
    """A request that does not finish in time ends with an error, and its task is cancelled."""
    tasks = ScriptedTasks(says("abc", stalls_at=1))
    async with client_of(tasks, request_deadline_s=60.0) as client:
        answer = await client.post(CHAT, json=body, headers=headers)
        assert (await client.get("/healthz")).status_code == 200
    assert "deadline_exceeded" in answer.text
    assert answer.status_code == (200 if body is STREAM else 504)
    assert len(tasks.cancelled) == 1
    assert anyio.current_time() == pytest.approx(60, abs=1)


async def test_concurrent_requests_are_bounded():
    """Beyond the bound requests are answered 429 with a time to wait."""
    tasks = ScriptedTasks(says("a", first_delay_s=5))
    async with (
        client_of(tasks, concurrent_requests_max=2) as client,
        anyio.create_task_group() as group,
    ):
        for _ in range(2):
            group.start_soon(lambda: client.post(CHAT, json=HELLO))
        await anyio.sleep(1)
        refused = await client.post(CHAT, json=HELLO)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert refused.headers["retry-after"] == "1"
    assert client.app.metrics.in_flight == 0


@pytest.mark.parametrize("body", [HELLO, STREAM])
async def test_the_same_key_gives_the_same_answer(body):
    """With an idempotency key, a second request replays the first and makes no task."""
    tasks = ScriptedTasks()
    async with client_of(tasks) as client:
        headers = {"idempotency-key": "k"}
        first = await client.post(CHAT, json=body, headers=headers)
        second = await client.post(CHAT, json=body, headers=headers)
        assert (first.status_code, first.content) == (second.status_code, second.content)
        assert "idempotent-replayed" not in first.headers
        assert second.headers["idempotent-replayed"] == "true"
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
        assert second.headers["content-type"] == first.headers["content-type"]
        assert len(tasks.submissions) == 1
        await anyio.sleep(601)
        await client.post(CHAT, json=body, headers=headers)
        assert len(tasks.submissions) == 2


async def test_the_same_key_for_another_request():
    """An idempotency key belongs to one request: another body is refused with 409, for good."""
    async with client_of(ScriptedTasks()) as client:
        headers = {"idempotency-key": "k"}
        await client.post(CHAT, json=HELLO, headers=headers)
        refused = await client.post(CHAT, json={**HELLO, "n": 2}, headers=headers)
        assert refused.status_code == 409
        assert refused.headers["x-should-retry"] == "false"


async def test_idempotency_is_per_api_key(new_entry, new_ring):
    """Two customers may use the same idempotency key without meeting."""
    tasks = ScriptedTasks()
    async with client_of(tasks, new_ring(new_entry("sk-one"), new_entry("sk-two"))) as client:
        for key in ("sk-one", "sk-two"):
            headers = {"idempotency-key": "k", "authorization": f"Bearer {key}"}
            answer = await client.post(CHAT, json=HELLO, headers=headers)
            assert "idempotent-replayed" not in answer.headers
    assert len(tasks.submissions) == 2


async def test_a_second_request_waits_for_the_first():
    """While the first is answered, a second with its key gets the same stream as it comes."""
    tasks = ScriptedTasks(says("abc", delay_s=1.0))
    async with client_of(tasks) as client, anyio.create_task_group() as group:
        answers = []

        async def ask(delay_s):
            await anyio.sleep(delay_s)
            answers.append(await client.post(CHAT, json=STREAM, headers={"idempotency-key": "k"}))

        group.start_soon(ask, 0)
        group.start_soon(ask, 1.5)
    assert answers[0].content == answers[1].content
    assert len(tasks.submissions) == 1
    assert anyio.current_time() < 4


async def test_the_work_outlives_the_first_but_not_the_last():
    """The first client may leave while another waits; when the last leaves, the work ends."""
    tasks = ScriptedTasks(says("abc", delay_s=5.0))
    headers = {"idempotency-key": "k", "host": "localhost"}
    async with client_of(tasks) as client:
        app = client.app
        async with anyio.create_task_group() as group:
            group.start_soon(call, app, HELLO, headers, 1.0)
            await anyio.sleep(0.5)
            sent = await call(app, HELLO, headers)
        assert sent.status == 200
        assert tasks.finished
        assert not tasks.cancelled
        headers["idempotency-key"] = "other"
        async with anyio.create_task_group() as group:
            group.start_soon(call, app, HELLO, headers, 1.0)
            group.start_soon(call, app, HELLO, headers, 2.0)
        await anyio.sleep(0.1)
        assert len(tasks.cancelled) == 1
        again = await call(app, HELLO, headers)
        assert again.status == 200
        assert len(tasks.submissions) == 3


@pytest.mark.parametrize("body", [HELLO, STREAM])
async def test_failures_are_not_kept(body):
    """What failed, also in the middle of a stream, can be tried again with its key."""
    scripts = iter([says("ab", fails_at=1, error=Unavailable("x")), says("ab")])
    tasks = ScriptedTasks(lambda _: next(scripts))
    async with client_of(tasks) as client:
        headers = {"idempotency-key": "k"}
        assert "service_unavailable" in (await client.post(CHAT, json=body, headers=headers)).text
        again = await client.post(CHAT, json=body, headers=headers)
        assert again.status_code == 200
        assert "service_unavailable" not in again.text


async def test_kept_answers_are_bounded():
    """The oldest answers leave when the memory for them is full; a longer one is refused."""
    tasks = ScriptedTasks(says("x" * 1000))
    async with client_of(tasks, idempotency_bytes_max=5000) as client:
        for name in "abcdefgh":
            await client.post(CHAT, json=HELLO, headers={"idempotency-key": name})
        assert len(client.app._recordings) < 5
        answer = await client.post(CHAT, json=STREAM, headers={"idempotency-key": "long"})
        assert "too long to be kept" in answer.text
        refused = await client.post(CHAT, json=HELLO, headers={"idempotency-key": "x" * 300})
        assert refused.status_code == 400


async def test_a_hang_up_is_counted():
    """A client that leaves is no answered request."""
    tasks = ScriptedTasks(says("abc", delay_s=5.0))
    async with client_of(tasks) as client:
        sent = await call(client.app, HELLO, {"host": "localhost"}, 1.0)
        assert sent.status == 0
        assert len(tasks.cancelled) == 1
        text = client.app.metrics.text().decode()
    assert "starai_gateway_hang_ups_total 1" in text
    assert 'status="499"} 1' in text


async def test_the_keys_are_still_on_their_way():
    """Before the first table of keys has come, requests are told to try again."""
    async with client_of(ScriptedTasks(), KeyRing()) as client:
        assert (await client.post(CHAT, json=HELLO)).status_code == 503
        assert (await client.get("/readyz")).json() == {"status": "waiting for API keys"}
