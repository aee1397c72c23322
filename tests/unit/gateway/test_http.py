"""HTTP's corners on a real port: hang-ups, bodies, methods, headers, pages of other origins."""

import json
import logging
import socket
import time
from dataclasses import replace

import httpx
import pytest

from starai.core.errors import Unavailable
from starai.gateway.web import connections
from starai.testing.gateways import MOCK_GATEWAY, gateway_in_thread
from starai.testing.tasks import ScriptedTasks, says

CHAT = "/v1/chat/completions"
HELLO = {"model": "mock", "messages": [{"role": "user", "content": "Hello"}]}


def eventually(condition, within_s=1.0):
    """Whether ``condition`` comes true within the time that is promised."""
    ends = time.monotonic() + within_s
    while time.monotonic() < ends:
        if condition():
            return True
        time.sleep(0.01)
    return False


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=5)


def raw(url, key, body, path=CHAT, headers=""):
    """Send a request by hand; returns the open socket."""
    sock = connect(url)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{headers}"
    sock.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    return sock


@pytest.mark.parametrize("stream", [False, True])
def test_a_hang_up_cancels_the_work(served, key, stream):
    """A client that closes its connection, before or while it is answered, ends its task."""
    served.tasks.script = says("x" * 1000, delay_s=0.02)
    sock = raw(served.url, key, {**HELLO, "stream": stream})
    assert eventually(lambda: served.tasks.running == 1)
    if stream:
        assert b"200 OK" in sock.recv(4096)
    sock.close()
    assert eventually(lambda: len(served.tasks.cancelled) == 1)


def test_a_hang_up_in_a_silent_task(served, key):
    """A client that leaves while its task says nothing ends it too."""
    served.tasks.script = says("x", stalls_at=0)
    sock = raw(served.url, key, {**HELLO, "n": 2})
    assert eventually(lambda: served.tasks.running == 2)
    sock.close()
    assert eventually(lambda: len(served.tasks.cancelled) == 2)


def test_a_reset_in_the_middle_of_the_body(served, key):
    """A client that leaves before its request is complete starts nothing and harms nobody."""
    sock = raw(served.url, key, b"x", headers="x-pad: 1\r\n")
    sock.close()
    half = connect(served.url)
    head = f"POST {CHAT} HTTP/1.1\r\nauthorization: Bearer {key}\r\ncontent-length: 99\r\n\r\n"
    half.sendall(head.encode() + b"{")
    half.close()
    assert httpx.get(f"{served.url}/healthz").status_code == 200
    assert served.tasks.submissions == []


def test_stream_on_the_wire(http):
    """Server-sent events: one line each, the right type, [DONE] at the end."""
    with http.stream("POST", CHAT, json={**HELLO, "stream": True}) as response:
        body = response.read().decode()
    assert response.headers["content-type"].startswith("text/event-stream")
    events = body.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for line in events[:-2]:
        assert json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk"


def test_every_answer_has_an_id_and_a_time(http):
    """``x-request-id`` and ``openai-processing-ms`` come with answers and errors alike."""
    answers = [http.post(CHAT, json=HELLO), http.get("/nowhere"), http.get("/v1/models")]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 3
    assert all(answer.headers["openai-processing-ms"].isdigit() for answer in answers)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/images/generations", 404),
        ("GET", "/v1/embeddings", 405),
        ("GET", "/", 404),
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/models/" + "x" * 5000, 414),
        ("HEAD", "/healthz", 200),
    ],
)
def test_routes_and_methods(http, method, path, status):
    """Wrong methods, addresses and lengths have their own status and OpenAI's body."""
    response = http.request(method, path)
    assert response.status_code == status
    if status >= 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"


def test_malformed_bodies(http):
    """A body that is no JSON is refused with the place; its content type does not matter."""
    response = http.post(CHAT, content=b'{"model": "mock",}')
    assert response.status_code == 400
    assert "byte 17" in response.json()["error"]["message"]
    fine = http.post(CHAT, content=json.dumps(HELLO), headers={"content-type": "text/plain"})
    assert fine.status_code == 200


def test_compressed_bodies(http):
    """Compressed bodies are refused by name."""
    response = http.post(CHAT, content=b"x", headers={"content-encoding": "gzip"})
    assert response.status_code == 415


def test_too_large_bodies(http, served, key):
    """A body over the limit is refused, announced or not."""
    assert http.post(CHAT, content=b"x" * (5 << 20)).status_code == 413
    sock = connect(served.url)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    sock.sendall(head.encode())
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    answer = b""
    try:
        for _ in range(100):
            sock.sendall(chunk)
    except OSError:
        pass
    sock.settimeout(2)
    try:
        answer = sock.recv(65536)
    except OSError:
        answer = b"HTTP/1.1 413"  # the reset overtook the answer, as TCP allows
    sock.close()
    assert answer.startswith(b"HTTP/1.1 413")


