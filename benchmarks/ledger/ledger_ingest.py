"""How much the registry keeps durable in a sustained minute: both sides, money and blocks on.

Confirmations are made and signed beforehand, in a process of its own, so that both cores are the
registry's. From then on all is real: each frame is decoded, its signature verified, its records
matched and paid for, blocks are closed and signed, and an answer counts once it is on disk::

    python benchmarks/ledger/ledger_ingest.py [--seconds 60] [--postgres] [--only CASE,...]

With ``--result FILE`` it writes what it found there. Peak memory grows with the frames made
beforehand on disk, not in memory.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from starai.cli.running import HAS_UVLOOP
from starai.core.clock import SystemClock
from starai.core.collecting import collect_rarely
from starai.core.randomness import SeededRandomness, SystemRandomness, uuid7
from starai.ledger.events import Deposited, HoldPlaced
from starai.protocol.api_keys import hash_api_key
from starai.protocol.frames import decode, encode
from starai.protocol.identity import Identity, KeyKind
from starai.protocol.records import TaskRecord
from starai.protocol.registry import Confirm, Side
from starai.protocol.subjects import Role
from starai.registry.money.books import apply_event
from starai.registry.service import CONFIRM_WORKERS, Registry, RegistryConfig
from starai.registry.storage import Store, open_store
from starai.testing.postgres import find_binaries, passing_server
from starai.testing.records import NETWORK, confirm
from starai.wire.memory import MemoryNetwork

BLOCK_MS = 10_000
#: As `starai serve` runs a service.
LOOP = {"use_uvloop": HAS_UVLOOP}
_CHANCE = SeededRandomness(5)
ACCOUNT = Identity.create(_CHANCE, KeyKind.ACCOUNT)
DISTRIBUTOR, SELF = Identity.create(_CHANCE), Identity.create(_CHANCE)
NODES = tuple(Identity.create(_CHANCE) for _ in range(50))
PAYERS = 100
INPUT_NANO, OUTPUT_NANO = 20, 60
#: A payer's deposit: more than any case here spends.
DEPOSIT_NANO = 1_000_000_000_000
#: The node's word on a batch follows the distributor's by so many confirmations: more than are in
#: work at once, so that it always finds it.
BEHIND = 24


@dataclass(frozen=True)
class Case:
    """One measurement: records in a confirmation, confirmations in work at once, and sides."""

    title: str
    size: int
    at_once: int
    seconds: float
    records_max: int
    sides: tuple[Side, ...] = (Side.DISTRIBUTOR, Side.NODE)
    by_root: bool = False
    goal: str = ""


def cases(seconds: float) -> dict[str, Case]:
    """What is measured, by name; PostgreSQL gets the same."""
    return {
        "blocks": Case(
            *("block confirmations, both sides", 1000, 4, seconds),
            *(int(seconds * 20_000),),
            by_root=True,
            goal=">= 15,000 records/s, p99 commit <= 250 ms",
        ),
        "whole": Case(
            *("the same, nodes send their records too", 1000, 4, seconds / 3),
            *(int(seconds * 8_000),),
            goal="reported",
        ),
        "signed": Case(
            *("one record and both signatures a record", 1, CONFIRM_WORKERS, seconds / 3),
            *(int(seconds * 2_000),),
            goal=">= 3,000 records/s",
        ),
        "rooted": Case(
            *("the same, nodes sign the root alone, as they do", 1, CONFIRM_WORKERS, seconds / 3),
            *(int(seconds * 2_000),),
            by_root=True,
            goal="reported",
        ),
        "single": Case(
            *("one confirmation at a time", 1, 1, seconds / 6, int(seconds * 500)),
            sides=(Side.DISTRIBUTOR,),
            goal="p99 acknowledgement <= 20 ms",
        ),
    }


def make(case: Case, path: Path) -> None:
    """Write the case's frames, each after its length, in the order in which they arrive."""
    clock, chance = SystemClock(), SystemRandomness()
    waiting: list[bytes] = []
    with path.open("wb") as file:

        def put(frame: bytes) -> None:
            file.write(struct.pack("<I", len(frame)) + frame)

        for number in range(case.records_max // case.size):
            node = NODES[number % len(NODES)]
            records = [_record(clock, chance, node) for _ in range(case.size)]
            records = [one for one in records if one.block(BLOCK_MS) == records[0].block(BLOCK_MS)]
            block = records[0].block(BLOCK_MS)
            put(encode(confirm(case.sides[0], records, DISTRIBUTOR, block=block)))
            if len(case.sides) > 1:
                by_root = case.by_root
                said = confirm(case.sides[1], records, node, by_root=by_root, block=block)
                waiting.append(encode(said))
                if len(waiting) > BEHIND:
                    put(waiting.pop(0))
        for frame in waiting:
            put(frame)


def _record(clock: SystemClock, chance: SystemRandomness, node: Identity) -> TaskRecord:
    drawn = chance.take(36)
    prompt, answer = 20 + drawn[0], 20 + drawn[1]
    now_ms = clock.now_ms()
    return TaskRecord(
        task_id=uuid7(clock, chance),
        attempt=0,
        node=node.raw,
        distributor=DISTRIBUTOR.raw,
        customer=1 + drawn[2] % PAYERS,
        model_root=b"m" * 32,
        prompt_tokens=prompt,
        answer_tokens=answer,
        price_id=1,
        charge_nano_usd=prompt * INPUT_NANO + answer * OUTPUT_NANO,
        offered_ms=now_ms - 5,
        closed_ms=now_ms,
        request_hash=drawn[4:36],
        answer_hash=drawn[3:35],
        proof_hash=b"p" * 32,
    )


def frames(path: Path) -> Iterator[bytes]:
    """What `make` wrote."""
    with path.open("rb", buffering=1 << 20) as file:
        while head := file.read(4):
            yield file.read(struct.unpack("<I", head)[0])


@dataclass
class Measured:
    """What came of a case; times in seconds."""

    case: Case
    wall_s: float = 0.0
    cpu_s: float = 0.0
    records: int = 0
    confirmations: int = 0
    acknowledgements: list[float] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)
    windows: list[int] = field(default_factory=list)
    blocks: int = 0
    bytes_a_record: float = 0.0
    load: float = 0.0

    def line(self) -> str:
        """One row of the table."""
        acknowledged, committed = sorted(self.acknowledgements), sorted(self.commits)
        slowest = min(self.windows, default=0)
        return (
            f"| {self.case.title} | {self.records / self.wall_s:,.0f} | {slowest:,} "
            f"| {_at(committed, 0.5)} / {_at(committed, 0.99)} "
            f"| {_at(acknowledged, 0.5)} / {_at(acknowledged, 0.99)} "
            f"| {self.cpu_s / self.records * 1e6:.0f} | {self.cpu_s / self.wall_s:.2f} "
            f"| {self.bytes_a_record:.0f} | {self.load:.1f} | {self.case.goal} |"
        )


