"""Closed days, built again: running sums, leaves, root and manifest must be the same bytes.

Running sums are kept by (kind, owner, address); an empty address is all that the owner ever got.
"""

from __future__ import annotations

import hashlib
import struct
from collections import defaultdict
from pathlib import Path
from typing import Final

import msgspec

from starai.verifier.blocks import Block
from starai.verifier.books import Books, Transfer
from starai.verifier.hashing import payout_root
from starai.verifier.reading import Findings, Unreadable, table, text
from starai.verifier.signatures import Signatures, is_signed

_TITLE: Final = "starai/v1/manifest"
_SIGNED: Final = b"starai/v1/manifest-signature"
_NANO_PER_UNIT: Final = 1000
_SPENT: Final = 1
_KINDS: Final = {"earned": 0, "spent": _SPENT}
_PAYABLE: Final = "node.payable"
_CUSTOMERS: Final = ("customer.available", "customer.held")
_OUTSIDE: Final = "chain.pool"
#: What days name that were closed before there was a contract.
_NO_CONTRACT: Final = ("0", "00" * 20)

#: A kind (0 earned, 1 spent), and a node's key or a customer's number.
Owner = tuple[int, bytes]


class Claimed:
    """What a manifest says: its text without the signature, its facts, the signature."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            Unreadable: it is no manifest.
        """
        whole = text(path)
        body, _, last = whole.removesuffix("\n").rpartition("\n")
        self.text, self.signature = whole, b""
        try:
            if last.startswith("signature "):
                self.text = f"{body}\n"
                self.signature = bytes.fromhex(last.partition(" ")[2])
            pairs = [line.partition(" ") for line in self.text.splitlines()[1:]]
            self.facts = {name: value for name, _, value in pairs if name != "balance"}
            self.maturity_ms = int(self.facts["maturity_ms"])
            self.to_block = int(self.facts["to_block"])
            self.last_confirm = int(self.facts["last_confirm"])
        except (KeyError, ValueError) as error:
            raise Unreadable("manifest.txt is no manifest") from error

    def head(self) -> bytes:
        """What the next manifest names: the SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).digest()


class DaysKept(msgspec.Struct, frozen=True, kw_only=True):
    """Closed days between two checks: running sums, and what the newest manifest said."""

    totals: list[tuple[int, bytes, int]] = []
    placed: list[tuple[int, bytes, bytes, int]] = []
    head: bytes = bytes(32)
    spent_units: int = 0
    next_block: int = 0
    contract: tuple[str, str] | None = None
    epoch: int = 0
    num_unsigned: int = 0


class Days:
    """The running sums, day after day, and the chain of manifests."""

    def __init__(
        self,
        network: str,
        key: bytes,
        findings: Findings,
        signatures: Signatures,
        kept: DaysKept,
    ) -> None:
        """Take the network's name, the public key that signs manifests, where to go on from."""
        self._signatures = signatures
        self._network = network
        self._key = key
        self._findings = findings
        self._totals = defaultdict(int, {(kind, key): nano for kind, key, nano in kept.totals})
        self._placed = {(kind, key, address): nano for kind, key, address, nano in kept.placed}
        self._at_owner: defaultdict[Owner, int] = defaultdict(int)
        for (kind, owner, _), nano in self._placed.items():
            self._at_owner[kind, owner] += nano
        self._head = kept.head
        self._spent_units = kept.spent_units
        self._next_block = kept.next_block
        self._contract = kept.contract
        self.epoch = kept.epoch
        #: Closed days without a signature, but for the newest, which may still get it.
        self._num_unsigned = kept.num_unsigned
        self._is_unsigned = False

    def kept(self) -> DaysKept:
        """What the next check begins with."""
        return DaysKept(
            totals=[(*owner, nano) for owner, nano in self._totals.items()],
            placed=[(*place, nano) for place, nano in self._placed.items()],
            head=self._head,
            spent_units=self._spent_units,
            next_block=self._next_block,
            contract=self._contract,
            epoch=self.epoch,
            num_unsigned=self._num_unsigned,
        )

    def add(self, transfer: Transfer) -> None:
        """Take the next transfer: what it earns a node, or what a customer spends by it."""
        amount, (debit, debtor), (credit, creditor) = (
            transfer.amount,
            transfer.debit,
            transfer.credit,
        )
        if _OUTSIDE in (debit, credit):
            return
        if credit == _PAYABLE:
            self._totals[0, creditor] += amount
        if debit == _PAYABLE:
            self._totals[0, debtor] -= amount
        if debit in _CUSTOMERS:
            self._totals[1, debtor] += amount
        if credit in _CUSTOMERS:
            self._totals[1, creditor] -= amount

    def close(self, folder: Path, claimed: Claimed, block: Block, books: Books) -> None:
        """Build the day again, up to ``block``, and compare it with what is claimed."""
        self.epoch += 1
        day = f"day {self.epoch}"
        self._place(folder)
        sums = self._sum_lines()
        check = self._findings.check
        check(sums == text(folder / "leaves.txt"), f"{day}: leaves.txt is not what the books give")
        built = self._manifest(claimed, block, books, sums)
        check(built == claimed.text, f"{day}: the manifest is not what the books give")
        contract = (claimed.facts["chain_id"], claimed.facts["contract"])
        may_be = self._contract in (None, _NO_CONTRACT, contract)
        check(may_be, f"{day}: it is for another contract")
        self.check_signature(claimed)
        self._contract = contract
        self._head = hashlib.sha256(built.encode()).digest()
        self._next_block = block.height + 1
        self._findings.count("days")

    def check_signature(self, claimed: Claimed) -> None:
        """Check the signature of the newest day, if it has one."""
        self._num_unsigned += self._is_unsigned
        self._is_unsigned = not claimed.signature
        if claimed.signature:
            is_right = is_signed(self._key, _SIGNED + claimed.head(), claimed.signature)
            self._findings.check(is_right, f"day {self.epoch}: its signature is wrong")

    def num_unsigned(self) -> int:
        """How many closed days have no signature."""
        return self._num_unsigned + self._is_unsigned

    def head(self) -> str:
        """The hash of the newest manifest, as it was built here."""
        return self._head.hex()

    def _place(self, folder: Path) -> None:
        """What owners got since they last named a place goes to their address of this day."""
        for kind, key, address, bound_ms, signature in table(folder / "addresses.txt", 5):
            owner, place = (_KINDS.get(kind, -1), bytes.fromhex(key)), bytes.fromhex(address)
            if owner[0] == 0:
                self._bound(owner[1], place, int(bound_ms), bytes.fromhex(signature))
            more = self._totals.get(owner, 0) - self._at_owner[owner]
            there = (*owner, place)
            if more > 0:
                self._placed[there] = self._placed.get(there, 0) + more
                self._at_owner[owner] += more
            elif owner[0] == _SPENT:  # who spent nothing must be able to prove it
                self._placed.setdefault(there, 0)

    def _bound(self, node: bytes, address: bytes, bound_ms: int, signature: bytes) -> None:
        """Check that the node itself named its address."""
        name = self._network.encode()
        said = struct.pack("<H", len(name)) + name + node + address + struct.pack("<Q", bound_ms)
        named = f"the address of node {node.hex()}"
        self._signatures.add(named, node, b"starai/v1/payout" + said, signature)

    def _sum_lines(self) -> str:
        names = {number: name for name, number in _KINDS.items()}
        sums = {(kind, key, b""): nano for (kind, key), nano in self._totals.items()}
        sums.update(self._placed)
        return "".join(
            f"{names[kind]} {key.hex()} {address.hex() or '-'} {nano}\n"
            for (kind, key, address), nano in sorted(sums.items())
            if nano or address
        )

    def _manifest(self, claimed: Claimed, block: Block, books: Books, sums: str) -> str:
        units: defaultdict[tuple[int, bytes], int] = defaultdict(int)
        for (kind, _, address), nano in self._placed.items():
            units[kind, address] += nano
        leaves = [(kind, at, nano // _NANO_PER_UNIT) for (kind, at), nano in units.items()]
        leaves = [leaf for leaf in leaves if leaf[2] or leaf[0] == _SPENT]
        earned = sum(leaf[2] for leaf in leaves if leaf[0] == 0)
        spent = sum(nano for (kind, _), nano in self._totals.items() if kind == 1)
        self._spent_units = max(self._spent_units, spent // _NANO_PER_UNIT)
        placed = sum(nano for (kind, _), nano in units.items() if kind == 0)
        waiting = sum(
            max(0, nano - self._at_owner[owner])
            for owner, nano in self._totals.items()
            if owner[0] == 0
        )
        facts: dict[str, object] = {
            "network": self._network,
            "chain_id": claimed.facts["chain_id"],
            "contract": claimed.facts["contract"],
            "epoch": self.epoch,
            "from_block": self._next_block,
            "to_block": block.height,
            "block_hash": block.hash.hex(),
            "closed_ms": block.closed_ms,
            "log_size": block.tree_size,
            "log_root": block.log_root.hex(),
            "last_confirm": claimed.last_confirm,
            "maturity_ms": claimed.maturity_ms,
            "previous_head": self._head.hex(),
            "leaves_sha256": hashlib.sha256(sums.encode()).hexdigest(),
            "num_leaves": len(leaves),
            "root": payout_root(leaves).hex(),
            "earned_units": earned,
            "spent_units": self._spent_units,
            "unplaced_nano": waiting,
            "dust_nano": placed - earned * _NANO_PER_UNIT,
        }
        lines = [f"{name} {value}" for name, value in facts.items()]
        lines += [f"balance {kind} {nano}" for kind, nano in books.by_kind().items()]
        self._findings.check(
            earned <= self._spent_units, f"day {self.epoch}: more was earned than was spent"
        )
        return "\n".join((_TITLE, *sorted(lines), ""))
