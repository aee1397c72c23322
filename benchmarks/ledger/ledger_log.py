"""What the registry's Merkle log costs: appending, roots, proofs, and closing a block in SQLite.

CPU time of one process; the log is as large as `--leaves` says. With ``--peer PYTHON``, an
interpreter that has pymerkle does the same beside it::

    python benchmarks/ledger/ledger_log.py [--leaves 1000000] [--peer PYTHON] [--result FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from starai.core.randomness import SeededRandomness
from starai.ledger.merkle_log import (
    MemoryTiles,
    MerkleLog,
    verify_consistency,
    verify_inclusion,
)
from starai.protocol.identity import Identity, KeyKind
from starai.protocol.records import leaf_hash
from starai.registry.log.blocks import StoredTiles, close_block
from starai.registry.storage.sqlite import connect, migrate

BLOCK = 5_000
PROOFS = 500
ACCOUNT = Identity.create(SeededRandomness(1), KeyKind.ACCOUNT)

PEER = """
import json, sys, time
from pymerkle import InmemoryTree
leaves, sizes = int(sys.argv[1]), [int(n) for n in sys.argv[2].split(",")]
entries = [n.to_bytes(32, "big") for n in range(leaves)]
tree = InmemoryTree(algorithm="sha256")
start = time.process_time()
for entry in entries:
    tree.append_entry(entry)
append = leaves / (time.process_time() - start)
roots = [tree.get_state(size).hex() for size in sizes]
start = time.process_time()
for number in range(500):
    tree.prove_inclusion(1 + number * 7919 % leaves, leaves)
proofs = 500 / (time.process_time() - start)
print(json.dumps({"append": append, "proofs": proofs, "roots": roots}))
"""


def cpu_s(work: Callable[[], object]) -> float:
    """The CPU time that ``work`` takes, in seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def appended(leaves: list[bytes], step: int) -> tuple[MerkleLog, float]:
    """A log of all leaves, ``step`` at a time, each by a new log; leaves a second."""
    tiles, size, spent = MemoryTiles(), 0, 0.0
    for start in range(0, len(leaves), step):
        log = MerkleLog(tiles, size)
        part = leaves[start : start + step]
        spent += cpu_s(lambda log=log, part=part: log.extend(part))
        tiles.update(log.changes())
        size = log.size
    return MerkleLog(tiles, size), len(leaves) / spent


def stored(path: Path, leaves: list[bytes]) -> dict[str, float]:
    """The same in SQLite: milliseconds of a block and of proofs, and bytes a leaf."""
    connection = connect(str(path))
    migrate(connection)
    spent = []
    for start in range(0, len(leaves), BLOCK):
        connection.begin(writing=True)
        connection.executemany(
            "INSERT INTO task (task_id, attempt, leaf, sides, state, block, node, dist, cust,"
            " model, in_tok, out_tok, price_id, charge, closed_ms, rec)"
            " VALUES (?, 0, ?, 3, 3, 0, x'', x'', 1, x'', 1, 1, 0, 0, 0, x'')",
            [(leaf[:16], leaf) for leaf in leaves[start : start + BLOCK]],
        )
        spent.append(cpu_s(lambda: close_block(connection, "bench", ACCOUNT, 0)))
        connection.commit()
    log, count = MerkleLog(StoredTiles(connection), len(leaves)), len(leaves)
    root = log.root()
    proving, checking = [], []
    for number in range(PROOFS):
        index = number * 7919 % count
        fresh = MerkleLog(StoredTiles(connection), count)
        start_s = time.process_time()
        path_ = fresh.inclusion(index)
        proving.append(time.process_time() - start_s)
        check = (leaves[index], index, count, path_, root)
        checking.append(cpu_s(lambda check=check: verify_inclusion(*check)))
    consistency = []
    for number in range(1, 101):
        old = count * number // 101
        old_root = log.root(old)
        fresh = MerkleLog(StoredTiles(connection), count)
        start_s = time.process_time()
        path_ = fresh.consistency(old)
        consistency.append(time.process_time() - start_s)
        verify_consistency(old, old_root, count, root, path_)
    ((tiles,),) = connection.execute("SELECT sum(length(hashes)) FROM log_tile")
    connection.close()
    spent.sort()
    return {
        "block_ms": 1000 * spent[len(spent) // 2],
        "block_worst_ms": 1000 * spent[-1],
        "inclusion_ms": 1000 * sum(proving) / len(proving),
        "inclusion_worst_ms": 1000 * max(proving),
        "check_ms": 1000 * sum(checking) / len(checking),
        "consistency_ms": 1000 * sum(consistency) / len(consistency),
        "bytes": tiles / count,
    }


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", type=int, default=1_000_000)
    parser.add_argument("--peer", default="")
    parser.add_argument("--result", type=Path, default=None)
    options = parser.parse_args()
    entries = [n.to_bytes(32, "big") for n in range(options.leaves)]
    leaves = [leaf_hash(entry) for entry in entries]
    log, whole = appended(leaves, len(leaves))
    _, blocks = appended(leaves, BLOCK)
    _, singles = appended(leaves[:20_000], 1)
    root_ms = 1000 * cpu_s(lambda: MerkleLog(log._tiles, log.size).root())
    with tempfile.TemporaryDirectory() as folder:
        kept = stored(Path(folder) / "registry.db", leaves)
    lines = [
        "# The registry's Merkle log",
        "",
        (
            f"`python benchmarks/ledger/ledger_log.py --leaves {options.leaves} --peer PYTHON`: "
            f"{platform.machine()}, "
            f"{os.cpu_count()} cores shared with others (load average {os.getloadavg()[0]:.1f}), "
            f"Python {platform.python_version()}. CPU time of one process."
        ),
        "",
        "| What | Figure |",
        "|---|---|",
        f"| append, all at once | {whole:,.0f} leaves/s |",
        f"| append, {BLOCK:,} at a time | {blocks:,.0f} leaves/s |",
        f"| append, one at a time, each by a new log | {singles:,.0f} leaves/s |",
        f"| root of all | {root_ms:.2f} ms |",
        (
            f"| close a block of {BLOCK:,} records in SQLite, without its commit | "
            f"{kept['block_ms']:.1f} ms median, {kept['block_worst_ms']:.1f} ms worst |"
        ),
        (
            f"| inclusion proof from SQLite | {kept['inclusion_ms']:.2f} ms mean, "
            f"{kept['inclusion_worst_ms']:.2f} ms worst |"
        ),
        f"| check an inclusion proof | {kept['check_ms']:.3f} ms |",
        f"| consistency proof from SQLite | {kept['consistency_ms']:.2f} ms mean |",
        f"| kept for the log | {kept['bytes']:.1f} bytes a record |",
    ]
    if options.peer:
        count = min(options.leaves, 100_000)
        sizes = [1, 2, 3, 5, 255, 256, 257, 1000, 65_535, 65_536, 65_537, count]
        sizes = sorted({size for size in sizes if size <= count})
        command = [options.peer, "-c", PEER, str(count), ",".join(map(str, sizes))]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        ours = [log.root(size).hex() for size in sizes]
        lines += [
            f"| pymerkle, append of {count:,} | {found['append']:,.0f} leaves/s |",
            f"| pymerkle, inclusion proof | {1000 / found['proofs']:.2f} ms |",
            (
                f"| roots equal to pymerkle's at {len(sizes)} sizes | "
                f"{'yes' if ours == found['roots'] else 'NO'} |"
            ),
        ]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if options.result is not None:
        options.result.write_text(text)


if __name__ == "__main__":
    main()
