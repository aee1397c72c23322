"""HTTP/1.1 as bytes on a real port: what general clients never send, and some do."""

import json
import socket
import ssl
import subprocess
import time
from dataclasses import replace

import httpx
import pytest

from starai.core.errors import ConfigurationRefused
from starai.gateway.web import connections
from starai.testing.gateways import MOCK_GATEWAY, gateway_in_thread
from starai.testing.tasks import ScriptedTasks, says

CHAT = "/v1/chat/completions"
HELLO = {"model": "mock", "messages": [{"role": "user", "content": "Hello"}]}
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def line(served):
    """A connection to the gateway."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        yield sock


def post(body, key, *, version="1.1", headers="", length=None):
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/{version}\r\nhost: x\r\nauthorization: Bearer {key}\r\n{headers}"
    return f"{head}content-length: {length or len(data)}\r\n\r\n".encode() + data


def until(sock, mark, times=1):
    """What comes until ``mark`` has come so often."""
    data = b""
    while data.count(mark) < times:
        got = sock.recv(65536)
        assert got, data
        data += got
    return data


def rest(sock):
    """What comes until the connection is closed."""
    data = b""
    while got := sock.recv(65536):
        data += got
    return data


@pytest.mark.parametrize("pause", [0, 0.02])
def test_requests_in_a_pipe_are_answered_in_order(line, key, pause):
    """A second request that was sent too early waits for its turn, also with half a body."""
    request = post(HELLO, key)
    line.sendall(HEALTH + request + request[:-7])
    time.sleep(pause)
    line.sendall(request[-7:] + HEALTH)
    data = until(line, b'{"status":"ok"}', 2)
    order = [word for word in data.split(b"\r\n") if word.startswith(b"{")]
    assert [b"chatcmpl" in word for word in order] == [False, True, True, False]


def test_a_stream_for_http_1_0_ends_with_the_connection(line, key):
    """Who speaks HTTP/1.0 gets no chunked coding, and the connection is closed."""
    line.sendall(post({**HELLO, "stream": True}, key, version="1.0"))
    head, _, body = rest(line).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


def test_connection_close_is_kept(line, key):
    """A client that wants the connection closed gets it closed, after a whole chunked stream."""
    line.sendall(post({**HELLO, "stream": True}, key, headers="connection: close\r\n"))
    answer = rest(line)
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_expect_continue(line, key):
    """A client that asks before it sends its body is told to go on."""
    request = post(HELLO, key, headers="expect: 100-continue\r\n")
    head, _, body = request.partition(b"\r\n\r\n")
    line.sendall(head + b"\r\n\r\n")
    assert until(line, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    line.sendall(body)
    assert until(line, b"chatcmpl").startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_refusal_before_the_body_keeps_the_connection(line):
    """A wrong key is told at once; the body behind it is read past, and the line stays open."""
    request = post(HELLO, "sk-wrong")
    line.sendall(request[:-9])
    assert until(line, b"Incorrect API key").startswith(b"HTTP/1.1 401")
    line.sendall(request[-9:] + HEALTH)
    assert b'{"status":"ok"}' in until(line, b"ok")


def test_an_offer_to_upgrade_is_not_taken(line):
    """A client that would rather speak another protocol is answered in this one."""
    line.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
    assert rest(line).startswith(b"HTTP/1.1 200 OK")


def test_rubbish_is_refused(line):
    """What is no HTTP is told so and hung up on."""
    line.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    assert rest(line).startswith(b"HTTP/1.1 400")


def test_rubbish_behind_a_request_does_not_spoil_its_answer(line, key, served):
    """An answer in progress is written to its end before the connection is closed."""
    served.tasks.script = says("ab", delay_s=0.1)
    line.sendall(post(HELLO, key) + b"\x00\x00\r\n\r\n")
    answer = rest(line)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b"}")


def test_an_idle_connection_is_closed(monkeypatch):
    """A connection without a request does not stay for ever."""
    monkeypatch.setattr(connections, "_KEEP_ALIVE_S", 0.1)
    with gateway_in_thread(ScriptedTasks()) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as sock:
            sock.sendall(HEALTH)
            until(sock, b"ok")
            assert sock.recv(1) == b""


def test_too_many_connections(monkeypatch):
    """Beyond the bound connections are refused, and served again when there is room."""
    monkeypatch.setattr("starai.gateway.service._IDLE_CONNECTIONS_MAX", 0)
    config = replace(MOCK_GATEWAY, concurrent_requests_max=1)
    with gateway_in_thread(ScriptedTasks(), config=config) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as first:
            first.sendall(HEALTH)
            until(first, b"ok")
            with socket.create_connection((host, int(port)), timeout=5) as second:
                assert rest(second).startswith(b"HTTP/1.1 503")
        time.sleep(0.05)
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_slow_reader_makes_the_answer_wait(line, key, served):
    """What a client does not take is not piled up: its task waits, and goes on when it reads."""
    text = "x" * 2000
    served.tasks.script = says(text)
    # Of the 12 MB of this answer the kernel takes a few in its own buffers.
    wanted = {"n": 4, "top_logprobs": 20, "logprobs": True, "max_tokens": 2001, "stream": True}
    line.sendall(post({**HELLO, **wanted}, key))
    time.sleep(1)
    assert served.tasks.running > 0
    tail = b""
    while not tail.endswith(b"[DONE]\n\n\r\n0\r\n\r\n"):
        got = line.recv(1 << 20)
        assert got
        tail = (tail + got)[-40:]
    assert len(served.tasks.finished) == 4


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for this machine, signed by itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, private = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-keyout", private, "-out", cert, "-days", "1", "-nodes", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, private


def test_tls(certificate):
    """With a certificate the gateway speaks TLS, streams included, and its address says so."""
    cert, private = certificate
    config = replace(MOCK_GATEWAY, tls_cert=cert, tls_key=private)
    with gateway_in_thread(ScriptedTasks(), config=config) as url:
        assert url.startswith("https://")
        with httpx.Client(verify=ssl.create_default_context(cafile=cert), base_url=url) as client:
            assert client.post(CHAT, json=HELLO).status_code == 200
            stream = client.post(CHAT, json={**HELLO, "stream": True})
            assert stream.text.endswith("data: [DONE]\n\n")


def test_a_certificate_that_is_none(certificate, tmp_path):
    """A file that is no certificate is refused at the start, by name."""
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("hello")
    config = replace(MOCK_GATEWAY, tls_cert=wrong, tls_key=certificate[1])
    with (
        pytest.raises(ConfigurationRefused, match=r"wrong\.pem"),
        gateway_in_thread(ScriptedTasks(), config=config),
    ):
        pass
