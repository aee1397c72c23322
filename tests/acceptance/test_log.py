"""The log of a real network: a task is proven from a second terminal, and both sides witness it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up

#: A block is closed every 10 s, and witnesses ask as often; machines that test are slow.
WITNESSED_S = 60.0


def test_a_task_is_proven_and_witnessed(start_up: Callable[..., Up]) -> None:
    """A record of a request is proven in the log, which a node and the gateway have cosigned."""
    up = start_up("--model", "mock", "--nodes", "1")
    up.starai("chat", "Hello", "--max-tokens", "3")
    limit = time.monotonic() + WITNESSED_S
    note = ""
    while not ("/node/" in note and "/gateway/" in note):
        assert time.monotonic() < limit, f"not witnessed by both sides: {note}"
        time.sleep(1)
        try:
            note = json.loads(up.starai("ledger", "checkpoint", "--json"))["note"]
        except AssertionError:  # no block yet
            continue
    (task,) = {one["task_id"] for one in json.loads(up.starai("tasks", "--json"))["tasks"]}
    shown = up.starai("ledger", "proof", task)
    assert f"Task {task} is in the log" in shown
    assert "Witnessed by node" in shown
    assert "Witnessed by gateway" in shown
    size = json.loads(up.starai("ledger", "checkpoint", "--json"))["size"]
    assert "are the same" in up.starai("ledger", "consistency", str(size), str(size))
    checked = json.loads(up.starai("ledger", "check", "--json"))
    assert checked["blocks"] >= 1
    assert checked["problems"] == []
    assert (up.home / "witness" / "gateway.json").exists()
