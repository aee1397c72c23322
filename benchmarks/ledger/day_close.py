"""Closing a day of a million tasks and a hundred thousand payees, and checking it independently.

A database is filled first (not timed): every record signed by both sides, captured, and matured.
Then the day is cut, built, exported and signed as the registry does it; `starai.verifier` checks
the export in a process of its own, with every signature; and another process exports the same
database again, which must give the same bytes. At the end one digit of one leaf is changed, which
must be found.

Run it with ``python benchmarks/ledger/day_close.py [--tasks N] [--payees N] [FOLDER]``.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from starai.registry.days.building import build, keep
from starai.registry.days.epochs import DayTerms, EpochState, advance_state, cut, get_epoch
from starai.registry.days.export import export_all
from starai.registry.days.maturing import MATURED_AT_ONCE, due, mature
from starai.registry.storage.sqlite import SqliteSession, connect, migrate
from starai.settlement.manifest import signed_bytes, with_signature
from starai.testing.closing import ACCOUNT, DAY_MS, FIRST_DAY_MS, NETWORK, PaidNetwork, address

HOUR_MS = 3_600_000
TERMS = DayTerms(network=NETWORK, chain_id=31_337, contract=b"\x07" * 20, maturity_ms=6 * HOUR_MS)
GOAL_S = 60.0
RESULT = Path(__file__).resolve().parents[1] / "results" / "day_close_2-cores-x86_64_2026-11-21.md"
_READING = (
    "Each task is paid by another customer than the one before it: a million captures and"
    " 2.1 million transfers, the most there can be. The check verifies every signature (two for"
    " each payee's confirmations, one for its address) in as many processes as there are cores."
)
#: Nodes in one transaction while the database is filled.
_NODES_AT_ONCE = 2_000


class Timed:
    """Wall and CPU seconds of each step, children included."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, float]] = []

    def run(self, name: str, work):
        """Do ``work`` and note what it took."""
        wall, cpu = time.perf_counter(), _cpu_s()
        done = work()
        took = (time.perf_counter() - wall, _cpu_s() - cpu)
        self.rows.append((name, *took))
        print(f"{name:48} {took[0]:8.2f} s wall {took[1]:8.2f} s CPU", flush=True)
        return done


def _cpu_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def fill(session: SqliteSession, num_tasks: int, num_payees: int) -> None:
    """A day of paid work, bound addresses, and blocks."""
    session.execute("BEGIN")
    network = PaidNetwork(session, num_nodes=num_payees, num_customers=1_000)
    for number in range(num_payees):
        network.bind(number, address(number), FIRST_DAY_MS)
    session.execute("COMMIT")
    for start in range(0, num_payees, _NODES_AT_ONCE):
        at_ms = FIRST_DAY_MS + start
        session.execute("BEGIN")
        network.work(
            num_tasks // num_payees, at_ms, range(start, min(start + _NODES_AT_ONCE, num_payees))
        )
        network.close_block(at_ms)
        session.execute("COMMIT")


def let_mature(session: SqliteSession) -> int:
    """What the registry does every ten minutes, here once for the whole day."""
    now_ms = FIRST_DAY_MS + 12 * HOUR_MS
    events = due(session, now_ms, TERMS.maturity_ms)
    for start in range(0, len(events), MATURED_AT_ONCE):
        session.execute("BEGIN")
        mature(session, events[start : start + MATURED_AT_ONCE])
        session.execute("COMMIT")
    session.execute("BEGIN")
    PaidNetwork.close_block(_Bare(session), now_ms)  # type: ignore[arg-type]
    session.execute("COMMIT")
    return len(events)


class _Bare:
    def __init__(self, session: SqliteSession) -> None:
        self.connection = session


def close_day(session: SqliteSession, exports: Path, timed: Timed) -> str:
    """Cut, build, export, check and sign; the head."""
    session.execute("BEGIN")
    epoch = cut(session, FIRST_DAY_MS + DAY_MS)
    session.execute("COMMIT")
    assert epoch is not None
    built = timed.run("build: sums, leaves, tree, manifest", lambda: build(session, epoch, TERMS))

    def write() -> None:
        session.execute("BEGIN")
        keep(session, built)
        session.execute("COMMIT")

    timed.run("build: written to the database", write)
    timed.run("export", lambda: export_all(session, exports, ACCOUNT.raw))
    said = timed.run("check by the independent verifier", lambda: verified(exports))
    head = built.manifest.head().hex()
    assert said.splitlines()[-1] == f"head {head}", said
    manifest = get_epoch(session, 1).manifest
    signed = with_signature(manifest, ACCOUNT.sign(signed_bytes(manifest)))
    advance_state(session, 1, EpochState.BUILT, EpochState.SIGNED, signed)
    export_all(session, exports, ACCOUNT.raw)
    return said


