"""Records of work: in the log, signed by their sides, and each paid once, what it may cost.

A record is 264 bytes of fixed fields. A capture pays the records that the export lists for it:
never more than they charge, never more than the price table allows, and less only where nobody had
the money.
"""

from __future__ import annotations

import hashlib
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from starai.verifier.books import Account, Books, Transfer
from starai.verifier.hashing import leaf_hash
from starai.verifier.reading import Findings, Unreadable, frames, table
from starai.verifier.signatures import Signed

_RECORD: Final = struct.Struct("<4sBB2x16sI32s32sQ32sIIIQQQ32s32s32s")
_NUMBERED: Final = struct.Struct(">Q")
_CONFIRM: Final = struct.Struct(">BQIB32s32sQ32s64s")
_PAID: Final = struct.Struct(">16sQB")
_NODE_SIDE: Final = 1
_DISTRIBUTOR_SIDE: Final = 2
_BOTH: Final = _NODE_SIDE | _DISTRIBUTOR_SIDE
_BPS: Final = 10_000
_PAYMENTS: Final = frozenset({"capture", "fee"})


class Price(NamedTuple):
    """A row of the price table, in nano-USD for each token."""

    input_nano: int
    output_nano: int
    node_bps: int


class Record(NamedTuple):
    """What is kept of a record until it is paid."""

    leaf: bytes
    between: tuple[bytes, bytes]
    payer: int
    prompt_tokens: int
    answer_tokens: int
    price_id: int
    charge: int


def read_tasks(path: Path) -> Iterator[tuple[int, Record]]:
    """The records of a day, each with its number.

    Raises:
        Unreadable: one is none.
    """
    known: dict[tuple[bytes, bytes], tuple[bytes, bytes]] = {}
    for frame in frames(path):
        data = frame[8:]
        if len(data) != _RECORD.size:
            raise Unreadable("tasks.bin has something that is no record")
        magic, version, kind, _, _, node, distributor, payer, _, prompt, answer, *rest = (
            _RECORD.unpack(data)
        )
        price, charge, *_ = rest
        if (magic, version, kind) != (b"SAIR", 1, 1):
            raise Unreadable("tasks.bin has something that is no record of a task")
        between = known.setdefault((node, distributor), (node, distributor))
        record = Record(leaf_hash(data), between, payer, prompt, answer, price, charge)
        yield _NUMBERED.unpack_from(frame)[0], record


@dataclass(slots=True)
class _Due:
    """What one capture may move: to the node, to the fee, and how much it did."""

    node: bytes
    payer: int
    charge: int = 0
    share: int = 0
    to_node: int = 0
    to_fee: int = 0
    to_others: int = 0
    payers: set[Account] = field(default_factory=set)
    leaves: list[bytes] = field(default_factory=list)
    refs: set[bytes] = field(default_factory=set)


def _set_root(leaves: list[bytes]) -> bytes:
    return hashlib.sha256(b"starai/v1/set" + b"".join(sorted(leaves))).digest()


def _insured_id(leaf: bytes) -> bytes:
    """The event by which the insurance pays for one record that no customer can be made to."""
    parts = b"".join(len(part).to_bytes(4, "big") + part for part in (b"insured", leaf))
    return hashlib.sha256(b"starai/v1/event" + parts).digest()[:16]


class WorkKept(msgspec.Struct, frozen=True, kw_only=True):
    """Work between two checks.

    ``unpaid`` are records by number; ``sides`` are who signed a leaf, and the node and distributor
    whose word counts for it; ``early`` are words for leaves that are in no record so far.
    """

    unpaid: dict[int, Record] = {}
    sides: list[tuple[bytes, int, tuple[bytes, bytes]]] = []
    early: list[tuple[bytes, list[tuple[int, tuple[bytes, bytes], int]]]] = []
    num_records: int = 0