def _at(times: list[float], part: float) -> str:
    return f"{times[int((len(times) - 1) * part)] * 1000:.1f}" if times else "-"


HEAD = (
    "| What | Records/s | worst second | Commit p50 / p99 ms | Acknowledged p50 / p99 ms "
    "| CPU µs a record | CPUs | Bytes a record | Load | Goal |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


class _Meter:
    """Counts what is acknowledged, by the second."""

    def __init__(self, measured: Measured) -> None:
        self.measured = measured
        self.start = time.perf_counter()
        self.matched: dict[int, int] = {}

    def note(self, took_s: float, matched: int, num_records: int) -> None:
        measured = self.measured
        measured.acknowledgements.append(took_s)
        measured.confirmations += 1
        done = matched if len(measured.case.sides) > 1 else num_records
        measured.records += done
        second = int(time.perf_counter() - self.start)
        self.matched[second] = self.matched.get(second, 0) + done

    def stop(self) -> None:
        self.measured.wall_s = time.perf_counter() - self.start
        whole = range(int(self.measured.wall_s))
        self.measured.windows = [self.matched.get(second, 0) for second in whole]


@asynccontextmanager
async def registry_at(location: Path | str) -> AsyncIterator[tuple[Registry, Store]]:
    """A registry with everything on, as `starai serve registry` runs it but for NATS."""
    roles = {DISTRIBUTOR.party: Role.DISTRIBUTOR, **{n.party: Role.NODE for n in NODES}}
    config = RegistryConfig(NETWORK, BLOCK_MS, parties=roles)
    async with open_store(location) as store, MemoryNetwork() as network:
        wire = network.connect(SELF.party, Role.REGISTRY)
        registry = Registry(config, wire, store, ACCOUNT, SystemClock(), SystemRandomness())
        async with anyio.create_task_group() as tasks:
            await tasks.start(registry.run)
            yield registry, store
            tasks.cancel_scope.cancel()


async def fund(registry: Registry, store: Store) -> None:
    """One price for all models, and payers with more than they will spend."""
    await registry.prices.add("*", INPUT_NANO, OUTPUT_NANO)
    for number in range(1, PAYERS + 1):
        entry = await registry.keys.create(f"p{number}", key_hash=hash_api_key(f"sk-{number}"))
        mark = number.to_bytes(15, "big")
        events = (
            Deposited(event_id=mark + b"d", at_ms=1, customer=entry.owner, amount=DEPOSIT_NANO),
            HoldPlaced(
                event_id=mark + b"h",
                at_ms=1,
                hold_id=mark + b"i",
                customer=entry.owner,
                payer=entry.customer,
                amount=DEPOSIT_NANO // 2,
                expires_ms=1 << 50,
                gateway=SELF.raw,
            ),
        )
        for event in events:
            await store.write(lambda connection, event=event: apply_event(connection, event))


def time_commits(store: Store, commits: list[float]) -> None:
    """Have each transaction's time noted, from its beginning to its being on disk."""
    writer = store._writer
    began, commit, begin = [0.0], writer.commit, writer.begin

    def timed_begin(*, writing: bool) -> None:
        began[0] = time.perf_counter()
        begin(writing=writing)

    def timed_commit() -> None:
        commit()
        commits.append(time.perf_counter() - began[0])

    writer.begin, writer.commit = timed_begin, timed_commit


def _cpu_s() -> float:
    """What this process took, and those that it has ended: the one that checks signatures."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


async def ingest(case: Case, path: Path, location: Path | str) -> Measured:
    """Hand in the frames of ``path`` until they or the time are over."""
    measured = Measured(case)
    async with registry_at(location) as (registry, store):
        await fund(registry, store)
        time_commits(store, measured.commits)
        waiting, cpu_s = frames(path), _cpu_s()
        meter = _Meter(measured)

        async def work() -> None:
            for frame in waiting:
                begun = time.perf_counter()
                if begun - meter.start > case.seconds:
                    return
                said = decode(frame, Confirm)
                answer, outcome = await registry.confirmations.handle(said.signer, said)
                assert (answer.ok, answer.code) == (True, ""), answer
                registry.blocks.note(outcome.fresh)
                meter.note(time.perf_counter() - begun, outcome.matched, said.count)

        async with anyio.create_task_group() as tasks:
            for _ in range(case.at_once):
                tasks.start_soon(work)
        meter.stop()
        ((measured.blocks,),) = await store.read(
            lambda connection: list(connection.execute("SELECT count(*) FROM block"))
        )
    measured.cpu_s = _cpu_s() - cpu_s
    if isinstance(location, Path):
        measured.bytes_a_record = location.stat().st_size / measured.records
    measured.load = os.getloadavg()[0]
    return measured


#: Records that wait for their other side, made by SQLite itself: a million take seconds.
OPEN = """
WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?)
INSERT INTO task (task_id, attempt, leaf, sides, state, block, node, dist, cust, model, in_tok,
  out_tok, price_id, charge, closed_ms, dist_confirm, rec)
