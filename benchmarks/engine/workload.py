"""What every engine is asked to do, and the clock beside it. Standard library only.

Each engine is a `Peer`: requests go in, steps say which of them got a token. All rows are made of
one loop over arrivals, so that all engines are timed alike. Runs inside each peer's own
interpreter; the job comes as JSON on standard input, and each row's result leaves as one line.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

#: Marks a line of results; peers print what they like around it.
MARK = "@@result "
#: Token ids of prompts: below the vocabulary of every peer, above the tokenizer's own.
FIRST_ID, LAST_ID = 1000, 150_000


class Peer(Protocol):
    """An engine as the workload sees it. Greedy, no end token, no reuse of prefixes."""

    about: dict[str, Any]

    def submit(self, key: int, prompt: list[int], max_tokens: int) -> None:
        """Take a request; its tokens are reported under ``key``."""

    def step(self) -> list[int]:
        """Work for a while: the key of each token that was produced, in order."""


@dataclass(frozen=True)
class Arrival:
    """A request of ``prompt_tokens`` that comes ``at_s`` after the start."""

    at_s: float
    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True)
class Job:
    """What one process measures; see `measure.py` for where the numbers come from."""

    model: str
    bits: int
    threads: int
    rows: dict[str, dict[str, Any]]
    repeats: int
    context: int
    slots: int
    options: dict[str, Any]


def run(peer: Peer, arrivals: list[Arrival], seed: int) -> list[list[float]]:
    """Serve all arrivals; for each, the seconds from its arrival to each of its tokens."""
    chance = random.Random(seed)
    prompts = [
        [chance.randrange(FIRST_ID, LAST_ID) for _ in range(a.prompt_tokens)] for a in arrivals
    ]
    tokens: list[list[float]] = [[] for _ in arrivals]
    missing = sum(a.max_tokens for a in arrivals)
    waiting, submitted = 0, 0
    begun = time.perf_counter()
    while missing:
        now = time.perf_counter() - begun
        while submitted < len(arrivals) and arrivals[submitted].at_s <= now:
            arrival = arrivals[submitted]
            peer.submit(submitted, prompts[submitted], arrival.max_tokens)
            submitted += 1
            waiting += arrival.max_tokens
        if not waiting:
            time.sleep(max(0.0, arrivals[submitted].at_s - now))
            continue
        for key in peer.step():
            tokens[key].append(time.perf_counter() - begun - arrivals[key].at_s)
            waiting -= 1
            missing -= 1
    for arrival, seen in zip(arrivals, tokens, strict=True):
        if len(seen) != arrival.max_tokens:
            raise RuntimeError(f"{len(seen)} tokens came where {arrival.max_tokens} were asked for")
    return tokens


def prefill(peer: Peer, row: dict[str, Any], seed: int) -> dict[str, float]:
    """Prompt tokens a second up to the first token of the answer, one value per prompt length."""
    rates = {}
    for length in row["lengths"]:
        [[first_s]] = run(peer, [Arrival(0.0, length, 1)], seed + length)
        rates[str(length)] = length / first_s
    return rates


def decode(peer: Peer, row: dict[str, Any], seed: int) -> dict[str, float]:
    """Tokens a second behind the first, one sequence alone."""
    [seen] = run(peer, [Arrival(0.0, row["prompt"], row["tokens"])], seed)
    return {"1": (len(seen) - 1) / (seen[-1] - seen[0])}


def batch(peer: Peer, row: dict[str, Any], seed: int) -> dict[str, float]:
    """Tokens a second of B sequences while all of them decode, one value per B."""
    rates = {}
    for size in row["sizes"]:
        all_seen = run(peer, [Arrival(0.0, row["prompt"], row["tokens"])] * size, seed + size)
        begin, end = max(seen[0] for seen in all_seen), min(seen[-1] for seen in all_seen)
        inside = sum(begin < at <= end for seen in all_seen for at in seen)
        rates[str(size)] = inside / (end - begin)
    return rates


def arrivals(peer: Peer, row: dict[str, Any], seed: int) -> dict[str, float]:
    """Poisson arrivals: times to first and next tokens in ms, and tokens a second of the whole."""
    asked = [Arrival(*request) for request in row["requests"]]
    all_seen = run(peer, asked, seed)
    firsts = sorted(seen[0] * 1000 for seen in all_seen)
    gaps = sorted((b - a) * 1000 for seen in all_seen for a, b in itertools.pairwise(seen))
    end = max(a.at_s + seen[-1] for a, seen in zip(asked, all_seen, strict=True))
    return {
        "first_p50_ms": quantile(firsts, 0.5),
        "first_p95_ms": quantile(firsts, 0.95),
        "next_p50_ms": quantile(gaps, 0.5),
        "next_p95_ms": quantile(gaps, 0.95),
        "tokens_per_s": sum(map(len, all_seen)) / (end - asked[0].at_s),
    }


ROWS: dict[str, Callable[[Peer, dict[str, Any], int], dict[str, float]]] = {
    "prefill": prefill,
    "decode": decode,
    "batch": batch,
    "arrivals": arrivals,
}


def quantile(ordered: list[float], share: float) -> float:
    """The value below which ``share`` of the ordered values lie."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def resident_mb() -> float:
    """This process's resident memory now, in 10^6 bytes."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


def serve(open_peer: Callable[[Job], Peer]) -> None:
    """Read the job, open the peer, warm it up, print each row's samples as it is measured."""
    # Libraries write to the descriptor, not only to sys.stdout: ours is moved out of their way.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = Job(**json.load(sys.stdin))

    def say(**values: Any) -> None:
        out.write(MARK + json.dumps(values) + "\n")
        out.flush()

    begun = time.perf_counter()
    peer = open_peer(job)
    loaded = resident_mb()
    run(peer, [Arrival(0.0, 64, 4), Arrival(0.0, 16, 4)], 1)
    about = {"load_s": round(time.perf_counter() - begun, 1), "resident_mb": round(loaded)}
    say(about={**peer.about, **about})
    for name, row in job.rows.items():
        for repeat in range(row.get("repeats", job.repeats)):
            try:
                values = ROWS[name](peer, row, 1000 * (repeat + 1))
            except Exception as error:  # noqa: BLE001 - foreign engines raise anything
                say(row=name, error=f"{type(error).__name__}: {error}"[:300])
                break
            say(row=name, values=values, load=os.getloadavg()[0], resident_mb=round(resident_mb()))
    say(done=True)
    # Some peers keep threads that never end; everything is said.
    out.flush()
    os._exit(0)
