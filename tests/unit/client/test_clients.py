"""Both clients against a real gateway."""

import hashlib

import httpx
import pytest

from starai.client import AsyncClient, Client
from starai.core.errors import (
    AuthenticationFailed,
    ContextTooLong,
    ModelNotFound,
    Overloaded,
    Unavailable,
    UnsupportedField,
)
from starai.gateway.paying.keys import KeyRing
from starai.protocol.registry import KeyEntry, KeyTable
from starai.testing.gateways import gateway_in_thread
from starai.testing.tasks import Script, ScriptedTasks, says

KEY = "sk-starai-client"


@pytest.fixture(scope="module")
def gateway():
    tasks, keys = ScriptedTasks(), KeyRing()
    entry = KeyEntry(hashlib.sha256(KEY.encode()).digest(), "id", "name", 1, 0, 0)
    keys.apply(KeyTable(version=1, entries=(entry,), complete=True))
    with gateway_in_thread(tasks, keys=keys) as url:
        yield url, tasks


@pytest.fixture
def tasks(gateway):
    tasks = gateway[1]
    tasks.script = says("Hello, world!")
    tasks.submissions.clear()
    tasks.cancelled.clear()
    tasks.finished.clear()
    return tasks


@pytest.fixture
def client(gateway, tasks):
    with Client(gateway[0], KEY) as client:
        yield client


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_models_and_chat(client):
    """The model need not be named: the first one is taken."""
    assert client.models() == ["mock"]
    assert client.chat("Hello") == "Hello, world!"
    assert client.chat([{"role": "user", "content": "Hi"}], model="mock", max_tokens=5) == "Hello"


def test_stream(client):
    """A stream yields the pieces of the text."""
    assert list(client.chat("Hello", stream=True)) == list("Hello, world!")


@pytest.mark.anyio
async def test_async(gateway, tasks):
    """The async client does the same."""
    async with AsyncClient(gateway[0] + "/v1", KEY) as client:
        assert await client.models() == ["mock"]
        assert await client.chat("Hello") == "Hello, world!"
        pieces = [piece async for piece in client.chat("Hello", stream=True)]
        assert pieces == list("Hello, world!")
        with pytest.raises(ModelNotFound):
            await client.chat("x", model="other")


def test_errors_are_ours(client, gateway):
    """The gateway's errors come back as what they were."""
    with pytest.raises(ModelNotFound, match="Available models"):
        client.chat("x", model="other")
    with pytest.raises(UnsupportedField) as caught:
        client.chat("x", verbosity="low")
    assert caught.value.param == "verbosity"
    with pytest.raises(ContextTooLong):
        client.chat("x" * 9000)
    with Client(gateway[0], "sk-wrong") as stranger, pytest.raises(AuthenticationFailed):
        stranger.models()


def test_an_error_in_a_stream(client, tasks):
    """An error in the middle is raised after the text so far."""
    tasks.script = says("abc", fails_at=1, error=Unavailable("gone"))
    pieces = client.chat("x", stream=True)
    assert next(pieces) == "a"
    with pytest.raises(Unavailable, match="gone"):
        next(pieces)


def test_retryable_errors_are_tried_again(client, tasks):
    """A retryable error before the answer is tried again, a bounded number of times."""
    full = Script(fails_at=-1, error=Overloaded("full", retry_after_s=0.01))
    scripts = iter([full, says("fine"), *[full] * 3])
    asked = []
    tasks.script = lambda task: asked.append(task) or next(scripts)
    assert client.chat("x", model="mock") == "fine"
    with pytest.raises(Overloaded):
        client.chat("x", model="mock")
    assert len(asked) == 5


def test_attempts_share_an_idempotency_key(gateway, tasks):
    """A request that is repeated after a broken connection is answered, not done, again."""
    seen = []

    class Flaky(httpx.HTTPTransport):
        def handle_request(self, request):
            response = super().handle_request(request)
            seen.append(request.headers.get("idempotency-key"))
            if len(seen) == 1:
                response.read()
                response.close()
                raise httpx.ReadError("cut", request=request)
            return response

    with Client(gateway[0], KEY, model="mock", transport=Flaky()) as client:
        assert client.chat("x") == "Hello, world!"
    assert seen[0] == seen[1]
    assert len(tasks.submissions) == 1


def test_no_gateway_there():
    """Without a gateway the error says what to do."""
    with Client("http://127.0.0.1:9", KEY) as client, pytest.raises(Unavailable, match="starai up"):
        client.chat("x", model="mock")
