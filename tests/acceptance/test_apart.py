"""Devices in networks of their own, behind routers that translate addresses, join and serve."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.namespaces import HUB_ADDRESS, Internet, internet, possible

from starai.local.home import Home
from starai.protocol.identity import Identity

pytestmark = [
    pytest.mark.skipif(
        not possible(), reason="needs root, iproute2 and nftables to make networks that are apart"
    ),
    pytest.mark.slow,
    pytest.mark.timeout(180),
]
STARAI = (sys.executable, "-m", "starai.cli")
TLS_PORT, WEBSOCKET_PORT = 4443, 443


class Apart:
    """A network at the hub, and what runs elsewhere."""

    def __init__(self, net: Internet, folder: Path) -> None:
        self.net, self.folder, self.home = net, folder, folder / "hub"
        self._running: list[subprocess.Popen[str]] = []

    def start(self, where: str, last: str, *words: str) -> list[str]:
        """Run a `starai` command on in a namespace; its lines up to the one that has ``last``."""
        process = subprocess.Popen(
            self.net.inside(where, *STARAI, *words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._running.append(process)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if last in line:
                return lines
        raise AssertionError("".join(lines))

    def ask(self, where: str, *words: str, wrap: tuple[str, ...] = ()) -> tuple[int, str]:
        """Status and output of a `starai` command in a namespace."""
        done = subprocess.run(
            self.net.inside(where, *wrap, *STARAI, *words),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def hub(self, *words: str) -> str:
        """What the operator's command prints."""
        status, said = self.ask("hub", *words, "--home", str(self.home))
        assert status == 0, said
        return said.strip()

    def join(self, number: int, token: str, *more: str) -> list[str]:
        """Let a device join; its stages."""
        home = ("--home", str(self.folder / f"device{number}"))
        mine = ("--model", "mock", "--no-polite", "--label", f"home-{number}")
        return self.start(f"device{number}", "serving", "join", token, *mine, *home, *more)

    def key(self, number: int) -> str:
        """A device's public key."""
        return Identity.from_seed(Home(self.folder / f"device{number}").party("node").seed).party

    def wait_for_record(self, node: str) -> None:
        """Wait until the registry has a task that this node, and a distributor, say it served."""
        limit = time.monotonic() + 20
        while True:
            tasks = json.loads(self.hub("tasks", "--json"))["tasks"]
            if any(node in str(task) and task["state"] == "matched" for task in tasks):
                return
            assert time.monotonic() < limit, tasks
            time.sleep(0.5)

    def refused(self, token: str, wrap: tuple[str, ...] = (), device: int = 1) -> str:
        """What a join that fails says."""
        home = ("--home", str(self.folder / f"refused-{os.urandom(4).hex()}"))
        words = ("join", token, "--model", "mock", *home)
        status, said = self.ask(f"device{device}", *words, wrap=wrap)
        assert status == 1, said
        return said

    def stop(self) -> None:
        """End what runs, the last started first."""
        for process in reversed(self._running):
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        self._running.clear()


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    """A network at the hub whose own node is drained: what is answered, devices answer."""
    with internet() as net:
        made = Apart(net, tmp_path_factory.mktemp("apart"))
        doors = (
            "--public",
            f"{HUB_ADDRESS}:{TLS_PORT}",
            "--public-websocket-port",
            str(WEBSOCKET_PORT),
        )
        home = ("--home", str(made.home), "--model", "mock", "--json")
        try:
            made.start("hub", '"url"', "up", *home, *doors)
            made.hub("node", "drain", "node-1")
            yield made
        finally:
            made.stop()


def test_two_devices_behind_nat_join_and_serve(apart: Apart) -> None:
    """One by TLS, one by WebSocket because its router blocks the other port; each serves."""
    status, _ = apart.ask("hub", "doctor", "nats://192.168.50.2")
    assert status == 1  # the hub knows no way to a device
    token = apart.hub("tokens", "create", "--uses", "2")
    apart.net.block(2, TLS_PORT)
    first, second = apart.join(1, token), apart.join(2, token)
    for lines in (first, second):
        stages = [line.split()[2] for line in lines]  # measuring goes on beside the network's part
        assert sorted(stages) == ["admitted", "connecting", "loading", "measuring", "serving"]
        assert stages[-1] == "serving"
    keys = [apart.key(number) for number in (1, 2)]
    for mine, other in (keys, keys[::-1]):
        apart.hub("node", "drain", other)
        assert apart.hub("chat", "Hello")
        apart.hub("node", "resume", other)
        apart.wait_for_record(mine)
    apart.net.unblock(2)


def test_a_blocked_port_is_told(apart: Apart) -> None:
    """Both doors swallowed by a firewall: TCP is named, and what usually helps."""
    token = apart.hub("tokens", "create")
    apart.net.block(1, TLS_PORT, WEBSOCKET_PORT)
    said = apart.refused(token)
    apart.net.unblock(1)
    assert f"TCP failed: no answer from {HUB_ADDRESS}" in said
    assert "firewall" in said


def test_bad_tokens_and_a_wrong_clock_are_told_apart(apart: Apart) -> None:
    """From behind NAT as from anywhere: wrong, expired, and a clock that is off."""
    token = apart.hub("tokens", "create", "--for", "1s")
    assert "damaged" in apart.refused(token[:-3] + "abc")
    time.sleep(2)  # or a quick device is let in with it
    assert "the token expired at" in apart.refused(token)
    if shutil.which("faketime"):
        good = apart.hub("tokens", "create")
        said = apart.refused(good, wrap=("faketime", "-f", "+40d"))
        assert "clock failed" in said
        assert "ahead of" in said
