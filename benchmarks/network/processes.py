"""What a request costs each process of the network, beside another checkout in the same minutes.

``python benchmarks/network/processes.py --beside PATH`` starts the mock network twice, from this
checkout and from the one at PATH (a clone at an older commit), and drives both in turn, load by
load and round by round: whole answers over 1 and 16 connections, 20-token streams over 16. CPU
time is read from the scheduler's own counters in /proc, to the microsecond. Writes a dated file
into benchmarks/results.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway import ROOT, answers, facts, free_port, running, wait_until
from meter import tree

LOADS = (("c1", 1, False), ("c16", 16, False), ("s16", 16, True))
START = "import sys; sys.argv[0] = 'starai'; from starai.cli.main import main; main()"
HEAD = """# What a request costs each process

{today}, {cores} cores, Python {python}, load average {before:.1f} and {after:.1f} at the end.
`network/processes.py --rounds {rounds} --seconds {seconds:g} --beside ...`: medians. Both
networks are up at the same time and driven in turn. CPU-ms a request by process; c: whole
answers, s: streams of 20 tokens; 1 and 16: connections. On a machine as busy as the load average
says, read the ratios of a row to the one below it: idle work (beats, checkpoints) is in all of
them, and weighs more the fewer requests a second there are.

| load | network | requests/s | median | {names} | all |
|---|---|---|---|{lines}---|
{rows}
"""


@dataclass
class Network:
    """A running network: where it is asked, and its processes by name."""

    name: str
    port: int
    key: str
    pids: dict[str, int]


def cpu_ms(pid: int) -> float:
    """What all threads of a process have run for, in milliseconds."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e6


@contextlib.contextmanager
def network(name: str, checkout: Path, folder: Path) -> Iterator[Network]:
    """The mock network from a checkout's sources."""
    port, log = free_port(), folder / f"{name}.log"
    command = [sys.executable, "-c", START, "up", "--model", "mock", "--no-live", "--json"]
    command += ["--port", str(port), "--nats-port", str(free_port())]
    command += ["--home", str(folder / name)]
    with running(command, log, PYTHONPATH=str(checkout / "src")) as process:
        wait_until(lambda: facts(log) is not None, process, log)
        told = facts(log)
        assert told is not None
        key, found = str(told["api_key"]), told["pids"]
        assert isinstance(found, dict)
        wait_until(lambda: answers(port, key), process, log)
        pids = {str(each).removesuffix("-1"): int(pid) for each, pid in found.items()}
        pids["engine"] = next(pid for pid in tree(pids["node"]) if pid != pids["node"])
        yield Network(name, port, key, pids)


def drive(one: Network, connections: int, stream: bool, seconds: float) -> dict[str, float]:
    """One run of the load generator, with the CPU of each process during it."""
    command = [sys.executable, str(Path(__file__).with_name("load.py")), "--port", str(one.port)]
    command += ["--key", one.key, "--connections", str(connections), "--seconds", str(seconds)]
    before = {name: cpu_ms(pid) for name, pid in one.pids.items()}
    done = subprocess.run(
        [*command, *(["--stream"] if stream else [])], capture_output=True, check=True
    )
    result: dict[str, float] = json.loads(done.stdout)
    assert not result["failed"], result
    spent = {
        name: (cpu_ms(pid) - before[name]) / max(1.0, result["requests"])
        for name, pid in one.pids.items()
    }
    return {"rps": result["rps"], "p50": result["p50_ms"], **spent, "all": sum(spent.values())}


def row(load: str, name: str, runs: list[dict[str, float]]) -> str:
    """A line of the table."""
    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    cells = [f"{middle['rps']:.0f}", f"{middle['p50']:.2f} ms"]
    cells += [f"{value:.3f}" for key, value in middle.items() if key not in ("rps", "p50")]
    return f"| {' | '.join([load, name, *cells])} |"


def main() -> None:
    """Start both networks, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=Path, required=True, help="another checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--no-write", action="store_true", help="print the report only")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    folder = Path(tempfile.mkdtemp(prefix="starai-processes-"))
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    with (
        network("before", options.beside, folder) as before,
        network("now", ROOT, folder) as now,
    ):
        for number in range(-1, options.rounds):  # the first round warms up
            for load, connections, stream in LOADS:
                for one in (before, now) if number % 2 else (now, before):
                    result = drive(one, connections, stream, options.seconds if number >= 0 else 1)
                    if number >= 0:
                        runs.setdefault((load, one.name), []).append(result)
        names = [*now.pids]
    today = dt.datetime.now(dt.UTC).date()
    told = HEAD.format(
        today=today,
        cores=os.cpu_count(),
        python=sys.version.split()[0],
        before=load_before,
        after=os.getloadavg()[0],
        rounds=options.rounds,
        seconds=options.seconds,
        names=" | ".join(names),
        lines="---|" * len(names),
        rows="\n".join(row(load, name, found) for (load, name), found in sorted(runs.items())),
    )
    print(told)
    if not options.no_write:
        place = (
            ROOT / "benchmarks" / "results" / f"processes_{os.cpu_count()}-cores-x86_64_{today}.md"
        )
        place.write_text(told)


if __name__ == "__main__":
    main()
