"""The whole check of an export, day by day, from the first block on.

An export is a folder: ``network.txt`` (name and public key), a folder ``day-NNNNNN`` for each
closed day, and ``open`` for the blocks after the last one. See docs/reference for the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starai.verifier.blocks import Block, Chain, parse_block
from starai.verifier.books import Books, parse_transfer
from starai.verifier.days import Claimed, Days
from starai.verifier.hashing import Log, leaf_hash
from starai.verifier.maturity import Maturity
from starai.verifier.reading import Findings, Unreadable, frames, table
from starai.verifier.signatures import Signatures
from starai.verifier.work import Work, read_tasks

_FORMAT: Final = "1"


@dataclass(frozen=True)
class Report:
    """What was found: problems in words, counts, and the head of the last closed day."""

    problems: tuple[str, ...]
    counts: dict[str, int]
    head: str


def verify(folder: Path, num_processes: int = 1, key: bytes = b"") -> Report:
    """Check an export; what is wrong is in the report.

    Args:
        folder: the export.
        num_processes: how many check signatures.
        key: the public key by which the network is known; without it, the one that the export
            itself names is believed.
    """
    findings = Findings()
    head = ""
    try:
        checker = _Checker(folder, findings, num_processes)
        try:
            findings.check(key in (b"", checker.key), "the export is of a network with another key")
            head = _all_days(folder, checker, findings)
            checker.finish()
        finally:
            checker.close()
        findings.check(findings.counts.get("blocks", 0) > 0, "there is no block at all")
    except (Unreadable, ValueError) as error:
        findings.complain(str(error))
    return Report(tuple(findings.problems), findings.counts, head)


def _all_days(folder: Path, checker: _Checker, findings: Findings) -> str:
    """Check every day, and what is open; the head of the last closed one."""
    closed = sorted(folder.glob("day-*"))
    for number, day in enumerate(closed, 1):
        if not findings.check(day.name == f"day-{number:06d}", f"day {number} is missing"):
            return checker.days.head()
        checker.day(day, Claimed(day / "manifest.txt"))
    if (folder / "open").is_dir():
        checker.day(folder / "open", None)
    return checker.days.head() if closed else ""


class _Checker:
    """Everything that is carried from day to day."""

    def __init__(self, folder: Path, findings: Findings, num_processes: int) -> None:
        facts = dict(table(folder / "network.txt", 2))
        if facts.get("format") != _FORMAT or not {"network", "key"} <= facts.keys():
            raise Unreadable("network.txt is not that of an export of this version")
        network, self.key = facts["network"], bytes.fromhex(facts["key"])
        self._findings = findings
        self._chain = Chain(network, self.key, findings)
        self._log = Log()
        self._books = Books(findings)
        self._work = Work(network, findings)
        self._maturity = Maturity(findings)
        self._signatures = Signatures(findings, num_processes)
        self.days = Days(network, self.key, findings, self._signatures)

    def finish(self) -> None:
        """Wait for what other processes check."""
        self._signatures.finish()
        self._findings.count("records", self._work.num_records)
        self._findings.count("transfers", self._books.num_transfers)

    def close(self) -> None:
        """End the processes that help."""
        self._signatures.close()

    def day(self, folder: Path, claimed: Claimed | None) -> None:
        """Check one day's folder; the open one claims nothing."""
        self._work.begin_day(folder)
        blocks = [parse_block(frame) for frame in frames(folder / "blocks.bin")]
        for block in blocks:
            self._chain.follow(block)
        self._tasks(folder, blocks)
        signed = self._work.confirmations(folder / "confirms.bin")
        for index, one in enumerate(signed):
            self._signatures.add(f"{folder.name}: confirmation {index}", *one)
        self._work.payments(folder / "paid.bin")
        self._transfers(folder, blocks, claimed)
        self._work.end_day(self._books)
        self._books.close()
        if claimed is not None:
            if not blocks or blocks[-1].height != claimed.to_block:
                raise Unreadable(f"{folder.name} does not end with block {claimed.to_block}")
            self._maturity.end_day(blocks[-1].closed_ms, claimed.maturity_ms)
            self.days.close(folder, claimed, blocks[-1], self._books)

    def _tasks(self, folder: Path, blocks: list[Block]) -> None:
        """Append the records to the log, and compare its root at each block."""
        tasks = read_tasks(folder / "tasks.bin")
        waiting = next(tasks, None)
        for block in blocks:
            while waiting is not None and waiting[0] <= block.last_task:
                number, record = waiting
                self._log.append(record.leaf)
                self._work.add(number, record)
                waiting = next(tasks, None)
            right = (self._log.size, self._log.root()) == (block.tree_size, block.log_root)
            if not self._findings.check(
                right, f"block {block.height}: records differ from its log"
            ):
                raise Unreadable(
                    "the records do not lead to the log, so nothing after can be checked"
                )
        self._findings.check(waiting is None, f"{folder.name} has records that are in no block")

    def _transfers(self, folder: Path, blocks: list[Block], claimed: Claimed | None) -> None:
        """Post the transfers, and compare root, sum and state at each block."""
        moved = ((int.from_bytes(f[:8], "big"), f[8:]) for f in frames(folder / "transfers.bin"))
        waiting = next(moved, None)
        for block in blocks:
            tree = Log()
            while waiting is not None and waiting[0] <= block.last_transfer:
                tree.append(leaf_hash(waiting[1]))
                transfer = parse_transfer(waiting[1])
                self._work.moved(transfer, self._books)
                self._books.add(transfer)
                self.days.add(transfer)
                if claimed is not None:
                    self._maturity.add(transfer, block.closed_ms, claimed.maturity_ms)
                waiting = next(moved, None)
            self._work.settle(self._books)
            self._maturity.end_block(block.closed_ms)
            where, check = f"block {block.height}", self._findings.check
            check(tree.root() == block.transfers_root, f"{where}: transfers differ from its root")
            right = self._books.total_debits == block.total_debits
            check(right, f"{where}: its transfers do not add up to its sum")
            check(
                self._books.digest() == block.books_hash, f"{where}: the books differ from its hash"
            )
        self._findings.check(waiting is None, f"{folder.name} has transfers that are in no block")
