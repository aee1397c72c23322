"""A polite node on a device whose owner is at work, with real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up


@pytest.mark.slow  # it keeps every core busy for some seconds
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_node_gives_way_to_its_owners_programs(start_up: Callable[..., Up]) -> None:
    """Its engine runs at idle priority; beside programs that spin it says why it takes nothing."""
    up = start_up("--model", "mock")
    token = up.starai("tokens", "create").strip()
    home = up.home / "device"
    node = up.spawn(
        *("node", "start", "--model", "mock", "--label", "polite"),
        home=home,
        env={**os.environ, "STARAI_TOKEN": token, "STARAI_POLITE": "1"},
    )
    spinners: list[subprocess.Popen[bytes]] = []
    try:
        up.wait_for_nodes(2)
        children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
        assert [os.sched_getscheduler(int(pid)) for pid in children] == [os.SCHED_IDLE]
        spinners += [
            subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for _ in range(os.cpu_count() or 1)
        ]
        limit = time.monotonic() + 20
        states: set[str] = set()
        while "owner's work" not in states:
            assert time.monotonic() < limit, states
            nodes = json.loads(up.starai("nodes", "--json"))
            states |= {str(one["paused"]) for one in nodes if one["label"] == "polite"}
        for spinner in spinners:
            spinner.kill()
        # The other node of this network is not polite, and answers.
        with up.openai() as client:
            answer = client.completions.create(model="mock", prompt="Hi", max_tokens=3)
        assert answer.choices[0].text
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
        node.terminate()
        node.wait(30)
    up.stop()