SELECT CAST(printf('%016d', n) AS BLOB), 0, randomblob(32), 2, 2, 1, ?2, ?3, 1 + n % 100,
  zeroblob(32), 20, 20, 1, 1600, ?4, NULL, randomblob(264) FROM number
"""


async def restart(location: Path, num: int) -> tuple[float, float]:
    """Seconds from opening a database with ``num`` open records to the first acknowledgement."""
    now_ms = SystemClock().now_ms()
    async with registry_at(location) as (registry, store):
        await fund(registry, store)
        bindings = (num, NODES[0].raw, DISTRIBUTOR.raw, now_ms)
        await store.write(lambda connection: connection.execute(OPEN, bindings))
        await registry.blocks.close_now()
        counted = await store.read(lambda c: list(c.execute("SELECT count(*) FROM task")))
        assert counted == [(num,)]
    took = []
    for _ in range(2):
        record = _record(SystemClock(), SystemRandomness(), NODES[1])
        block = record.block(BLOCK_MS)
        said = confirm(Side.DISTRIBUTOR, [record], DISTRIBUTOR, block=block)
        start = time.perf_counter()
        async with registry_at(location) as (registry, _):
            answer, _ = await registry.confirmations.handle(said.signer, said)
            assert answer.ok
            took.append(time.perf_counter() - start)
    return took[0], took[1]


def made_apart(name: str, seconds: float, folder: Path) -> Path:
    """The frames of a case, `make`-d in a process of its own: its memory is not ours."""
    path = folder / f"{name}-{seconds:.0f}.frames"
    if not path.exists():
        command = [sys.executable, __file__, "--seconds", str(seconds), "--make", name, str(path)]
        subprocess.run(command, check=True)
    return path


@contextmanager
def place(kind: str, folder: Path) -> Iterator[Path | str]:
    """An empty database of a kind."""
    if kind == "SQLite":
        yield folder / "registry.db"
        return
    binaries = find_binaries()
    if binaries is None:
        raise SystemExit("no PostgreSQL server on this machine")
    with passing_server(binaries) as url:
        yield url


def run(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """All cases asked for; the lines of the result."""
    wanted = arguments.only.split(",") if arguments.only else [*cases(1), "restart"]
    lines: list[str] = []
    for kind in ("SQLite", "PostgreSQL") if arguments.postgres else ("SQLite",):
        lines += [f"\n## {kind}\n", HEAD]
        for name, case in cases(arguments.seconds).items():
            if name not in wanted:
                continue
            path = made_apart(name, arguments.seconds, Path(arguments.frames or folder))
            within = folder / f"{kind}-{name}"
            within.mkdir()
            with place(kind, within) as location:
                measured = anyio.run(ingest, case, path, location, backend_options=LOOP)
            lines.append(measured.line())
            print(f"{kind}: {lines[-1]} ({measured.blocks} blocks)", flush=True)
    if "restart" in wanted:
        num = int(arguments.seconds * 16_667)
        first, second = anyio.run(restart, folder / "open.db", num)
        lines.append(
            f"\nRestart with {num:,} open records (SQLite), until the first acknowledgement:"
            f" {first:.2f} s, and {second:.2f} s once more (goal: 10 s)."
        )
        print(lines[-1])
    return lines


def main() -> None:
    """Measure, print, and write the result if asked to."""
    collect_rarely()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--folder", default=None)
    parser.add_argument("--frames", default="", help="a folder that keeps what was made")
    parser.add_argument("--result", default="")
    parser.add_argument("--make", nargs=2, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(cases(arguments.seconds)[arguments.make[0]], Path(arguments.make[1]))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        lines = run(arguments, Path(folder))
    if arguments.result:
        head = (
            "# The registry's ledger: durable ingest, 2 cores x86_64, 2026-11-21\n\n"
            f"`python benchmarks/ledger/ledger_ingest.py {' '.join(sys.argv[1:])}` ·"
            f" Python {platform.python_version()}, one process, {os.cpu_count()} cores shared with"
            " other work (see the load)\n"
        )
        Path(arguments.result).write_text(head + "\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
