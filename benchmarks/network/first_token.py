"""How soon a network on this machine answers: start to ready, first token, tokens a second.

``python benchmarks/network/first_token.py``: starts `starai up` with the embedded model several
times, then asks short prompts one after the other at idle, through the unmodified openai package.
Writes a dated file into benchmarks/results.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
from gateway import free_port

RESULTS = Path(__file__).resolve().parents[1] / "results"
STARTS = 3
PROMPTS = ("Hello", "Who are you?", "What is 2 + 2?", "Tell me a story", "Good morning")
ROUNDS = 8


@contextlib.contextmanager
def network(home: str) -> Iterator[tuple[dict[str, Any], float]]:
    """A running network: its facts, and the seconds from the command to those facts."""
    ports = ("--port", str(free_port()), "--nats-port", str(free_port()))
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "starai.cli", "up", "--json", "--home", home, *ports],
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline()), time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def ask(client: openai.OpenAI, prompt: str, max_tokens: int) -> tuple[float, float]:
    """Milliseconds to the first token, and tokens a second after it."""
    began = time.perf_counter()
    stream = client.chat.completions.create(
        model="starai-tiny",
        messages=[{"role": "user", "content": prompt}],
        max_tokens=max_tokens,
        stream=True,
        stream_options={"include_usage": True},
    )
    first = 0.0
    num_tokens = 0
    for chunk in stream:
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter()
        if chunk.usage:
            num_tokens = chunk.usage.completion_tokens
    ended = time.perf_counter()
    return (first - began) * 1000, (num_tokens - 1) / (ended - first) if num_tokens > 20 else 0.0


def spread(values: list[float]) -> str:
    """Median, and the range."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    """Measure and write the result."""
    starts, first_ms, speeds = [], [], []
    for number in range(STARTS):
        with tempfile.TemporaryDirectory() as home, network(home) as (facts, start_s):
            starts.append(start_s)
            print(f"start {number + 1}: ready after {start_s:.1f} s", flush=True)
            client = openai.OpenAI(base_url=f"{facts['url']}/v1", api_key=facts["api_key"])
            with client:
                for prompt in PROMPTS:
                    ask(client, prompt, 4)
                for _ in range(ROUNDS):
                    first_ms += [ask(client, prompt, 8)[0] for prompt in PROMPTS]
                long = [ask(client, "Tell me a long story about a fox.", 200)[1] for _ in range(5)]
                speeds += [speed for speed in long if speed]
    today = dt.datetime.now(dt.UTC).date().isoformat()
    hardware = f"{os.cpu_count()} cores {platform.machine()}"
    load = f"load average {os.getloadavg()[0]:.2f} at the end"
    lines = [
        f"# First token, {hardware}, {today}",
        "",
        f"`python benchmarks/network/first_token.py` · Python {platform.python_version()} · {load}",
        "",
        "| What | Median (range) | n |",
        "|---|---|---|",
        f"| `starai up` to ready to answer, s | {spread(starts)} | {len(starts)} |",
        f"| first token of a short prompt at idle, ms | {spread(first_ms)} | {len(first_ms)} |",
        f"| tokens a second after the first, one stream | {spread(speeds)} | {len(speeds)} |",
        "",
        "The whole road is on the way: HTTP, key, seal, NATS, distributor, seal, NATS, node,",
        "engine process, and back. The model is the embedded one; the engine chose its threads.",
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"first-token_{hardware.replace(' ', '-')}_{today}.md"
    file.write_text("\n".join(lines))
    print("\n".join(lines[4:9]))
    print(f"written to {file.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
