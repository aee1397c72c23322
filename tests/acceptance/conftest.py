"""A real network for tests: `starai up` as a child process, in a home folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import openai
import pytest

from starai.local.asking import LISTEN_S, operator
from starai.local.home import Home
from starai.protocol.subjects import Role

#: Machines that test are busy with other things: nodes must not give way to those.
os.environ["STARAI_POLITE"] = "0"

#: A network on this machine is up in a few seconds; CI machines are slow and shared.
UP_S = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Up:
    """A running `starai up`."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.home = home
        self.arguments = arguments
        self.port, self.nats_port = free_port(), free_port()
        self.start()

    def start(self) -> None:
        """Start it (again, in the same home) and wait until it serves."""
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "starai.cli", "up", "--json", "--home", str(self.home)),
                *("--port", str(self.port), "--nats-port", str(self.nats_port), *self.arguments),
            ],
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        assert self.process.stdout is not None
        with self.process.stdout as facts:
            line = facts.readline()
        assert line, f"starai up ended with {self.process.wait()}; see {self.home}/logs"
        self.facts: dict[str, Any] = json.loads(line)

    @property
    def url(self) -> str:
        return str(self.facts["url"])

    @property
    def api_key(self) -> str:
        return str(self.facts["api_key"])

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=options.pop("api_key", self.api_key),
            max_retries=0,
            timeout=60,
            **options,
        )

    def starai(self, *arguments: str, home: Path | None = None) -> str:
        """What a `starai` command of a second terminal prints."""
        done = subprocess.run(
            [sys.executable, "-m", "starai.cli", *arguments, "--home", str(home or self.home)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def spawn(self, *arguments: str, home: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
        """A `starai` command that goes on running: another device's, in a home of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "starai.cli", *arguments, "--home", str(home)], env=env
        )

    def pid(self, *words: str) -> int:
        """The process of a service of this network by words of its command line; 0: none."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if str(self.home) in " ".join(line) and all(word in line for word in words):
                    return int(folder.name)
        return 0

    def wait_for_nodes(self, number: int, within_s: float = UP_S) -> None:
        """Wait until that many nodes serve a model."""

        async def listen() -> None:
            async with operator(Home(self.home)) as heard:
                with anyio.fail_after(within_s):
                    while sum(bool(beat.models) for beat in heard.beats(Role.NODE)) < number:
                        await anyio.sleep(0.05)
                        heard.forget_silent(LISTEN_S)

        anyio.run(listen)

    def wait_ready(self, within_s: float) -> float:
        """Wait until a request could be served; how long it took."""
        began = time.monotonic()
        while time.monotonic() - began < within_s:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz", timeout=1, trust_env=False).status_code == 200:
                    return time.monotonic() - began
            time.sleep(0.05)
        raise AssertionError(f"not ready within {within_s} s")

    def kill_group(self) -> None:
        """Kill -9 of the whole process group."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """One Ctrl-C; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill_group()
            raise


@pytest.fixture(scope="module")
def start_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Up]]:
    """Starts networks; all of them are stopped behind the module's last test.

    An idle network still takes a fiftieth of a core, and 400 MB with the embedded model.
    """
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> Up:
            up = Up(tmp_path_factory.mktemp("home"), *arguments)
            stack.callback(up.stop)
            return up

        yield start


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One network with the embedded model on one node, shared by tests that do not break it."""
    up = Up(tmp_path_factory.mktemp("home"))
    yield up
    up.stop()