class Work:
    """All records that are not paid, who signed them, and what today's captures may move."""

    def __init__(self, network: str, findings: Findings, kept: WorkKept) -> None:
        """Take the network's name, which is under every signature, and where to go on from."""
        self._network = network
        self._findings = findings
        self._open = dict(kept.unpaid)
        self._sides = {leaf: sides for leaf, sides, _ in kept.sides}
        # Whose word counts for a record: its node's and its distributor's.
        self._between = {leaf: between for leaf, _, between in kept.sides}
        # What was said of records that a later day has.
        self._early = defaultdict(list, {leaf: list(words) for leaf, words in kept.early})
        self._due: dict[bytes, _Due] = {}
        self._prices: dict[int, Price] = {}
        self._payers: dict[int, bytes] = {}
        self._event = b""
        self.num_records = kept.num_records

    def kept(self) -> WorkKept:
        """What the next check begins with; after `end_day`."""
        return WorkKept(
            unpaid=self._open,
            sides=[(leaf, sides, self._between[leaf]) for leaf, sides in self._sides.items()],
            early=list(self._early.items()),
            num_records=self.num_records,
        )

    def begin_day(self, folder: Path) -> None:
        """Read the prices, and which customer each payer belongs to."""
        self._prices = {
            int(number): Price(int(given), int(taken), int(bps))
            for number, given, taken, bps in table(folder / "prices.txt", 4)
        }
        self._payers = {
            int(payer): int(customer).to_bytes(8, "big")
            for payer, customer in table(folder / "payers.txt", 2)
        }

    def add(self, number: int, record: Record) -> None:
        """Take a record that is in the log."""
        self._between[record.leaf] = record.between
        self._sides[record.leaf] = 0
        if self._early:
            for word in self._early.pop(record.leaf, ()):
                self._note(record.leaf, *word)
        if record.charge:
            self._open[number] = record
        self.num_records += 1

    def confirmations(self, path: Path) -> Iterator[Signed]:
        """What the day's confirmations signed; notes who confirmed which record.

        Raises:
            Unreadable: one is none.
        """
        name = self._network.encode()
        for frame in frames(path):
            if len(frame) < _CONFIRM.size or (len(frame) - _CONFIRM.size) % 32:
                raise Unreadable("confirms.bin has something that is no confirmation")
            version, slot, part, side, node, other, charge, root, signature = _CONFIRM.unpack_from(
                frame
            )
            if version not in (1, 2):
                raise Unreadable("confirms.bin has a confirmation of an unknown version")
            joined = frame[_CONFIRM.size :]
            leaves = [joined[at : at + 32] for at in range(0, len(joined), 32)]
            right = _set_root(leaves) == root
            self._findings.check(right, f"a confirmation of slot {slot} has a wrong root")
            signers = (node, other)
            for leaf in leaves if right else ():
                self._note(leaf, side, signers, version)
            self._findings.count("confirmations")
            head = struct.pack(f"<H{len(name)}sQIB", len(name), name, slot, part, side)
            if version == 1:
                yield other, b"starai/v1/confirm" + head + other + node + root, signature
            else:
                sums = struct.pack("<IQ", len(leaves), charge)
                signed = b"starai/v2/confirm" + head + node + other + sums + root
                yield node if side == _NODE_SIDE else other, signed, signature

    def _note(self, leaf: bytes, side: int, signers: tuple[bytes, bytes], version: int) -> None:
        """Count a word for a record, if it is that of one of its two parties."""
        between = self._between.get(leaf)
        if between is None:
            self._early[leaf].append((side, signers, version))
            return
        if version == 1:
            signers = (signers[1], between[1]) if side == _NODE_SIDE else signers
        if signers == between:
            self._sides[leaf] |= side
        else:
            self._findings.complain(f"a stranger confirmed {leaf.hex()}")

    def payments(self, path: Path) -> None:
        """Read which records each of the day's captures pays.

        Raises:
            Unreadable: the file is damaged.
        """
        self._due.clear()
        for frame in frames(path):
            if len(frame) != _PAID.size:
                raise Unreadable("paid.bin has something that is no payment")
            event_id, number, has_case = _PAID.unpack(frame)
            record = self._open.pop(number, None)
            if record is None:
                self._findings.complain(f"record {number} is paid twice, or is not in the log")
                continue
            self._pay(event_id, number, record, bool(has_case))

    def _pay(self, event_id: bytes, number: int, record: Record, has_case: bool) -> None:
        sides = self._sides.pop(record.leaf, 0)
        self._between.pop(record.leaf, None)
        if sides != _BOTH:
            self._findings.count("records paid by a case, on one side's word")
            if not (has_case and sides):
                self._findings.complain(f"record {number} is paid, and not both sides signed it")
        price = self._prices.get(record.price_id)
        if price is None:
            self._findings.complain(f"record {number} is paid by a price that is not there")
            price = Price(0, 0, 0)
        given, taken = record.prompt_tokens, record.answer_tokens
        allowed = min(record.charge, given * price.input_nano + taken * price.output_nano)
        due = self._due.get(event_id)
        if due is None:
            due = self._due[event_id] = _Due(record.between[0], record.payer)
        elif due.node != record.between[0] or due.payer != record.payer:
            self._findings.complain(f"capture {event_id.hex()} pays several nodes or payers")
        due.leaves.append(record.leaf)
        due.charge += allowed
        due.share += allowed * price.node_bps // _BPS

    def moved(self, transfer: Transfer, books: Books) -> None:
        """Take the next transfer, before the books do; a payment must be due."""
        if transfer.event_id != self._event:
            self.settle(books)
            self._event = transfer.event_id
        if transfer.code not in _PAYMENTS:
            return
        due = self._due.get(transfer.event_id)
        if due is None:
            self._findings.complain(f"transfer {transfer.id.hex()} pays for no record")
            return
        if transfer.credit == ("node.pending", due.node):
            due.to_node += transfer.amount
        elif transfer.credit == ("fee", b""):
            due.to_fee += transfer.amount
        else:
            due.to_others += transfer.amount
        due.refs.add(transfer.ref[-32:])
        due.payers.add(transfer.debit)

    def settle(self, books: Books) -> None:
        """Check the capture that ended, if one did, against the books as it left them."""
        due, event_id = self._due.pop(self._event, None), self._event
        self._event = b""
        if due is None:
            return
        insured = event_id == _insured_id(due.leaves[0])
        for problem in self._insured_faults(due) if insured else self._faults(due, books):
            self._findings.complain(f"capture {event_id.hex()} {problem}")
        if due.refs != {_set_root(due.leaves)}:
            self._findings.complain(f"capture {event_id.hex()} names other records")

    def _faults(self, due: _Due, books: Books) -> Iterator[str]:
        customer = self._payers.get(due.payer, b"")
        available, insurance = ("customer.available", customer), ("insurance", b"")
        if not due.payers <= {available, ("customer.held", customer), insurance}:
            yield "draws on another customer"
        if due.to_others:
            yield "pays somebody who did not do the work"
        if due.to_node > due.share:
            yield "pays the node more than its share"
        moved = due.to_node + due.to_fee
        if moved > due.charge:
            yield "takes more than was charged"
        elif moved < due.charge:
            self._findings.count("nano-USD that nobody could pay", due.charge - moved)
            left = books.balance(available) + books.balance(insurance)
            if left or books.payer_holds(due.payer):
                yield "takes less than was charged, though there was more"
        elif due.to_node != due.share:
            yield "pays the node less than its share"

    def _insured_faults(self, due: _Due) -> Iterator[str]:
        """The insurance pays the node alone, for one record, as far as it sees fit."""
        if due.payers != {("insurance", b"")} or due.to_fee or due.to_others:
            yield "is the insurance's, and draws on others or pays others"
        if due.to_node > due.charge or len(due.leaves) != 1:
            yield "takes more from the insurance than one record charges"

    def end_day(self, books: Books) -> None:
        """Check that every capture that was listed took place, and let go of what is done."""
        self.settle(books)
        for event_id in self._due:
            self._findings.complain(f"capture {event_id.hex()} is listed and did not take place")
        unpaid = {record.leaf for record in self._open.values()}
        self._sides = {
            leaf: sides for leaf, sides in self._sides.items() if sides != _BOTH or leaf in unpaid
        }
        self._between = {leaf: self._between[leaf] for leaf in self._sides}
