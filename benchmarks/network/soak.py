"""A long time of mock requests through the real services: does anything grow, leak or get lost?

``python benchmarks/network/soak.py --requests 1000000 --seconds 480``: whichever comes first.
`starai up --model mock` runs whole; whole answers and streams take turns, and in one slice of ten
every second client hangs up in the middle. After each slice the resident memory of every process is
read. At the end, idle: requests in flight by /metrics, tasks that run or wait by everybody's beats,
and the ledger must hold each answered request once, agreed by both sides (and those hung up on, as
far as tokens were accepted). Writes a dated file into benchmarks/results.
"""

from __future__ import annotations

import argparse
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
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from gateway import HERE, ROOT, Peer, hardware, starai
from meter import cpu_s, resident_mb, tree

from starai.local.asking import operator
from starai.local.home import Home
from starai.protocol.subjects import Role

CONNECTIONS = 16
SLICE_S = 15.0
#: Caches and tables fill during this share of the run; growth is judged by what comes after.
WARM_UP = 0.4
#: Growth below this is the allocator's, not a leak, MB over the judged part of the run.
FLAT_MB = 4.0


@dataclass
class Sample:
    """What was seen after a slice."""

    at_s: float
    requests: int
    mb: dict[str, float]


@dataclass
class Soak:
    """The run so far."""

    answered: int = 0
    failed: int = 0
    hung_up: int = 0
    samples: list[Sample] = field(default_factory=list)


def names(root: int) -> dict[int, str]:
    """The processes of a network, by what they do."""
    found = {}
    for pid in tree(root):
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        line = " ".join(words)
        kinds = {
            "starai.cli serve gateway": "gateway",
            "starai.cli serve distributor": "distributor",
            "starai.cli serve registry": "registry",
            "starai.cli node": "node",
            "starai.engines.worker": "engine",
            "nats.conf": "nats",
        }
        found[pid] = next((name for mark, name in kinds.items() if mark in line), "starai up")
    return found


def drive(peer: Peer, seconds: float, *, stream: bool, hang_up: bool = False) -> dict[str, float]:
    """One slice of load."""
    command = [sys.executable, str(HERE / "load.py"), "--port", str(peer.port)]
    command += [f"--key={peer.key}", "--connections", str(CONNECTIONS), "--seconds", str(seconds)]
    command += ["--stream"] if stream else []
    command += ["--hang-up"] if hang_up else []
    done = subprocess.run(command, capture_output=True, check=True)
    return dict(json.loads(done.stdout))


def run(peer: Peer, requests: int, seconds: float) -> Soak:
    """Slices of load until enough requests were answered, or the time is up."""
    soak, began, number = Soak(), time.monotonic(), 0
    while soak.answered < requests and time.monotonic() - began < seconds:
        number += 1
        left_s = max(2.0, min(SLICE_S, seconds - (time.monotonic() - began)))
        hang_up = number % 10 == 5
        result = drive(peer, left_s, stream=number % 2 == 0 or hang_up, hang_up=hang_up)
        soak.answered += int(result["requests"])
        soak.failed += int(result["failed"])
        soak.hung_up += int(result.get("hung_up", 0))
        mb = {name: resident_mb([pid]) for pid, name in names(peer.root).items()}
        soak.samples.append(Sample(time.monotonic() - began, soak.answered, mb))
        told = " ".join(f"{name}={value:.1f}" for name, value in sorted(mb.items()))
        print(f"{soak.samples[-1].at_s:5.0f} s {soak.answered:8} answered  {told}", flush=True)
    return soak


