"""The simulation of 100,000 nodes for an hour, twice, and policies side by side in a busy city.

Each run is a process of its own, all at once: ``starai simulate SCENARIO --json``. What is shown is
its CPU time and memory, its report, and whether the same seed gave the same fingerprint. Run it
with ``python benchmarks/matching/simulation.py``; ``--once`` runs the large scenario once only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks/results/simulation_2-cores-x86_64_2026-11-21.md"
CITY = ("city", "--hours", "0.05", "--compare")


class Run:
    """One `starai simulate` in a process of its own, begun at once."""

    def __init__(self, *arguments: str) -> None:
        self.began_s = time.monotonic()
        self.out = tempfile.TemporaryFile()  # noqa: SIM115 - read when it has ended
        command = [sys.executable, "-m", "starai.cli", "simulate", *arguments, "--json"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=self.out)

    def wait(self) -> tuple[list[dict[str, Any]], str]:
        """Its reports, and what it cost."""
        _, status, used = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.monotonic() - self.began_s
        self.out.seek(0)
        cost = (
            f"{used.ru_utime + used.ru_stime:.0f} s of CPU time, {wall_s:.0f} s on the wall, "
            f"{used.ru_maxrss / 1024:.0f} MB, exit status {self.process.returncode}"
        )
        return json.load(self.out), cost


def times(of: dict[str, Any]) -> str:
    return " / ".join(f"{of[name]:.2f}" for name in ("p50_s", "p95_s", "p99_s"))


def large(runs: list[Run]) -> list[str]:
    lines = ["## `starai simulate internet`: 100,000 nodes, one hour, churn", ""]
    digests, one = [], {}
    for number, running in enumerate(runs, 1):
        (one,), used = running.wait()
        digests.append(one["fingerprint"])
        told = f"{used}, {one['events']:,} events, fingerprint {digests[-1]}."
        lines.append(f"Run {number}: {told}  ")
    verdict = one["verdict"]
    rows = [
        ("requests", f"{one['requests']:,}"),
        ("answered, refused, lost", (f"{verdict['answered']:,}, {verdict['refused']}, "
         f"{verdict['lost']}")),
        ("faults in the books", f"{verdict['num_faults']}"),
        ("tokens paid; of them by nodes gone since", (f"{verdict['tokens_paid']:,}; "
         f"{verdict['tokens_paid'] - verdict['tokens_confirmed']:,}")),
        ("nodes that joined, left, vanished, hung", ", ".join(
            f"{one['moves'].get(kind, 0):,}" for kind in ("joined", "left", "vanished", "hung"))),
        ("attempts that failed", ", ".join(
            f"{n} {k}" for k, n in one["endings"].items() if k not in ("answered", "outrun"))),
        ("hedges, and those that were first", f"{one['hedged']:,}, {one['hedges_won']:,}"),
        ("first token p50 / p95 / p99 s", times(one["ttft"])),
        ("last token p50 / p95 / p99 s", times(one["finish"])),
        ("from a failure to the next token", f"{one['gap']['number']} times, "
         + times(one["gap"])),
        ("nodes that served at all", f"{one['nodes_used']:,}: the network is far from full"),
    ]  # fmt: skip
    if len(digests) > 1:
        same = "the same" if len(set(digests)) == 1 else "DIFFERENT"
        lines.append(f"Two processes, one seed: {same} fingerprint.")
    return [*lines, "", "| | |", "|---|---|", *(f"| {name} | {what} |" for name, what in rows), ""]


def side_by_side(running: Run) -> list[str]:
    reports, used = running.wait()
    lines = [
        f"## `starai simulate {' '.join(CITY)}`: a thousand nodes at seven tenths",
        "",
        f"{used}, for {reports[0]['requests']:,} requests, four times.",
        "",
        (
            "| policy | first token p50 / p95 / p99 s | last token p50 / p95 / p99 s | answered | "
            "refused | sound |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for one in reports:
        verdict = one["verdict"]
        sound = "yes" if not verdict["lost"] and not verdict["num_faults"] else "NO"
        lines.append(
            f"| {one['policy']} | {times(one['ttft'])} | {times(one['finish'])} | "
            f"{verdict['answered']:,} | {verdict['refused']:,} | {sound} |"
        )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--once", action="store_true")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    head = [
        "# The simulation, 2026-11-21",
        "",
        (
            "2 shared cores, x86_64; others were at work on them, so that CPU time is what counts: "
            f"the load average was {load:.1f} at the beginning."
        ),
        "",
        (
            "Written by `python benchmarks/matching/simulation.py`. What is real in it and "
            "what is modelled is said in docs/howto/simulate.md."
        ),
        "",
    ]
    runs = [Run("internet") for _ in range(1 if options.once else 2)]
    city = Run(*CITY)
    text = "\n".join([*head, *large(runs), *side_by_side(city)])
    RESULT.write_text(text.rstrip() + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
