"""The whole check of an export, day by day, from the first block or from a day checked before.

An export is a folder: ``network.txt`` (name and public key), a folder ``day-NNNNNN`` for each
closed day, and ``open`` for the blocks after the last one. See docs/reference for the files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from starai.verifier.blocks import Block, Chain, parse_block
from starai.verifier.books import Books, OlderCorrected, corrections, parse_transfer
from starai.verifier.days import Claimed, Days
from starai.verifier.hashing import Log, leaf_hash
from starai.verifier.keeping import NOTHING, Kept, KeptRefused, read_kept, write_kept, written
from starai.verifier.maturity import Maturity
from starai.verifier.reading import Findings, Unreadable, frames, table
from starai.verifier.signatures import Signatures
from starai.verifier.work import Work, read_tasks

_FORMAT: Final = "1"
_OPEN: Final = "open"


@dataclass(frozen=True)
class Report:
    """What was found: problems in words, counts, and the head of the last closed day.

    ``began`` says where the check began, and why there, if an earlier one may have kept something.
    """

    problems: tuple[str, ...]
    counts: dict[str, int]
    head: str
    began: str = ""


def verify(
    folder: Path, num_processes: int = 1, key: bytes = b"", kept_at: Path | None = None
) -> Report:
    """Check an export; what is wrong is in the report.

    Args:
        folder: the export.
        num_processes: how many check signatures.
        key: the public key by which the network is known; without it, the one that the export
            itself names is believed.
        kept_at: a file for what this check keeps for the next one, if nothing is wrong. If the
            days in the export go on from what is kept there, the check begins after it.

    Raises:
        KeptRefused: that file is damaged, of another network, or cannot be written.
    """
    if kept_at is None:
        return _verify(folder, num_processes, key, NOTHING, None)
    kept, why = read_kept(kept_at), "nothing was kept"
    if kept is not None:
        why = _parted(folder, kept, kept_at)
        if not why:
            try:
                report = _verify(folder, num_processes, key, kept, kept_at)
            except OlderCorrected:
                why = f"a transfer of before day {kept.days.epoch + 1} was taken back"
            else:
                return report
    report = _verify(folder, num_processes, key, NOTHING, kept_at)
    return replace(report, began=f"from the first block: {why}")


def _parted(folder: Path, kept: Kept, kept_at: Path) -> str:
    """Why an export does not go on from what is kept; nothing if it does.

    Raises:
        KeptRefused: it is another network's.
    """
    try:
        if _facts(folder) != (kept.network, kept.key):
            raise KeptRefused(
                f"{kept_at} is of a check of network {kept.network}, key {kept.key.hex()}, and the"
                " export is of another: name another file, or remove it"
            )
        head = Claimed(_day_folder(folder, kept.days.epoch) / "manifest.txt").head()
    except (Unreadable, ValueError):
        head = b""
    if head != kept.days.head:
        return f"day {kept.days.epoch} is not there as it was checked before"
    return ""


def _verify(
    folder: Path, num_processes: int, key: bytes, kept: Kept, kept_at: Path | None
) -> Report:
    """The check itself, from the first block or from what is kept; keeps what it comes to.

    Raises:
        OlderCorrected: it must begin at the first block.
        KeptRefused: what is kept does not fit together, or the file cannot be written.
    """
    findings = Findings()
    head, fresh = "", None
    try:
        checker = _Checker(folder, findings, num_processes, kept)
        try:
            findings.check(key in (b"", checker.key), "the export is of a network with another key")
            if checker.closed_days(folder):
                fresh = checker.kept() if kept_at is not None else None
                if (folder / _OPEN).is_dir():
                    checker.day(folder / _OPEN, None)
            head = checker.days.head() if checker.days.epoch else ""
            checker.finish()
        finally:
            checker.close()
        findings.check(findings.counts.get("blocks", 0) > 0, "there is no block at all")
    except (Unreadable, ValueError) as error:
        findings.complain(str(error))
    if kept_at is not None and fresh is not None and not findings.problems:
        write_kept(kept_at, fresh)
    began = "" if kept is NOTHING else f"after day {kept.days.epoch}, which was checked before"
    return Report(tuple(findings.problems), findings.counts, head, began)


def _facts(folder: Path) -> tuple[str, bytes]:
    """The network's name and key, as the export says.

    Raises:
        Unreadable: it is no export of this version.
        ValueError: the key is none.
    """
    facts = dict(table(folder / "network.txt", 2))
    if facts.get("format") != _FORMAT or not {"network", "key"} <= facts.keys():
        raise Unreadable("network.txt is not that of an export of this version")
    return facts["network"], bytes.fromhex(facts["key"])


def _day_folder(folder: Path, number: int) -> Path:
    return folder / f"day-{number:06d}"


def _days_after(folder: Path, number: int) -> list[Path]:
    """The folders of closed days after day ``number``, in order."""
    last = _day_folder(folder, number).name if number else ""
    return sorted(day for day in folder.glob("day-*") if day.name > last)


def _corrected(folder: Path, number: int) -> set[bytes]:
    """Which transfers are taken back after day ``number``: few, so only these are remembered."""
    found: set[bytes] = set()
    for day in (*_days_after(folder, number), folder / _OPEN):
        try:
            found.update(corrections(frame[8:] for frame in frames(day / "transfers.bin")))
        except Unreadable:
            continue  # the check itself says so
    return found


class _Checker:
    """Everything that is carried from day to day."""

    def __init__(self, folder: Path, findings: Findings, num_processes: int, kept: Kept) -> None:
        self._network, self.key = _facts(folder)
        network, key = self._network, self.key
        self._findings = findings
        self._had_epoch = kept.days.epoch
        self._signatures = Signatures(findings, num_processes)
        corrected = _corrected(folder, self._had_epoch)
        try:
            self._log = Log(kept.log)
            self._maturity = Maturity(findings, kept.maturity)
        except (IndexError, ValueError) as error:
            raise KeptRefused("what an earlier check kept does not fit together") from error
        self._chain = Chain(network, key, findings, kept.last)
        self._books = Books(findings, corrected, kept.books)
        self._work = Work(network, findings, kept.work)
        self.days = Days(network, key, findings, self._signatures, kept.days)
        if kept is not NOTHING:
            findings.counts.update(kept.counts)
            claimed = Claimed(_day_folder(folder, kept.days.epoch) / "manifest.txt")
            self.days.check_signature(claimed)

    def closed_days(self, folder: Path) -> bool:
        """Check every closed day that is left; whether none is missing."""
        for number, day in enumerate(_days_after(folder, self._had_epoch), self._had_epoch + 1):
            is_next = day.name == _day_folder(folder, number).name
            if not self._findings.check(is_next, f"day {number} is missing"):
                return False
            self.day(day, Claimed(day / "manifest.txt"))
        return True

    def kept(self) -> bytes | None:
        """What the next check begins with; None if that is nothing new, or nothing to go on from.

        Call it between days.
        """
        self._signatures.finish()
        last = self._chain.last
        if self._findings.problems or last is None or self.days.epoch == self._had_epoch:
            return None
        return written(
            Kept(
                network=self._network,
                key=self.key,
                counts=dict(self._findings.counts),
                last=last,
                log=self._log.kept(),
                books=self._books.kept(),
                work=self._work.kept(),
                maturity=self._maturity.kept(),
                days=self.days.kept(),
            )
        )

    def finish(self) -> None:
        """Wait for what other processes check, and count what was carried."""
        self._signatures.finish()
        counted = {
            "days without a signature": self.days.num_unsigned(),
            "records": self._work.num_records,
            "transfers": self._books.num_transfers,
        }
        for what, number in counted.items():
            if number or what != "days without a signature":
                self._findings.count(what, number)

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
