"""A supplier drains, looks at his standing and leaves, while an answer runs on his device."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from starai.local.asking import operator
from starai.local.home import Home

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up

NUM_TOKENS = 300


@pytest.fixture(scope="module")
def pair(start_up: Callable[..., Up]) -> Iterator[Up]:
    """Two nodes with the mock model, a token every 15 ms."""
    up = start_up("--nodes", "2", "--model", "mock", "--step-delay-ms", "15")
    up.wait_for_nodes(2)
    yield up
    up.stop()


def answer(up: Up, seed: int) -> str:
    """A streamed answer of 300 tokens: some five seconds."""
    stream = up.openai().chat.completions.create(
        model="mock",
        messages=[{"role": "user", "content": "Hi"}],
        seed=seed,
        max_tokens=NUM_TOKENS,
        logit_bias={"256": -100},
        stream=True,
    )
    pieces = [c.choices[0].delta.content or "" for c in stream if c.choices]
    text = "".join(pieces)
    assert len(text) == NUM_TOKENS
    return text


def logged(up: Up, name: str, event: str) -> list[dict[str, Any]]:
    lines = (up.home / "logs" / f"{name}.log").read_text().splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [one for one in found if one["event"] == event]


def test_a_node_tells_how_it_stands(pair: Up) -> None:
    """The supplier and the operator ask; nothing is held against anybody yet, and that is said."""
    answers = json.loads(pair.starai("node", "why", "node-1", "--json"))
    assert [entry["rung"] for one in answers for entry in one["entries"]] == ["good"]
    assert "No distributor holds anything" in pair.starai("nodes", "--why")
    assert "nothing" in pair.starai("node", "appeal", "node-1")
    assert "nothing" in pair.starai("node", "reset", "node-1")


def test_a_node_that_leaves_hands_over_confirms_and_stays_away(pair: Up) -> None:
    """In mid-answer: the text is whole and unchanged, the books are matched, exit status 0."""
    left: list[str] = []

    async def leave() -> None:
        async with operator(Home(pair.home)) as asked:
            beats = await asked.listen()
            (busy,) = [beat for beat in beats if beat.role == "node" and beat.running]
            await asked.order(busy.party, "leave")
            left.append(busy.label)

    undisturbed = answer(pair, 1)
    leaving = threading.Thread(target=anyio.run, args=(leave,))
    leaving.start()
    assert answer(pair, 1) == undisturbed
    leaving.join()
    (name,) = left
    assert [one["why"] for one in logged(pair, "distributor", "attempt_given_up")] == [
        "handed over"
    ]
    limit = time.monotonic() + 40
    while pair.pid("node", "start", name):
        assert time.monotonic() < limit, "it does not end"
        time.sleep(0.2)
    time.sleep(2)
    assert pair.pid("node", "start", name) == 0, "it was started again"
    (told,) = logged(pair, name, "left")
    assert told["all_confirmed"]
    states: Counter[str] = Counter()
    while set(states) != {"matched"} and time.monotonic() < limit:
        time.sleep(0.5)  # the last block's records are confirmed after its end
        states = Counter(
            task["state"] for task in json.loads(pair.starai("tasks", "--json"))["tasks"]
        )
    assert states == {"matched": 3}