def test_too_large_heads(http, served):
    """Headers are bounded, complete or not."""
    assert http.get("/healthz").status_code == 200
    assert http.post(CHAT, json=HELLO, headers={"x-pad": "y" * 40_000}).status_code == 431
    sock = connect(served.url)
    try:
        sock.sendall(b"GET / HTTP/1.1\r\nx-pad: ")
        for _ in range(40):
            sock.sendall(b"y" * 4096)
        assert sock.recv(100).startswith(b"HTTP/1.1 400")
    except OSError:
        pass  # refused even harder
    finally:
        sock.close()


@pytest.mark.parametrize("first", [b"", b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"])
def test_slow_heads(monkeypatch, first):
    """A connection whose request's head does not arrive is closed, also after a good request."""
    monkeypatch.setattr(connections, "_HEAD_DEADLINE_S", 0.1)
    with gateway_in_thread(ScriptedTasks()) as url:
        sock = connect(url)
        if first:
            sock.sendall(first)
            answer = b""
            while b'"ok"' not in answer:
                answer += sock.recv(4096)
        sock.sendall(b"GET /healthz HT")
        assert sock.recv(4096) == b""
        sock.close()


def test_slow_bodies():
    """A body that does not arrive in time is refused with 408."""
    config = replace(MOCK_GATEWAY, body_deadline_s=0.2)
    with gateway_in_thread(ScriptedTasks(), config=config) as url:
        sock = connect(url)
        sock.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{{".encode()
        )
        assert sock.recv(4096).startswith(b"HTTP/1.1 408")
        sock.close()


def test_cross_origin(http):
    """With keys, a page of any origin may call and read the answer and its headers."""
    asked = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    preflight = http.options(CHAT, headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
    answer = http.post(CHAT, json=HELLO, headers={"origin": "https://app.example"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]


def test_without_keys_only_this_machine():
    """Without keys, foreign pages and foreign names for this machine are refused."""
    with gateway_in_thread(ScriptedTasks()) as url, httpx.Client(base_url=url) as client:
        assert client.post(CHAT, json=HELLO).status_code == 200
        page = client.post(CHAT, json=HELLO, headers={"origin": "https://evil.example"})
        assert page.status_code == 403
        assert "access-control-allow-origin" not in page.headers
        assert client.post(CHAT, json=HELLO, headers={"host": "evil.example"}).status_code == 403
        own = client.post(CHAT, json=HELLO, headers={"origin": "http://localhost:3000"})
        assert own.headers["access-control-allow-origin"] == "http://localhost:3000"


def test_health_readiness_and_metrics(http, served):
    """The gateway tells that it lives, whether it can serve, and what it counted."""
    assert httpx.get(f"{served.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{served.url}/readyz").status_code == 200
    offers, served.tasks.served = served.tasks.served, ()
    assert httpx.get(f"{served.url}/readyz").status_code == 503
    served.tasks.served = offers
    http.post(CHAT, json=HELLO)
    text = httpx.get(f"{served.url}/metrics").text
    assert 'starai_gateway_requests_total{route="chat",status="200"}' in text
    assert 'starai_gateway_tokens_total{kind="completion"}' in text
    assert "starai_gateway_in_flight 0" in text
    assert 'starai_gateway_request_seconds_bucket{route="chat",le="+Inf"}' in text
    assert "starai_gateway_hang_ups_total" in text


def test_keep_alive_and_pipelining(served, key):
    """Two requests sent at once on one connection are answered in order."""
    request = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n".encode()
    sock = connect(served.url)
    sock.sendall(request * 2)
    data = b""
    while data.count(b'"object":"list"') < 2:
        got = sock.recv(65536)
        assert got
        data += got
    sock.close()


CANARY = "canary-7f3a"


class Broken(ScriptedTasks):
    """A port with a mistake whose message quotes what it was given."""

    def submit(self, submission):
        raise ZeroDivisionError(CANARY)


@pytest.mark.parametrize(
    "tasks",
    [
        ScriptedTasks(says(CANARY)),
        ScriptedTasks(says(CANARY, fails_at=1, error=Unavailable("gone"))),
        Broken(),
    ],
)
def test_nothing_of_a_request_is_logged(tasks, caplog, capfd, new_ring, new_entry):
    """No prompt, answer, key or field of a request reaches a log or the metrics."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("starai").addHandler(caplog.handler)
    with (
        gateway_in_thread(tasks, keys=new_ring(new_entry(f"sk-{CANARY}"))) as url,
        httpx.Client(base_url=url) as client,
    ):
        good = {"authorization": f"Bearer sk-{CANARY}"}
        ask = {"model": "mock", "messages": [{"role": "user", "content": CANARY}]}
        # httpx itself logs the addresses that it calls, so the canary is in none of them.
        for headers in (good, {"authorization": f"Bearer sk-{CANARY}-wrong"}):
            for body in (ask, {**ask, CANARY: 1}, {**ask, "stream": True, "user": CANARY}, CANARY):
                client.post(CHAT, json=body, headers={**headers, "idempotency-key": CANARY})
                client.post(CHAT, json=body, headers=headers)
        metrics = client.get("/metrics").text
    logging.getLogger("starai").removeHandler(caplog.handler)
    out, err = capfd.readouterr()
    assert CANARY not in caplog.text + out + err + metrics
