"""Listening and stopping."""

import threading
from dataclasses import replace

import httpx
import pytest

from starai.core.errors import ConfigurationRefused
from starai.gateway.service import is_loopback, listen
from starai.testing.gateways import MOCK_GATEWAY, gateway_in_thread
from starai.testing.tasks import ScriptedTasks, says

STREAM = {
    "model": "mock",
    "messages": [{"role": "user", "content": "Hello"}],
    "stream": True,
}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_no_foreign_address_without_keys(host):
    """Without keys the gateway listens to this machine only, and says what to do."""
    with pytest.raises(ConfigurationRefused, match="starai keys create"):
        listen(replace(MOCK_GATEWAY, host=host), keyless=True)


def test_any_address_with_keys():
    """With keys any address of the machine will do."""
    listen(replace(MOCK_GATEWAY, host="0.0.0.0"), keyless=False).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback(host):
    """Loopback has several names."""
    assert is_loopback(host)


def test_a_port_that_is_taken():
    """A second gateway on the same port is told so."""
    first = listen(MOCK_GATEWAY, keyless=True)
    taken = first.getsockname()[1]
    with pytest.raises(ConfigurationRefused, match=f"port {taken}.*another port"):
        listen(replace(MOCK_GATEWAY, port=taken), keyless=True)
    first.close()


@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "k"}])
def test_a_stop_lets_running_answers_end(headers):
    """A gateway that is stopped finishes its streams, and takes no new connection."""
    tasks = ScriptedTasks(says("x" * 10, delay_s=0.05))
    texts, begun, refused = [], threading.Event(), []

    def read(url):
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=STREAM, headers=headers
        ) as response:
            for line in response.iter_lines():
                texts.append(line)
                begun.set()

    def stopped(_):
        reader.join(timeout=5)
        try:
            httpx.get(f"{url}/healthz")
        except httpx.TransportError as error:
            refused.append(error)

    with gateway_in_thread(tasks, on_stop=stopped) as url:
        reader = threading.Thread(target=read, args=(url,))
        reader.start()
        assert begun.wait(5)
    assert "data: [DONE]" in texts
    assert len(refused) == 1
    assert len(tasks.finished) == 1


def test_a_stop_ends_in_time():
    """An answer that goes on beyond the grace is cancelled."""
    tasks = ScriptedTasks(says("xy", stalls_at=1))
    with httpx.Client(timeout=10) as client:
        with gateway_in_thread(tasks) as url:
            request = client.build_request("POST", f"{url}/v1/chat/completions", json=STREAM)
            response = client.send(request, stream=True)
            lines = response.iter_lines()
            next(lines)
        with pytest.raises(httpx.TransportError):
            list(lines)
        response.close()
    assert len(tasks.cancelled) == 1
