"""A whole network whose registry keeps its books in PostgreSQL."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up


def _matched(up: Up, within_s: float = 30.0) -> dict[str, Any]:
    limit = time.monotonic() + within_s
    while time.monotonic() < limit:
        totals: dict[str, Any] = json.loads(up.starai("ledger", "show", "--json"))["totals"]
        if totals["matched"]:
            return totals
        time.sleep(0.2)
    raise AssertionError("the task was not confirmed by both sides")


def test_a_network_keeps_its_books_in_postgres(
    postgres_url: str, start_up: Callable[..., Up], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task served is in the server's tables, nothing in the home folder; a restart finds it."""
    monkeypatch.setenv("STARAI_REGISTRY_STORE", postgres_url)
    up = start_up("--model", "mock")
    answer = up.openai().completions.create(model="mock", prompt="hello", max_tokens=4)
    assert answer.choices[0].text
    assert _matched(up)["records"] == 1
    assert up.stop() == 0
    up.start()
    assert _matched(up)["records"] == 1
    up.stop()
    assert not (up.home / "registry.db").exists()