def verified(exports: Path) -> str:
    """What the verifier says, in its own process."""
    command = [sys.executable, "-m", "starai.verifier", str(exports)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def again(database: Path, folder: Path) -> None:
    """Export the same database from another process."""
    code = (
        "import sys; from pathlib import Path; from starai.registry.days.export import export_all\n"
        "from starai.registry.storage import open_reader\n"
        "with open_reader(sys.argv[1]) as connection:\n"
        "    export_all(connection, Path(sys.argv[2]), bytes.fromhex(sys.argv[3]))"
    )
    arguments = [sys.executable, "-c", code, str(database), str(folder), ACCOUNT.raw.hex()]
    subprocess.run(arguments, check=True)


def differing(one: Path, other: Path) -> list[str]:
    """Files that are not the same bytes."""
    names = sorted(path.relative_to(one).as_posix() for path in one.rglob("*") if path.is_file())
    _, wrong, missing = filecmp.cmpfiles(one, other, names, shallow=False)
    return wrong + missing


def tampered(exports: Path) -> str:
    """What the verifier says once one digit of one leaf in the middle is another."""
    path = exports / "day-000001" / "leaves.txt"
    lines = path.read_text().splitlines(keepends=True)
    middle = len(lines) // 2
    lines[middle] = lines[middle][:-2] + ("1" if lines[middle][-2] != "1" else "2") + "\n"
    path.write_text("".join(lines))
    return verified(exports)


def _summed(timed: Timed, beginnings: tuple[str, ...]) -> tuple[float, float]:
    """Wall and CPU seconds of the steps that begin so."""
    steps = [(wall, cpu) for name, wall, cpu in timed.rows if name.startswith(beginnings)]
    return sum(wall for wall, _ in steps), sum(cpu for _, cpu in steps)


def report(arguments: argparse.Namespace, timed: Timed, facts: dict[str, object]) -> str:
    """The page of results."""
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    goal, goal_cpu = _summed(timed, ("build", "check"))
    wall, cpu = _summed(timed, ("build", "export", "check"))
    lines = [
        "# Closing a day",
        "",
        (
            f"{arguments.tasks:,} tasks, {arguments.payees:,} payees, in one SQLite file;"
            f" {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
        ),
        (
            f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()},"
            f" shared with other work: load average {load} at the end."
        ),
        "",
        (
            f"    python benchmarks/ledger/day_close.py --tasks {arguments.tasks}"
            f" --payees {arguments.payees}"
        ),
        "",
        "| Step | wall s | CPU s |",
        "|---|---|---|",
        *(f"| {name} | {wall:.1f} | {cpu:.1f} |" for name, wall, cpu in timed.rows),
        f"| **build + check** (goal {GOAL_S:.0f} s) | **{goal:.1f}** | {goal_cpu:.1f} |",
        f"| with the files between them written | {wall:.1f} | {cpu:.1f} |",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        (
            f"The goal of {GOAL_S:.0f} s of wall time was"
            f" {'reached' if goal <= GOAL_S else 'missed'} in this run. {_READING}"
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, in a folder given or in a passing one, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--payees", type=int, default=100_000)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    arguments = parser.parse_args()
    timed = Timed()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as passing:
        folder = Path(passing)
        database, exports = folder / "registry.db", folder / "exports"
        session = connect(database)
        migrate(session)
        session.pragma("synchronous", "off")  # filling it is not what is measured
        timed.run(
            "(filled: not part of the day)",
            lambda: fill(session, arguments.tasks, arguments.payees),
        )
        session.pragma("synchronous", "full")
        num = timed.run("mature, spread over the day", lambda: let_mature(session))
        said = close_day(session, exports, timed)
        timed.run("again: exported by a second process", lambda: again(database, folder / "again"))
        wrong = differing(exports, folder / "again")
        size = sum(path.stat().st_size for path in exports.rglob("*") if path.is_file())
        found = timed.run("again: checked, with one leaf changed", lambda: tampered(exports))
        facts = {
            "the verifier saw": ", ".join(said.splitlines()[:-1]),
            "payees that matured": num,
            "export": f"{size / 1e6:,.0f} MB; files that differ when exported again: {len(wrong)}",
            "one changed digit in one leaf": next(
                (line for line in found.splitlines() if "WRONG" in line), "NOT FOUND"
            ),
            "peak memory of this process and of the largest child": " and ".join(
                f"{resource.getrusage(who).ru_maxrss / 1024:,.0f} MB"
                for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            ),
        }
        session.close()
    text = report(arguments, timed, facts)
    print(text)
    if arguments.write:
        RESULT.write_text(text)


if __name__ == "__main__":
    main()