def growth(soak: Soak) -> dict[str, tuple[float, float, float]]:
    """For each process: MB at the end, MB gained since the warm-up, KB a thousand requests.

    The gain is between the medians of the first and of the last third of what was judged.
    """
    kept = soak.samples[int(len(soak.samples) * WARM_UP) :]
    third = max(1, len(kept) // 3)
    between = kept[-1].requests - kept[0].requests
    found = {}
    for name in kept[-1].mb:
        early = statistics.median(s.mb[name] for s in kept[:third] if name in s.mb)
        late = statistics.median(s.mb[name] for s in kept[-third:] if name in s.mb)
        gained = late - early
        found[name] = (kept[-1].mb[name], gained, gained * 1000 / max(1, between) * 1000)
    return found


async def at_idle(home: Home, expected: int) -> dict[str, object]:
    """What is still counted anywhere when nothing is asked for any more; and the books."""
    async with operator(home) as asked:
        totals: dict[str, int] = {}
        for _ in range(60):  # the last block is confirmed when it is over
            report = await asked.ask("ledger", limit=1)
            totals = dict(report["totals"])
            if totals["matched"] >= expected and not totals["waiting"]:
                break
            await anyio.sleep(1)
        beats = await asked.listen(2.0)
        busy = {
            f"{role.value}.{what}": sum(
                getattr(one, what) for one in beats if one.role == role.value
            )
            for role in (Role.GATEWAY, Role.DISTRIBUTOR, Role.NODE)
            for what in ("running", "queued")
        }
        return {"ledger": totals, **busy}


def metric(port: int, name: str) -> float:
    """A sample of the gateway's /metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        for line in reply.read().decode().splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
    return float("nan")


HEAD = """# A long run: memory and what is still counted when it is over

{today}, {hardware}, Python {python}, load average {load:.1f} at the end. Written by
`python benchmarks/network/soak.py {options}`; the method is in its docstring.

{answered} requests answered in {minutes:.1f} minutes ({failed} failed), {hung_up} clients hung up
in the middle, over {connections} connections. CPU of all processes: {cpu:.2f} ms a request.

| process | resident at the end | gained after the warm-up | a thousand requests | flat |
|---|---|---|---|---|
{rows}

The gain is between the medians of the first and the last third after a warm-up of {warm:.0%};
{flat:g} MB and less count as flat.

| counted at idle | |
|---|---|
{idle}
"""


def report(soak: Soak, idle: dict[str, object], cpu_ms: float, options: str) -> str:
    """The result file."""
    rows = []
    for name, (mb, gained, rate) in sorted(growth(soak).items()):
        flat = "yes" if gained <= FLAT_MB else "NO"
        rows.append(f"| {name} | {mb:.1f} MB | {gained:+.2f} MB | {rate:+.1f} KB | {flat} |")
    return HEAD.format(
        today=dt.datetime.now(dt.UTC).date(),
        hardware=hardware(),
        python=platform.python_version(),
        load=os.getloadavg()[0],
        options=options,
        answered=soak.answered,
        minutes=soak.samples[-1].at_s / 60,
        failed=soak.failed,
        hung_up=soak.hung_up,
        connections=CONNECTIONS,
        cpu=cpu_ms,
        rows="\n".join(rows),
        warm=WARM_UP,
        flat=FLAT_MB,
        idle="\n".join(f"| {name} | {value} |" for name, value in idle.items()),
    )


def main() -> None:
    """Run, look, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--no-write", action="store_true", help="print the report only")
    options = parser.parse_args()
    logs = Path(tempfile.mkdtemp(prefix="starai-soak-"))
    with starai(logs) as peer:
        before = cpu_s(tree(peer.root))
        soak = run(peer, options.requests, options.seconds)
        cpu_ms = (cpu_s(tree(peer.root)) - before) / max(1, soak.answered) * 1000
        time.sleep(2.0)
        idle: dict[str, object] = {
            name: metric(peer.port, f"starai_gateway_{name}")
            for name in ("in_flight", "hang_ups_total")
        }
        # One more request made sure that the network was ready.
        idle |= anyio.run(at_idle, Home(logs / "home"), soak.answered + 1)
    how = f"--requests {options.requests} --seconds {options.seconds:g}"
    text = report(soak, idle, cpu_ms, how)
    print(text)
    if not options.no_write:
        today = dt.datetime.now(dt.UTC).date()
        machine = f"{os.cpu_count()}-cores-{platform.machine()}"
        target = HERE.parent / "results" / f"soak_{machine}_{today}.md"
        target.write_text(text)
        print(f"written: {target.relative_to(ROOT)}")
    shutil.rmtree(logs)


if __name__ == "__main__":
    main()
