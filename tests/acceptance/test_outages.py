"""NATS dies under load; everything dies at once. What a client saw is true afterwards."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
import pytest

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up

NUM_REQUESTS = 200
#: Statuses of a failure that a client may simply try again.
RETRYABLE = (429, 502, 503, 504)


def body(stream: bool = False) -> dict[str, object]:
    """A request of 20 to 60 tokens to the mock model, a millisecond and a half each."""
    messages = [{"role": "user", "content": "Hi"}]
    return {"model": "mock", "messages": messages, "max_tokens": 60, "stream": stream}


def ask(up: Up, client: httpx.Client, stream: bool) -> tuple[str, str]:
    """One request: ("finished", task id), ("retryable", code) or ("lost", what happened)."""
    try:
        answer = client.post("/v1/chat/completions", json=body(stream), headers=up.headers)
    except httpx.HTTPError as error:
        return "broken", type(error).__name__
    if answer.status_code != 200:
        kind = "retryable" if answer.status_code in RETRYABLE else "lost"
        return kind, f"{answer.status_code} {answer.json()['error']['code']}"
    if not stream:
        return "finished", answer.json()["id"].removeprefix("chatcmpl-")
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    if events and events[-1] == "[DONE]":
        return "finished", json.loads(events[0])["id"].removeprefix("chatcmpl-")
    told = json.loads(events[-1]) if events else {}
    return ("retryable", "in stream") if "error" in told else ("lost", answer.text[-200:])


class Outcome(NamedTuple):
    """How a request ended, and when it began and ended in monotonic seconds."""

    kind: str
    what: str
    began_s: float
    ended_s: float


def under_load(up: Up, number: int, event: Callable[[], None], after: int) -> list[Outcome]:
    """Many requests at once, half of them streams, and an event when some have ended.

    There is an outcome for every request, or the first mistake of the test itself is raised.
    """
    num_ended = itertools.count(1)
    due = threading.Event()

    def one(index: int) -> Outcome:
        began_s = time.monotonic()
        kind, what = ask(up, client, stream=bool(index % 2))
        if next(num_ended) >= after:
            due.set()
        return Outcome(kind, what, began_s, time.monotonic())

    limits = httpx.Limits(max_connections=40)
    with (
        httpx.Client(base_url=up.url, timeout=60, limits=limits, trust_env=False) as client,
        ThreadPoolExecutor(40) as pool,
    ):
        requests = [pool.submit(one, index) for index in range(number)]
        assert due.wait(60)
        event()
        return [request.result() for request in requests]


@pytest.mark.timeout(240)
def test_nats_killed_under_load_loses_no_request_silently(start_up: Callable[..., Up]) -> None:
    """Each request finishes or fails retryably; within five seconds all is well by itself."""
    up = start_up("--model", "mock", "--nodes", "2", "--step-delay-ms", "10")
    up.wait_for_nodes(2)
    killed_at: list[float] = []

    def kill_nats() -> None:
        os.kill(int(up.facts["pids"]["nats"]), signal.SIGKILL)
        killed_at.append(time.monotonic())

    outcomes = under_load(up, NUM_REQUESTS, kill_nats, after=30)
    kinds = Counter(outcome.kind for outcome in outcomes)
    assert set(kinds) <= {"finished", "retryable"}, outcomes
    assert kinds["finished"] > NUM_REQUESTS // 2
    (killed_s,) = killed_at
    # A request that began after the kill and finished: the network was well again by then.
    well_s = [one.ended_s for one in outcomes if one.kind == "finished" and one.began_s > killed_s]
    assert min(well_s) - killed_s < 5
    up.stop()


@pytest.mark.timeout(240)
def test_nats_killed_at_idle_is_back_within_five_seconds(start_up: Callable[..., Up]) -> None:
    """The very next request is answered, five seconds after the kill at the latest."""
    up = start_up("--model", "mock")
    os.kill(int(up.facts["pids"]["nats"]), signal.SIGKILL)
    began = time.monotonic()
    with httpx.Client(base_url=up.url, timeout=30, trust_env=False) as client:
        while ask(up, client, stream=False)[0] != "finished":
            assert time.monotonic() - began < 5
    assert time.monotonic() - began < 5
    up.stop()


@pytest.mark.timeout(240)
def test_after_kill_9_of_everything_each_finished_task_is_on_record_once(
    start_up: Callable[..., Up],
) -> None:
    """What a client saw finished is in the registry after the restart, once."""
    up = start_up("--model", "mock", "--nodes", "2", "--step-delay-ms", "3")
    up.wait_for_nodes(2)
    outcomes = under_load(up, NUM_REQUESTS, up.kill_group, after=NUM_REQUESTS // 2)
    finished = [outcome.what for outcome in outcomes if outcome.kind == "finished"]
    assert NUM_REQUESTS // 2 <= len(finished) < NUM_REQUESTS
    up.start()
    limit = time.monotonic() + 30
    while missing := set(finished) - set(counted(up)):
        assert time.monotonic() < limit, f"{len(missing)} of {len(finished)} are not on record"
        time.sleep(0.5)
    on_record = counted(up)
    assert {on_record[task] for task in finished} == {1}
    assert not json.loads(up.starai("ledger", "check", "--json"))["problems"]
    up.stop()


def counted(up: Up) -> Counter[str]:
    """How many records with an answer each task has in the registry."""
    tasks = json.loads(up.starai("tasks", "--json", "--limit", "500"))["tasks"]
    return Counter(task["task_id"] for task in tasks)


@pytest.mark.timeout(240)
def test_ctrl_c_stops_everything_and_loses_nothing(start_up: Callable[..., Up]) -> None:
    """Running answers end, every process is gone, and the next start remembers."""
    up = start_up("--model", "mock", "--step-delay-ms", "20")
    with (
        httpx.Client(base_url=up.url, timeout=30, trust_env=False) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(ask, up, client, True)
        time.sleep(0.3)
        assert up.stop() == 0
        outcome = running.result()
    assert outcome[0] == "finished", outcome
    for pid in up.facts["pids"].values():
        assert not os.path.exists(f"/proc/{pid}")  # noqa: PTH110 - a process, not a file of ours
    key = up.api_key
    up.start()
    assert up.api_key == key
    time.sleep(3)
    assert counted(up)[outcome[1]] == 1
    up.stop()


def test_a_second_start_says_what_is_in_the_way(tiny: Up, tmp_path: Path) -> None:
    """The same home, or the same port: a sentence that says what to do."""
    with pytest.raises(AssertionError, match="already"):
        tiny.starai("up")
    with pytest.raises(AssertionError, match=r"in use.*--port"):
        tiny.starai("up", "--port", str(tiny.port), home=tmp_path)
    ports = ("--port", str(tiny.port + 1), "--nats-port", str(tiny.nats_port))
    with pytest.raises(AssertionError, match=r"taken.*another port"):
        tiny.starai("up", *ports, home=tmp_path)
