"""A node dies, falls silent or lies in mid-answer: the client sees one uninterrupted stream."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from starai.models.catalog import open_model

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up

#: Tokens that the client has seen when the fault happens.
FAULT_AT = 40
NUM_TOKENS = 140


@pytest.fixture(scope="module")
def pair(start_up: Callable[..., Up]) -> Iterator[Up]:
    """Two nodes with the embedded model, one thread each."""
    up = start_up("--nodes", "2", "--threads", "1")
    up.wait_for_nodes(2)
    yield up
    up.stop()


def story(up: Up, seed: int, fault: Callable[[], None] = lambda: None) -> str:
    """An answer of 140 tokens at temperature 0.8, with a fault while it streams."""
    stream = up.openai().chat.completions.create(
        model="starai-tiny",
        messages=[{"role": "user", "content": "Tell me a long story about a fox."}],
        temperature=0.8,
        seed=seed,
        max_tokens=NUM_TOKENS,
        logit_bias={str(token): -100 for token in stop_tokens()},
        stream=True,
        stream_options={"include_usage": True},
    )
    pieces: list[str] = []
    usage = None
    for chunk in stream:
        usage = chunk.usage or usage
        if chunk.choices and chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
            if len(pieces) == FAULT_AT:
                fault()
    assert usage is not None
    assert usage.completion_tokens == NUM_TOKENS
    return "".join(pieces)


def stop_tokens() -> tuple[int, ...]:
    """The embedded model's end tokens: banned, so that every answer is long enough."""
    return open_model("embedded").eos_token_ids


def node_pid(up: Up, name: str) -> int:
    return up.pid("node", "start", name)


class Killer:
    """Sends a signal to the process of whichever node is answering."""

    def __init__(self, up: Up, number: signal.Signals) -> None:
        self.up = up
        self.number = number
        self.hit: list[int] = []

    def __call__(self) -> None:
        # Asking the network takes a second, in which a fast node would finish; the node whose
        # engine computes is the one that answers.
        pids = {name: node_pid(self.up, name) for name in ("node-1", "node-2")}
        busy = max(pids, key=lambda name: cpu_ticks(pids[name]))
        os.kill(pids[busy], self.number)
        self.hit.append(pids[busy])


def engines_of(pid: int) -> list[int]:
    """A node's engine workers: its child processes."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_ticks(pid: int) -> int:
    """How much a node's engine worker has computed lately: the serving one moves."""

    def ticks() -> int:
        total = 0
        for child in engines_of(pid):
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total

    before = ticks()
    time.sleep(0.05)
    return ticks() - before


def run_times(pair: Up, number: signal.Signals, times: int) -> None:
    undisturbed = {seed: story(pair, seed) for seed in (1, 2)}
    for run in range(times):
        seed = 1 + run % 2
        killer = Killer(pair, number)
        assert story(pair, seed, killer) == undisturbed[seed], f"run {run}"
        assert killer.hit
        if number is signal.SIGSTOP:
            os.kill(killer.hit[0], signal.SIGCONT)
        time.sleep(1.0)
        pair.wait_for_nodes(2)


def test_a_killed_node_is_not_noticed(pair: Up) -> None:
    """SIGKILL in mid-stream: the text equals the undisturbed run, byte for byte."""
    run_times(pair, signal.SIGKILL, times=2)


def test_a_silent_node_is_not_noticed(pair: Up) -> None:
    """A stopped process says nothing more; another node goes on."""
    run_times(pair, signal.SIGSTOP, times=2)


class EngineStopper(Killer):
    """Stops the engine of whichever node is answering; the node itself lives and says so."""

    def __call__(self) -> None:
        super().__call__()
        for engine in engines_of(self.hit[0]):
            os.kill(engine, signal.SIGSTOP)


def test_a_stalled_engine_behind_a_living_node_is_not_noticed(pair: Up) -> None:
    """Signs of life go on, tokens do not: another node does."""
    undisturbed = story(pair, 3)
    stopper = EngineStopper(pair, signal.SIGCONT)  # to the node itself that does nothing
    assert story(pair, 3, stopper) == undisturbed
    for engine in engines_of(stopper.hit[0]):
        os.kill(engine, signal.SIGCONT)
    log = (pair.home / "logs" / "distributor.log").read_text().splitlines()
    events = [json.loads(line) for line in log if line.startswith("{")]
    assert "stalled" in [one["why"] for one in events if one["event"] == "attempt_given_up"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_twenty_of_twenty(pair: Up, number: signal.Signals) -> None:
    """Twenty runs each, all byte for byte."""
    run_times(pair, number, times=20)


def run_liars(up: Up, times: int) -> None:
    """Answers through a node that lies after some chunks, against the undisturbed run."""
    undisturbed = story(up, 7)
    for run in range(times):
        name = f"liar-{run}"
        token = up.starai("tokens", "create").strip()
        program = str(Path(__file__).parent / "faulty_node.py")
        arguments = [str(up.home / name), name, "embedded", str(FAULT_AT + run)]
        liar = subprocess.Popen(
            [sys.executable, program, *arguments], env={**os.environ, "STARAI_TOKEN": token}
        )
        try:
            up.wait_for_nodes(2)
            assert story(up, 7) == undisturbed, f"run {run}"
            attempts = json.loads(up.starai("tasks", "--json", "--limit", "5"))["tasks"]
            assert any(task["attempt"] for task in attempts) or run_again(up)
        finally:
            liar.kill()
            liar.wait()
            time.sleep(3.5)  # until its lease is over


def run_again(up: Up) -> bool:
    """Whether the second attempt is on record a moment later: records come a block behind."""
    time.sleep(4)
    tasks = json.loads(up.starai("tasks", "--json", "--limit", "5"))["tasks"]
    return any(task["attempt"] for task in tasks)


def test_a_node_that_sends_a_malformed_chunk_is_not_noticed(start_up: Callable[..., Up]) -> None:
    """A chunk that does not open is a failure of its node, and nothing of it reaches the client."""
    up = start_up("--threads", "1")
    run_liars(up, times=1)
    up.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_liars(start_up: Callable[..., Up]) -> None:
    """Twenty lies at twenty places."""
    up = start_up("--threads", "1")
    run_liars(up, times=20)
    up.stop()
