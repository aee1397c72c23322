"""How soon an answer begins."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up

GOAL_MS = 150.0


def test_the_first_token_comes_within_150_ms(tiny: Up) -> None:
    """The median of nine short prompts; a busy machine gets three tries."""
    client = tiny.openai()
    medians = []
    for _ in range(3):
        medians.append(statistics.median(first_token_ms(client) for _ in range(9)))
        if medians[-1] < GOAL_MS:
            break
        time.sleep(2)
    assert min(medians) < GOAL_MS, f"medians in ms: {medians}"


def first_token_ms(client: object) -> float:
    began = time.perf_counter()
    stream = client.chat.completions.create(  # type: ignore[attr-defined]
        model="starai-tiny",
        messages=[{"role": "user", "content": "Hello"}],
        stream=True,
        max_tokens=4,
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            took = (time.perf_counter() - began) * 1000
            stream.close()
            return took
    raise AssertionError("no token came")
