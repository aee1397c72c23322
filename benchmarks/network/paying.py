"""What prices cost the gateway: CPU time a request with the ledger charging, and without a price.

``python benchmarks/network/paying.py --rounds 12 --seconds 5``. The same twice in one run: two
whole networks (`starai up --model mock`) with a prepaid customer, in turn one of them with a price,
asked at the same time at one rate; and the application alone in this process, with scripted tasks
in place of a network, to tell a hundredth of a millisecond from noise. Writes a dated file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway import HERE, ROOT, Peer, answers, facts, free_port, running, wait_until
from meter import cpu_s, tree

from starai.core.clock import SystemClock
from starai.core.randomness import SeededRandomness
from starai.gateway.app import GatewayApp
from starai.gateway.following import follow_keys, follow_prices
from starai.gateway.paying.funding import Funding
from starai.gateway.paying.keys import KeyRing
from starai.gateway.paying.pricing import PriceBook
from starai.gateway.web.incoming import Incoming
from starai.protocol.api_keys import hash_api_key
from starai.protocol.subjects import Role
from starai.testing.gateways import MOCK_GATEWAY
from starai.testing.parties import Parties
from starai.testing.registries import running_registry
from starai.testing.tasks import ScriptedTasks, says
from starai.wire.memory import MemoryNetwork

CONNECTIONS = 8
#: Requests a second to each network: at a fixed rate, what a second costs is in both alike.
RATE = 60.0
#: Requests of one turn of the application alone.
BATCH = 300
GOAL_MS = 0.03
BODY = json.dumps(
    {
        "model": "mock",
        "messages": [{"role": "user", "content": "Say twenty words."}],
        "max_tokens": 20,
    }
).encode()


@contextlib.contextmanager
def network(logs: Path, name: str) -> Iterator[Peer]:
    """A whole network with the mock engine on its node."""
    port, log = free_port(), logs / f"{name}.log"
    program = Path(sys.executable).with_name("starai")
    command = [str(program), "up", "--model", "mock", "--port", str(port), "--no-live", "--json"]
    command += ["--nats-port", str(free_port()), "--home", str(logs / name)]
    with running(command, log) as process:
        wait_until(lambda: facts(log) is not None, process, log)
        told = facts(log)
        assert told is not None
        key, pids = str(told["api_key"]), told["pids"]
        assert isinstance(pids, dict)
        wait_until(lambda: answers(port, key), process, log)
        peer = Peer(name, port, int(pids["gateway"]), process.pid, 0.0, key)
        starai(logs, peer, "customers", "deposit", "local", "100000")
        yield peer


async def ask_paced(peer: Peer, began: float, seconds: float, offset: float) -> int:
    """One connection that asks at fixed times; how often it was answered."""
    body = BODY
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{peer.port}\r\n"
        f"authorization: Bearer {peer.key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", peer.port)
    answered, due = 0, began + offset
    while due < began + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        writer.write(head + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert answer.startswith(b"http/1.1 200"), answer
        await reader.readexactly(int(answer.partition(b"content-length:")[2].split(b"\r\n")[0]))
        answered += 1
        due += CONNECTIONS / RATE
    writer.close()
    return answered


async def drive_together(peers: tuple[Peer, Peer], seconds: float) -> list[dict[str, float]]:
    """Both networks at once, at one rate: what disturbs one disturbs the other."""
    pids = [tree(peer.root) for peer in peers]
    before = [(cpu_s([peer.pid]), cpu_s(all_)) for peer, all_ in zip(peers, pids, strict=True)]
    began = time.monotonic() + 0.1
    offsets = [number / RATE for number in range(CONNECTIONS)]
    asking = [[ask_paced(peer, began, seconds, one) for one in offsets] for peer in peers]
    answered = [
        sum(counts) for counts in await asyncio.gather(*(asyncio.gather(*a) for a in asking))
    ]
    return [
        {
            "requests": count,
            "cpu_ms": (cpu_s([peer.pid]) - own) / count * 1000,
            "tree_ms": (cpu_s(all_) - every) / count * 1000,
        }
        for peer, all_, (own, every), count in zip(peers, pids, before, answered, strict=True)
    ]


def whole(logs: Path, rounds: int, seconds: float) -> list[tuple[dict[str, float], ...]]:
    """Each round asks both networks at once; they take turns at being the one with a price."""
    with network(logs, "one") as one, network(logs, "other") as other:
        asyncio.run(drive_together((one, other), 3.0))
        pairs = []
        for number in range(rounds):
            free, priced = (one, other) if number % 2 == 0 else (other, one)
            starai(logs, free, "prices", "set", "*", "0", "0")
            starai(logs, priced, "prices", "set", "*", "0.10", "0.40")
            asyncio.run(drive_together((one, other), 1.0))
            found = asyncio.run(drive_together((free, priced), seconds))
            pairs.append(tuple(found))
            print(f"round {number + 1}", *(f"{one['cpu_ms']:.3f}" for one in pairs[-1]), flush=True)
        return pairs


def starai(logs: Path, peer: Peer, *words: str) -> None:
    """A command of the network's operator."""
    program = Path(sys.executable).with_name("starai")
    command = [str(program), *words, "--home", str(logs / peer.name)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class _Outlet:
    congested = False

    def begin(self, status: int, headers: Any, body: Any) -> None:
        assert status == 200, body

    def more(self, data: bytes) -> None:
        """Nobody reads."""

    end = more

    async def drained(self) -> None:
        """Nobody waits."""


async def _ask(app: GatewayApp) -> None:
    headers = [(b"authorization", b"Bearer sk-one"), (b"content-type", b"application/json")]
    incoming = Incoming("POST", b"/v1/chat/completions", headers, 1 << 20)
    incoming.feed(BODY)
    incoming.finish()
    await app.answer(incoming, _Outlet())  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def application(folder: Path, *, priced: bool) -> Any:
    """The gateway's application over scripted tasks, with a registry in memory behind it."""
    async with MemoryNetwork() as wires:
        parties = Parties(wires, clock=SystemClock())
        member = parties.join(Role.GATEWAY)
        async with running_registry(
            parties, {member.identity.party: Role.GATEWAY}, folder
        ) as registry:
            await registry.customers.create("acme")
            await registry.keys.create("one", key_hash=hash_api_key("sk-one"), owner="acme")
            await registry.customers.deposit("acme", 10**15, bytes(16))
            if priced:
                await registry.prices.add("*", 100, 400)
            keys, prices = KeyRing(), PriceBook()
            funding = Funding(member, keys, prices)
            tasks = ScriptedTasks(says("twenty words", tokens_per_part=20))
            app = GatewayApp(
                *(MOCK_GATEWAY, tasks, keys, member.clock, SeededRandomness(1)), funding=funding
            )
            async with (
                follow_keys(member, keys),
                follow_prices(member, prices),
                funding.running(),
                app.running(),
            ):
                while not (prices.loaded and keys.loaded):
                    await asyncio.sleep(0.01)
                yield app, tasks


async def alone(logs: Path, rounds: int) -> list[tuple[float, float]]:
    """CPU-ms a request of the application alone, free and priced, in turn."""
    async with (
        application(logs / "alone-free", priced=False) as (free, free_tasks),
        application(logs / "alone-priced", priced=True) as (priced, priced_tasks),
    ):

        async def turn(app: GatewayApp, tasks: ScriptedTasks) -> float:
            began = time.process_time()
            for _ in range(BATCH):
                await _ask(app)
            spent = (time.process_time() - began) / BATCH * 1000
            for log in (tasks.submissions, tasks.finished):
                log.clear()
            return spent

        sides = ((free, free_tasks), (priced, priced_tasks))
        pairs = []
        for number in range(rounds + 2):
            order = sides if number % 2 == 0 else sides[::-1]
            found = [await turn(*side) for side in order]
            pairs.append((found[0], found[1]) if number % 2 == 0 else (found[1], found[0]))
        return pairs[2:]


HEAD = """# What prices cost the gateway

{today}, {hardware}, Python {python}, load average {load:.1f} at the end.
`python benchmarks/network/paying.py --rounds {rounds} --seconds {seconds:g}`. Goal: at most {goal} ms of the gateway's CPU a
request more than without a price.

| | free | priced | median of the pairs' differences | their quartiles |
|---|---|---|---|---|
| the application alone, scripted tasks, CPU-ms a request | {a_free:.4f} | {a_priced:.4f} | **{a_diff:+.4f}** | {a_low:+.4f} to {a_high:+.4f} |
| the gateway of a whole network, {rate:g} requests a second to both at once, CPU-ms a request | {w_free:.3f} | {w_priced:.3f} | **{w_diff:+.3f}** | {w_low:+.3f} to {w_high:+.3f} |
| the same, all processes | {t_free:.3f} | {t_priced:.3f} | {t_diff:+.3f} | {t_low:+.3f} to {t_high:+.3f} |

{verdict}

{answered} requests were answered on the priced network, none failed. Over all rounds together, its gateway
used {total:+.4f} ms a request more. Every round (free, priced):

```json
{figures}
```
"""  # noqa: E501 - a table's row is a line


def summed(pairs: list[tuple[float, float]], name: str) -> dict[str, float]:
    """Medians, and the differences of the pairs."""
    differences = [priced - free for free, priced in pairs]
    low, middle, high = statistics.quantiles(differences, n=4)
    return {
        f"{name}_free": statistics.median(free for free, _ in pairs),
        f"{name}_priced": statistics.median(priced for _, priced in pairs),
        f"{name}_diff": middle,
        f"{name}_low": low,
        f"{name}_high": high,
    }


def total_ms(large: list[tuple[dict[str, float], ...]], side: int) -> float:
    """CPU-ms a request of one gateway over all rounds: a clock's tick counts for less."""
    spent = sum(pair[side]["cpu_ms"] * pair[side]["requests"] for pair in large)
    return spent / sum(pair[side]["requests"] for pair in large)


def report(
    options: argparse.Namespace,
    small: list[tuple[float, float]],
    large: list[tuple[dict[str, float], ...]],
) -> str:
    """The result file."""
    gateway = [(one["cpu_ms"], other["cpu_ms"]) for one, other in large]
    everything = [(one["tree_ms"], other["tree_ms"]) for one, other in large]
    found = {**summed(small, "a"), **summed(gateway, "w"), **summed(everything, "t")}
    reached = found["a_diff"] <= GOAL_MS and total_ms(large, 1) - total_ms(large, 0) <= GOAL_MS
    figures = {
        "alone": [[round(value, 4) for value in pair] for pair in small],
        "gateway": [[round(value, 3) for value in pair] for pair in gateway],
        "all": [[round(value, 3) for value in pair] for pair in everything],
    }
    return HEAD.format(
        today=dt.datetime.now(dt.UTC).date(),
        hardware=f"{os.cpu_count()} cores {platform.machine()}",
        python=platform.python_version(),
        load=os.getloadavg()[0],
        rounds=options.rounds,
        seconds=options.seconds,
        goal=GOAL_MS,
        rate=RATE,
        verdict="The goal is reached." if reached else "**The goal is not reached in this run.**",
        total=total_ms(large, 1) - total_ms(large, 0),
        answered=int(sum(other["requests"] for _, other in large)),
        figures=json.dumps(figures),
        **found,
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--no-write", action="store_true", help="print the report only")
    options = parser.parse_args()
    logs = Path(tempfile.mkdtemp(prefix="starai-bench-"))
    for name in ("alone-free", "alone-priced"):
        (logs / name).mkdir()
    small = asyncio.run(alone(logs, 4 * options.rounds))
    large = whole(logs, options.rounds, options.seconds)
    text = report(options, small, large)
    print(text)
    if not options.no_write:
        today = dt.datetime.now(dt.UTC).date()
        machine = f"{os.cpu_count()}-cores-{platform.machine()}"
        target = HERE.parent / "results" / f"paying_{machine}_{today}.md"
        target.write_text(text)
        print(f"written: {target.relative_to(ROOT)}")
    shutil.rmtree(logs)


if __name__ == "__main__":
    main()
