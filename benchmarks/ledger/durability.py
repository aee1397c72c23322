"""What is lost when the power fails or the process is killed, with the real store and schema.

The trials are those of ``tests/unit/registry/storage/test_durability.py``; this counts them in one
table, the controls with less syncing included, and writes it if told where::

    python benchmarks/ledger/durability.py [--trials 500] [--kills 50] [--result FILE]
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.unit.registry.storage import test_durability as trials

from starai.registry.schema import bind_network
from starai.registry.storage import open_store
from starai.testing.records import BLOCK_MS, NETWORK

HEAD = (
    "| What | Ends | Acknowledged | Ends that lost | Lost | Damaged | Seconds |\n"
    "|---|---|---|---|---|---|---|"
)
POWER_CUTS = (
    ("power cut, `synchronous=FULL` (ours)", trials.FULL, ""),
    ("disk full, then a power cut", trials.FULL, "full"),
    ("a sync fails, then a power cut", trials.FULL, "sync"),
    ("read-only, then a power cut", trials.FULL, "readonly"),
    ("control: power cut, `NORMAL`", trials.NORMAL, ""),
    ("control: power cut, `OFF`", trials.OFF, ""),
)


async def template(folder: Path) -> None:
    """An empty registry of the network."""
    async with open_store(folder / "registry.db", inline=True) as store:
        await store.write(lambda connection: bind_network(connection, NETWORK, BLOCK_MS))


async def power_cuts(folder: Path, num: int) -> list[str]:
    """A line for each kind of end."""
    (made := folder / "template").mkdir()
    await template(made)
    lines = []
    for title, synchronous, fault in POWER_CUTS:
        start = time.perf_counter()
        done = await trials.trials(made, folder, num, synchronous, fault)
        lines.append(
            f"| {title} | {len(done)} | {sum(one.acknowledged for one in done):,} "
            f"| {sum(bool(one.lost) for one in done)} | {sum(one.lost for one in done):,} "
            f"| {sum(one.damaged for one in done)} | {time.perf_counter() - start:.0f} |"
        )
        print(lines[-1], flush=True)
    return lines


async def kills(folder: Path, num: int) -> str:
    """Processes killed -9 under load."""
    start, path = time.perf_counter(), folder / "killed.db"
    given: set[int] = set()
    ends_that_lost = 0
    for run in range(num):
        said = await anyio.to_thread.run_sync(trials.kill, path, run, 10 + 37 * run % 300)
        given |= said
        async with open_store(path) as store:
            ends_that_lost += not said <= await store.read(trials._tasks)
    async with open_store(path) as store:
        lost = len(given - await store.read(trials._tasks))
        problems = (await store.read(trials._check)).problems
    return (
        f"| `kill -9` of a writing process | {num} | {len(given):,} | {ends_that_lost} | {lost} "
        f"| {int(bool(problems))} | {time.perf_counter() - start:.0f} |"
    )


def main() -> None:
    """Count, print, and write the result if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--result", default="")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = anyio.run(power_cuts, folder, arguments.trials)
        lines.append(anyio.run(kills, folder, arguments.kills))
        print(lines[-1])
    if arguments.result:
        head = (
            "# What is lost, 2 cores x86_64, 2026-11-21\n\n"
            f"`python benchmarks/ledger/durability.py {' '.join(sys.argv[1:])}` ·"
            f" Python {platform.python_version()}, load average {os.getloadavg()[0]:.1f} at the"
            " end. A power cut drops half of what was not synced, tears some of the rest at 512"
            " bytes, and reorders it; goal: nothing acknowledged is lost, and the controls are seen"
            " to lose.\n\n"
        )
        Path(arguments.result).write_text(f"{head}{HEAD}\n" + "\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    main()
