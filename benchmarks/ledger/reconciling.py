"""How well and how fast the registry tells agreement from each kind of fault.

100,000 tasks are confirmed by both sides, one in a hundred of them with a fault of one of the
classes of the ledger design (section 4.3), in shuffled order; every signature is verified and all
of it goes through the registry's own path into an SQLite file, payments included. Run it with
``python benchmarks/ledger/reconciling.py``; it writes its table into ``benchmarks/results``.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from starai.core.errors import SealBroken
from starai.core.randomness import SeededRandomness
from starai.ledger.reconciling import WINDOW_MS, Standing
from starai.protocol.records import RECORD_BYTES, leaf_hash
from starai.protocol.registry import Confirm, Side
from starai.registry.reconciling.confirmations import check_confirm
from starai.registry.reconciling.tasks import apply
from starai.registry.reconciling.words import Said
from starai.registry.storage import Connection
from starai.registry.storage.sqlite import connect, migrate
from starai.testing.faults import scores, seed_faults
from starai.testing.money import open_books
from starai.testing.records import BLOCK_MS, NETWORK, START_MS, STRANGER

NUM_TASKS = 100_000
SHARE = 0.01
RESULTS = Path(__file__).resolve().parents[1] / "results"


def say(connection: Connection, said: Confirm, at_ms: int, *, roots: bool) -> list[bytes]:
    """Have one confirmation heard in a transaction of its own; the leaves that nobody signed."""
    try:
        if roots and said.side is Side.NODE and hear(connection, without_records(said), at_ms):
            return []
        hear(connection, said, at_ms)
    except SealBroken:
        data = said.records
        starts = range(0, len(data), RECORD_BYTES)
        return [leaf_hash(data[start : start + RECORD_BYTES]) for start in starts]
    return []


def without_records(said: Confirm) -> Confirm:
    """What a node says first."""
    return msgspec.structs.replace(said, records=b"")


def hear(connection: Connection, said: Confirm, at_ms: int) -> bool:
    """Check and apply; False if the records are wanted."""
    checked = check_confirm(said, NETWORK, BLOCK_MS)
    connection.execute("BEGIN IMMEDIATE")
    unknown = said.distributor == STRANGER.party
    (answer,) = apply(connection, [Said(said, checked, at_ms, unknown)])
    connection.execute("COMMIT")
    return answer is not None


def measure(folder: Path, *, roots: bool) -> tuple[list[str], float]:
    """The table's rows, and the CPU seconds of it all."""
    seeded = seed_faults(NUM_TASKS, SHARE, SeededRandomness(11))
    connection = connect(folder / f"{roots}.db")
    migrate(connection)
    open_books(connection)
    forged: list[bytes] = []
    if roots:  # a node lets its distributor speak first
        seeded.said.sort(key=lambda said: said.side is Side.NODE)
    began, cpu = time.perf_counter(), time.process_time()
    for said in seeded.said:
        forged += say(connection, said, START_MS, roots=roots)
    for said in seeded.late:
        say(connection, said, START_MS + WINDOW_MS + 1, roots=roots)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    found = {
        leaf: Standing(state) for leaf, state in connection.execute("SELECT leaf, state FROM task")
    }
    found |= dict.fromkeys(forged, Standing.BAD_SIG)
    connection.close()
    lines = [
        f"| {standing.name} | {num} | {precision:.4f} | {recall:.4f} |"
        for standing, (num, precision, recall) in scores(seeded.expected, found).items()
    ]
    print(f"roots={roots}: {wall_s:.2f} s, {cpu_s:.2f} CPU s")
    rate = NUM_TASKS / cpu_s
    what = "nodes say roots where they can" if roots else "both sides say all records"
    lines.append(
        f"\n{what}: {wall_s:.1f} s for {NUM_TASKS:,} tasks, {cpu_s:.1f} s of CPU:"
        f" {rate:,.0f} tasks a second and core, each confirmed by both sides.\n"
    )
    return lines, cpu_s


def main() -> None:
    """Measure both ways of confirming, and write the result file."""
    with tempfile.TemporaryDirectory() as folder:
        by_records, _ = measure(Path(folder), roots=False)
        by_roots, _ = measure(Path(folder), roots=True)
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    head = "| Class | Records | Precision | Recall |\n|---|---|---|---|"
    text = "\n".join(
        [
            f"# Reconciliation, 2 cores {platform.machine()}, 2026-11-21\n",
            (
                f"`python benchmarks/ledger/reconciling.py` · Python {platform.python_version()} ·"
                " SQLite in WAL with synchronous=FULL, one transaction a confirmation of up to"
                f" 1,000 records, Ed25519 verified, each task priced and paid · load averages"
                f" {load}; goal 10 s and 1.0 for every class.\n"
            ),
            head,
            *by_records,
            head,
            *by_roots,
        ]
    )
    hardware = f"2-cores-{platform.machine()}"
    (RESULTS / f"reconciling_{hardware}_2026-11-21.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
