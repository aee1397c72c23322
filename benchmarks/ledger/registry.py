"""How fast the registry makes confirmations durable, on this disk, in one process.

Three figures: the latency of one lone confirmation (about one fsync), the throughput of many
small ones that share commits, and the throughput of full blocks from both sides of each task.
Every signature is verified. Run it with ``python benchmarks/ledger/registry.py [FOLDER]``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import anyio

from starai.core.clock import SystemClock
from starai.protocol.registry import Confirm, Side
from starai.protocol.subjects import Role
from starai.registry.parties import Parties
from starai.registry.reconciling.confirmations import Confirmations
from starai.registry.schema import bind_network
from starai.registry.storage import Store, open_store
from starai.testing.records import BLOCK_MS, DISTRIBUTOR, NETWORK, NODES, confirm, record

ROLES = {DISTRIBUTOR.party: Role.DISTRIBUTOR, NODES[0].party: Role.NODE}
SIGNERS = {Side.NODE: NODES[0], Side.DISTRIBUTOR: DISTRIBUTOR}


def words(first: int, num: int, size: int, sides: tuple[Side, ...]) -> list[Confirm]:
    """``num`` confirmations of ``size`` records each, from every side."""
    made = []
    for start in range(first, first + num * size, size):
        records = [record(number) for number in range(start, start + size)]
        made += [confirm(side, records, SIGNERS[side]) for side in sides]
    return made


async def say(confirmations: Confirmations, said: list[Confirm], at_once: int) -> list[float]:
    """Hand in all of ``said``, ``at_once`` at a time; the latency of each in seconds, sorted."""
    waiting, took = list(reversed(said)), []

    async def work() -> None:
        while waiting:
            one = waiting.pop()
            start = time.perf_counter()
            await confirmations.handle(one.signer, one)
            took.append(time.perf_counter() - start)

    async with anyio.create_task_group() as tasks:
        for _ in range(at_once):
            tasks.start_soon(work)
    return sorted(took)


def show(name: str, said: list[Confirm], took: list[float], wall_s: float, cpu_s: float) -> None:
    """One line of results."""
    records = sum(len(one.records) // 264 for one in said)
    p50, p99 = took[len(took) // 2] * 1000, took[int(len(took) * 0.99)] * 1000
    print(
        f"{name:34} {len(said) / wall_s:9.0f} confirms/s {records / wall_s:9.0f} records/s"
        f"   p50 {p50:7.1f} ms   p99 {p99:7.1f} ms   {cpu_s / records * 1e6:6.1f} CPU-us/record"
    )


async def measure(store: Store) -> None:
    """All three cases on one file."""
    await store.write(lambda connection: bind_network(connection, NETWORK, BLOCK_MS))
    confirmations = Confirmations(store, Parties(store, ROLES), NETWORK, BLOCK_MS, SystemClock())
    both = (Side.NODE, Side.DISTRIBUTOR)
    for name, said, at_once in (
        ("one record, one at a time", words(0, 300, 1, both[:1]), 1),
        ("one record, 64 at once", words(10_000, 3000, 1, both[:1]), 64),
        ("1,000 records, both sides, 8 at once", words(100_000, 50, 1000, both), 8),
    ):
        wall, cpu = time.perf_counter(), time.process_time()
        took = await say(confirmations, said, at_once)
        show(name, said, took, time.perf_counter() - wall, time.process_time() - cpu)


async def main() -> None:
    """Measure in a folder given, or in a passing one."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as folder:
        path = Path(folder) / "registry.db"
        async with open_store(path) as store:
            await measure(store)
        print(f"{'bytes per record, both sides':34} {path.stat().st_size / 53_300:9.0f}")


if __name__ == "__main__":
    anyio.run(main)
