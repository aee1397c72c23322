"""What checking a day costs when there were days before: from the first block, and from the last.

Days of paid work are closed one after another, each exported as the registry does it. After each,
`starai.verifier` checks the export twice, as one process of its own each time: from the first
block, and from what its last check kept. Both must say the same. Given are CPU time and peak memory
of that process, as the system counted them.

Run it with ``python benchmarks/ledger/days_after.py [--days N] [--tasks N] [--payees N] [FOLDER]``.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from starai.registry.days.building import build, keep
from starai.registry.days.epochs import DayTerms, EpochState, advance_state, cut
from starai.registry.days.export import export_all
from starai.registry.days.maturing import MATURED_AT_ONCE, due, mature
from starai.registry.storage.sqlite import SqliteSession, connect, migrate
from starai.settlement.manifest import signed_bytes, with_signature
from starai.testing.closing import ACCOUNT, DAY_MS, FIRST_DAY_MS, NETWORK, PaidNetwork, address

HOUR_MS = 3_600_000
TERMS = DayTerms(network=NETWORK, chain_id=31_337, contract=b"\x07" * 20, maturity_ms=6 * HOUR_MS)
RESULT = Path(__file__).resolve().parents[1] / "results" / "days_after_2-cores-x86_64_2026-11-21.md"
#: Nodes in one transaction, and so in one block.
_NODES_AT_ONCE = 1_000


class Check(NamedTuple):
    """What one run of the verifier said and took."""

    said: list[str]
    wall_s: float
    cpu_s: float
    peak_mb: float


class Row(NamedTuple):
    """A day: its checks from the first block and from the day before, and what was kept, in MB."""

    whole: Check
    rest: Check
    kept_mb: float


def days(
    session: SqliteSession, exports: Path, num_days: int, num_tasks: int, num_payees: int
) -> Iterator[str]:
    """Close day after day; the head of each when it is exported."""
    session.execute("BEGIN")
    network = PaidNetwork(session, num_nodes=num_payees, num_customers=1_000)
    for number in range(num_payees):
        network.bind(number, address(number), FIRST_DAY_MS)
    session.execute("COMMIT")
    for day in range(num_days):
        start_ms = FIRST_DAY_MS + day * DAY_MS
        for start in range(0, num_payees, _NODES_AT_ONCE):
            session.execute("BEGIN")
            chosen = range(start, min(start + _NODES_AT_ONCE, num_payees))
            network.work(num_tasks // num_payees, start_ms + start, chosen)
            network.close_block(start_ms + start)
            session.execute("COMMIT")
        now_ms = start_ms + 12 * HOUR_MS
        events = due(session, now_ms, TERMS.maturity_ms)
        for start in range(0, len(events), MATURED_AT_ONCE):
            session.execute("BEGIN")
            mature(session, events[start : start + MATURED_AT_ONCE])
            session.execute("COMMIT")
        session.execute("BEGIN")
        network.close_block(now_ms)
        session.execute("COMMIT")
        yield _closed(session, start_ms + DAY_MS, exports)


def _closed(session: SqliteSession, before_ms: int, exports: Path) -> str:
    session.execute("BEGIN")
    epoch = cut(session, before_ms)
    assert epoch is not None
    built = build(session, epoch, TERMS)
    keep(session, built)
    text = built.manifest.text()
    signed = with_signature(text, ACCOUNT.sign(signed_bytes(text)))
    advance_state(session, epoch.epoch, EpochState.BUILT, EpochState.SIGNED, signed)
    session.execute("COMMIT")
    export_all(session, exports, ACCOUNT.raw)
    return built.manifest.head().hex()


def checked(exports: Path, *options: str) -> Check:
    """One run of the verifier, as the registry runs it."""
    out = exports.with_name("said")
    command = [sys.executable, "-m", "starai.verifier", "--gently", *options, str(exports)]
    start_s = time.perf_counter()
    opened = (os.POSIX_SPAWN_OPEN, 1, str(out), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=[opened])
    _, status, used = os.wait4(pid, 0)
    wall_s = time.perf_counter() - start_s
    said = out.read_text().splitlines()
    assert status == 0, said
    return Check(said, wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def measured(session: SqliteSession, folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    """Close days, and check each twice."""
    exports, kept = folder / "exports", folder / "kept"
    for number, head in enumerate(
        days(session, exports, arguments.days, arguments.tasks, arguments.payees), 1
    ):
        whole = checked(exports)
        rest = checked(exports, "--kept", str(kept))
        assert whole.said == rest.said[1:], (whole.said, rest.said)
        assert whole.said[-1] == f"head {head}"
        row = Row(whole, rest, kept.stat().st_size / 1e6)
        print(
            f"day {number}: {whole.cpu_s:.1f} s CPU, {whole.peak_mb:.0f} MB;"
            f" {rest.said[0]}: {rest.cpu_s:.1f} s CPU, {rest.peak_mb:.0f} MB;"
            f" kept {row.kept_mb:.1f} MB",
            flush=True,
        )
        yield row


def report(arguments: argparse.Namespace, rows: list[Row]) -> str:
    """The page of results."""
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    lines = [
        "# Checking a day after others",
        "",
        (
            f"{arguments.tasks:,} tasks a day, {arguments.payees:,} payees, 1,000 customers;"
            f" {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
        ),
        (
            f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()},"
            f" shared with other work: load average {load} at the end. Read CPU time."
        ),
        "",
        (
            f"    python benchmarks/ledger/days_after.py --days {arguments.days}"
            f" --tasks {arguments.tasks} --payees {arguments.payees}"
        ),
        "",
        "| day | all: CPU s | wall s | MB | from the last check: CPU s | wall s | MB | kept, MB |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {number} | {whole.cpu_s:.1f} | {whole.wall_s:.1f} | {whole.peak_mb:.0f}"
            f" | {rest.cpu_s:.1f} | {rest.wall_s:.1f} | {rest.peak_mb:.0f} | {kept_mb:.1f} |"
            for number, (whole, rest, kept_mb) in enumerate(rows, 1)
        ),
        "",
        (
            "Memory is the peak of the process. On the first day nothing is kept, so the second"
            " check of it is one of everything that also writes what it keeps. Both checks said"
            f" the same each day; on the last, {', '.join(rows[-1].whole.said[:-1])}."
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, in a folder given or in a passing one, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--days", type=int, default=4)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--payees", type=int, default=10_000)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as passing:
        session = connect(Path(passing) / "registry.db")
        migrate(session)
        session.pragma("synchronous", "off")  # filling it is not what is measured
        rows = []
        for row in measured(session, Path(passing), arguments):
            rows.append(row)
            text = report(arguments, rows)
            if arguments.write:  # after each day: who stops it early has the days so far
                RESULT.write_text(text)
        session.close()
    print(text)


if __name__ == "__main__":
    main()
