"""How soon all streams of a node that dies go on, when it had 1, 8 or 32 of them.

``python benchmarks/network/crowd.py``; the method is in benchmarks/README.md. The network is that
of `failover.py`: four nodes with the mock engine, two distributors, real processes. All nodes but
one drain while the streams begin, so that all are on that one; then the others take tasks again
and the one is killed with ``kill -9``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from failover import (
    Gaps,
    Network,
    Stream,
    ask,
    hardware,
    logged,
    network,
    rank,
    request,
    serving as num_serving,
    spread,
    wait_until,
)
from meter import tree

from starai.protocol.identity import PartyId

RESULTS = Path(__file__).resolve().parent.parent / "results"
SLOTS = 48
#: Tokens that each client has seen before the node is killed.
BEFORE = 8
#: How long an answer takes undisturbed: the others are back and the death is noticed within.
ANSWER_S = 4.0


@dataclass
class Crowd:
    """All rounds with so many streams on the node that dies."""

    size: int
    streams: list[Stream] = field(default_factory=list)
    equal: int = 0
    gaps: Gaps = field(default_factory=Gaps)
    #: The largest share of a round's streams that one heir got, for each round.
    shares: list[float] = field(default_factory=list)


def only(made: Network, one: PartyId, *, drains: bool) -> None:
    """Have all nodes but one drain, or take tasks again."""
    told = [node.party for node in made.nodes if node.party != one]
    with ThreadPoolExecutor() as threads:  # each waits for the beat that shows it
        [*threads.map(lambda party: made.order(party, "drain" if drains else "resume"), told)]
    wanted = 1 if drains else len(made.nodes)
    wait_until(lambda: num_serving(made) == wanted, f"{wanted} nodes that take tasks")


async def together(
    made: Network, size: int, num_tokens: int, then: Callable[[], None] | None = None
) -> list[Stream]:
    """So many streams at once; when each has brought some tokens, ``then`` is called beside."""
    far, reached = asyncio.Event(), 0

    def on_token(number: int) -> None:
        nonlocal reached
        reached += number == BEFORE
        if reached == size:
            far.set()

    async def act() -> None:
        await far.wait()
        if then is not None:
            await asyncio.to_thread(then)

    asked = [ask(made.port, made.key, request(seed, num_tokens), on_token) for seed in range(size)]
    found, _ = await asyncio.gather(asyncio.gather(*asked), act())
    return found


def round_of(made: Network, crowd: Crowd, number: int, num_tokens: int, whole: list[str]) -> None:
    """One node dies with all streams on it."""
    wait_until(lambda: num_serving(made) == len(made.nodes), "all nodes")
    node = made.nodes[number % len(made.nodes)]
    only(made, node.party, drains=True)
    time.sleep(0.6)  # a beat more: the distributors hear it, too
    since, starts = time.time(), node.program.starts

    def kill() -> None:
        only(made, node.party, drains=False)
        for pid in tree(node.program.pid):  # the engine is in a session of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    streams = asyncio.run(together(made, crowd.size, num_tokens, kill))
    crowd.streams += streams
    crowd.equal += sum(one.text == text for one, text in zip(streams, whole, strict=False))
    lines = logged(made, since, "answer_resumed")
    gaps = Gaps.of(lines)
    crowd.gaps.whole_ms += gaps.whole_ms
    crowd.gaps.unasked_ms += gaps.unasked_ms
    if lines:
        heirs = Counter(str(line["callee"]) for line in lines)
        crowd.shares.append(max(heirs.values()) / len(lines))
    wait_until(lambda: node.program.starts > starts, "the node that was killed")
    time.sleep(4.0)  # until its old self is forgotten: the lease of a beat


def table(crowds: list[Crowd], step_ms: float) -> list[str]:
    """What came out, for people."""
    lines = [
        (
            "| streams on it | went on | text equal | until offered anew: median, p95, longest "
            f"| until the next token | without a step of {step_ms:g} ms "
            "| longest pause of a client | most to one heir |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in crowds:
        less = [max(0.0, gap - step_ms) for gap in one.gaps.whole_ms]
        pauses = [1000 * stream.longest_gap_s for stream in one.streams]
        columns = [
            spread(values).partition(" | ")[2].replace(" | ", ", ")
            for values in (one.gaps.unasked_ms, one.gaps.whole_ms, less, pauses)
        ]
        share = f"{statistics.median(one.shares):.0%}" if one.shares else "-"
        counts = f"{len(one.gaps.whole_ms)} | {one.equal} of {len(one.streams)}"
        lines.append(f"| {one.size} | {counts} | {' | '.join(columns)} | {share} |")
    return lines


def main() -> None:
    """Run all sizes, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--step-ms", type=float, default=30)
    parser.add_argument("--no-write", action="store_true", help="print the report only")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    num_tokens = int(ANSWER_S * 1000 / options.step_ms)
    crowds = [Crowd(size) for size in sizes]
    folder = Path(tempfile.mkdtemp(prefix="starai-crowd-"))
    with network(folder, options.step_ms, SLOTS) as made:
        first = asyncio.run(together(made, max(sizes), num_tokens))
        whole = [one.text for one in first]
        for number in range(options.rounds):
            for crowd in crowds:
                round_of(made, crowd, number, num_tokens, whole)
    lines = [
        "# A node dies with many streams on it",
        "",
        (
            f"{dt.datetime.now(dt.UTC).date()}, {hardware()}, Python {platform.python_version()}, "
            f"load average {os.getloadavg()[0]:.1f} at the end{rank()}."
        ),
        (
            f"Command: `python benchmarks/network/crowd.py {' '.join(sys.argv[1:])}`. The "
            "method is in benchmarks/README.md."
        ),
        "",
        f"{options.rounds} nodes killed for each row. From giving up to the next token, in ms:",
        "",
        *table(crowds, options.step_ms),
        "",
    ]
    text = "\n".join(lines)
    print(text)
    print(f"logs: {folder}")
    if not options.no_write:
        today = dt.datetime.now(dt.UTC).date()
        steps = f"{options.step_ms:g}-ms-steps"
        name = f"crowd-{steps}_{os.cpu_count()}-cores-{platform.machine()}_{today}.md"
        (RESULTS / name).write_text(text)
        print(f"written: benchmarks/results/{name}")


if __name__ == "__main__":
    main()
