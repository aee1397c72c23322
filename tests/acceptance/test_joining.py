"""`starai join` as suppliers meet it: one command, stages, doors, and refusals that say why."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import anyio
import pytest
from tests.acceptance.conftest import free_port

from starai.local.asking import operator
from starai.local.home import Home
from starai.protocol.identity import Identity
from starai.protocol.subjects import Role

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up

STARAI = (sys.executable, "-m", "starai.cli")


def mint(up: Up, *, uses: int = 1, seconds: float = 3600) -> str:
    """A join token, as `starai tokens create` makes it, without the time that a process takes."""

    async def create() -> str:
        async with operator(Home(up.home)) as asked:
            return await asked.create_token(Role.NODE, uses, int(seconds * 1000), "")

    return anyio.run(create)


def public_up(start_up: Callable[..., Up], *more: str) -> Up:
    """A network with the mock model whose public door is on loopback."""
    doors = ("--public", f"127.0.0.1:{free_port()}", "--public-websocket-port", str(free_port()))
    return start_up("--model", "mock", *doors, *more)


@pytest.fixture(scope="module")
def door(start_up: Callable[..., Up]) -> Iterator[Up]:
    """One network with a public door, for tests that do not break it."""
    up = public_up(start_up)
    yield up
    up.stop()


class Device:
    """A `starai join` in a home of its own."""

    started: ClassVar[list[Device]] = []

    def __init__(self, home: Path, *words: str, env: dict[str, str] | None = None) -> None:
        self.started.append(self)
        command = [*STARAI, "join", *words, "--model", "mock", "--no-polite", "--home", str(home)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        )

    def stages(self, last: str = "serving") -> list[str]:
        """The names of the stages, up to ``last``; fails with all that was said otherwise."""
        assert self.process.stdout is not None
        said, names = [], []
        for line in self.process.stdout:
            said.append(line)
            words = line.split()
            if len(words) > 2 and words[1] == "s":
                names.append(words[2])
                if words[2] == last:
                    return names
        raise AssertionError("".join(said))

    def stop(self) -> str:
        """One Ctrl-C; what it said last."""
        self.process.send_signal(signal.SIGINT)
        said, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, said
        return said


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """A device whose test failed is ended all the same."""
    yield
    while Device.started:
        device = Device.started.pop()
        if device.process.poll() is None:
            device.process.kill()
            device.process.communicate()


def refusal(home: Path, *words: str, wrap: tuple[str, ...] = ()) -> str:
    """What a join that fails says."""
    command = [*wrap, *STARAI, "join", *words, "--model", "mock", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.mark.parametrize("scheme", ["tls", "wss"])
def test_a_device_joins_by_tls_or_websocket_and_serves(
    door: Up, tmp_path: Path, scheme: str
) -> None:
    """One command: it measures and loads while the network admits it; then it needs no token."""
    token = mint(door)
    (url,) = [one for one in door.facts["public_urls"] if one.startswith(scheme)]
    device = Device(tmp_path, url, token)
    stages = device.stages()
    assert sorted(stages) == ["admitted", "connecting", "loading", "measuring", "serving"]
    assert stages.index("connecting") < stages.index("admitted")
    assert stages.index("measuring") < stages.index("loading")
    assert stages[-1] == "serving"
    assert "Stopped" in device.stop()
    again = Device(tmp_path)
    assert again.stages()[-1] == "serving"
    again.stop()


@pytest.mark.slow
def test_only_the_new_node_answers_a_request(start_up: Callable[..., Up], tmp_path: Path) -> None:
    """With the network's own node drained, a request is carried by the one that joined."""
    up = public_up(start_up)
    device = Device(tmp_path, mint(up))
    device.stages()
    up.wait_for_nodes(2)
    up.starai("node", "drain", "node-1")
    with up.openai() as client:
        answer = client.completions.create(model="mock", prompt="Hi", max_tokens=8)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    key = Identity.from_seed(Home(tmp_path).party("node").seed).party
    limit = time.monotonic() + 20
    while not any(key in str(task) for task in json.loads(up.starai("tasks", "--json"))["tasks"]):
        assert time.monotonic() < limit
    device.stop()
    up.stop()


