"""A real gateway over scripted tasks, one a module; each test begins with a clean script."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import httpx
import pytest
import trio.testing

from starai.gateway.paying.keys import KeyRing
from starai.protocol.registry import KeyEntry, KeyTable
from starai.testing.gateways import gateway_in_thread
from starai.testing.tasks import ScriptedTasks, says

KEY = "sk-starai-test-0123456789"


def entry(key: str, *, rpm: int = 0, tpm: int = 0, revoked: bool = False) -> KeyEntry:
    return KeyEntry(hashlib.sha256(key.encode()).digest(), key[-4:], "test", 7, rpm, tpm, revoked)


def ring(*entries: KeyEntry) -> KeyRing:
    keys = KeyRing()
    assert keys.apply(KeyTable(version=1, entries=entries, complete=True))
    return keys


@dataclass
class Served:
    """A gateway that listens, and the tasks behind it."""

    url: str
    tasks: ScriptedTasks
    keys: KeyRing


@pytest.fixture(scope="module")
def _served():
    tasks = ScriptedTasks()
    keys = ring(entry(KEY))
    with gateway_in_thread(tasks, keys=keys) as url:
        yield Served(url, tasks, keys)


@pytest.fixture
def served(_served):
    """A gateway with one key, `KEY`."""
    _served.tasks.script = says("Hello, world!")
    for log in (_served.tasks.submissions, _served.tasks.cancelled, _served.tasks.finished):
        log.clear()
    return _served


@pytest.fixture
def http(served):
    """A plain HTTP client with the key."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=served.url, headers=headers, timeout=10) as client:
        yield client


@pytest.fixture
def anyio_backend():
    """Virtual time: a day passes as soon as everybody waits."""
    return ("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})


@pytest.fixture
def key():
    return KEY


@pytest.fixture
def new_entry():
    return entry


@pytest.fixture
def new_ring():
    return ring