def test_tokens_that_let_nobody_in_each_say_why(door: Up, tmp_path: Path) -> None:
    """Damaged, expired, used up, revoked and another network's: five different sentences."""
    assert "damaged" in refusal(tmp_path / "a", mint(door)[:-2] + "xx")
    short, once, ended = mint(door, seconds=1), mint(door), mint(door)
    listed = json.loads(door.starai("tokens", "list", "--json"))["tokens"]
    first = Device(tmp_path / "b", once)
    first.stages("admitted")
    assert "used up" in refusal(tmp_path / "c", once)
    first.stop()
    door.starai("tokens", "revoke", listed[0]["token_id"])
    assert "revoked" in refusal(tmp_path / "d", ended)
    time.sleep(1)  # NATS counts whole seconds
    said = refusal(tmp_path / "e", short)
    assert "authentication failed: the token expired at 20" in said
    assert "starai tokens create" in said


def test_a_port_that_is_closed_and_another_networks_door(door: Up, tmp_path: Path) -> None:
    """With the network gone the token still says where it was; the hop is named."""
    token = mint(door)
    closed = f"tls://127.0.0.1:{free_port()}"
    checked = subprocess.run(
        [*STARAI, "doctor", closed, token], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 1
    assert "FAIL TCP" in checked.stdout
    web = door.url.replace("http://", "ws://")
    checked = subprocess.run(
        [*STARAI, "doctor", web, token], capture_output=True, text=True, check=False
    )
    assert "FAIL WebSocket" in checked.stdout
    checked = subprocess.run([*STARAI, "doctor", token], capture_output=True, text=True, check=True)
    assert checked.stdout.count("ok   registry") == 2


@pytest.mark.skipif(not shutil.which("faketime"), reason="no faketime here (Debian: faketime)")
@pytest.mark.parametrize(("shift", "said"), [("+3d", "ahead of"), ("-3d", "behind")])
def test_a_wrong_clock_is_named(door: Up, tmp_path: Path, shift: str, said: str) -> None:
    """A device whose clock is days off is told so, and how to set it; the token is not to blame."""
    token = mint(door)
    text = refusal(tmp_path, token, wrap=("faketime", "-f", shift))
    assert "clock failed" in text
    assert said in text or "seems to be" in text
    assert "timedatectl" in text


def test_a_revoked_node_is_cut_off_at_once(door: Up, tmp_path: Path) -> None:
    """Its process ends within seconds of the operator's word, and says that it was refused."""
    device = Device(tmp_path, mint(door))
    device.stages()
    seed = Home(tmp_path).party("node").seed
    key = Identity.from_seed(seed).party
    began = time.monotonic()
    door.starai("node", "revoke", key)
    said, _ = device.process.communicate(timeout=20)
    assert device.process.returncode == 1
    assert "party_refused" in said
    assert time.monotonic() - began < 10


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_one_nats_server_of_three_may_die(start_up: Callable[..., Up]) -> None:
    """Streams under way go on, byte for byte, whichever of the three servers is killed."""
    up = start_up(
        *("--model", "mock", "--nats-servers", "3", "--nodes", "2", "--step-delay-ms", "20")
    )
    up.wait_for_nodes(2)
    messages = [{"role": "user", "content": "Hi"}]

    def stream(seed: int) -> Iterator[str]:
        """The pieces of an answer of two seconds."""
        with up.openai() as client:
            for chunk in client.chat.completions.create(
                model="mock", messages=messages, max_tokens=100, stream=True, seed=seed
            ):
                yield chunk.choices[0].delta.content or "" if chunk.choices else ""

    for number, name in enumerate(("nats", "nats-2", "nats-3")):
        expected = "".join(stream(number))
        running = [stream(number) for _ in range(4)]
        begun = [next(one) for one in running]
        os.kill(int(up.facts["pids"][name]), signal.SIGKILL)
        assert [first + "".join(one) for first, one in zip(begun, running, strict=True)] == [
            expected
        ] * 4
        time.sleep(2)
    up.stop()
