"""Is the chain of blocks whole, and does it say what the rows say? Recomputed from the rows.

Every block's place in the chain, its signature, the log's root after it, its transfers' root and
sum; then every stored tile, checkpoint and cosignature. Keeps one log in memory, 32 bytes a record.
It reports, and repairs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from msgspec.structs import replace

from starai.core.errors import Conflict, MalformedFrame, SealBroken, StarAIError
from starai.ledger.accounts import UNUSED, Kind
from starai.ledger.blocks import Block, check_follows, signed_bytes
from starai.ledger.checkpoints import Note, open_checkpoint, verify_cosignature
from starai.ledger.merkle_log import MemoryTiles, MerkleLog
from starai.ledger.replaying import Replay
from starai.ledger.shelves import AccountChange, Changes, HoldChange
from starai.ledger.state import add, state_hash
from starai.ledger.transfers import ID_BYTES, Transfer
from starai.protocol.identity import KeyKind, public_nkey, raw_public, verify
from starai.protocol.log import log_origin, witness_of
from starai.registry.log.blocks import BEFORE_ALL, transfers_after, transfers_root
from starai.registry.schema import rows
from starai.registry.storage import Connection

_BLOCK: Final = (
    "SELECT height, prev, last_task, n, tree_size, log_root, last_transfer, transfers_root,"
    " books_hash, total_debits, closed_ms, header, hash, sig FROM block ORDER BY height"
)


class ChainCheck:
    """One check of the whole chain; ``num_blocks`` counts what it went through."""

    def __init__(self, connection: Connection, network: str, account: bytes) -> None:
        """Take the raw key by which the network signs."""
        self._connection = connection
        self._network = network
        self._account = account
        self._log = MerkleLog(MemoryTiles())
        self._roots: dict[int, bytes] = {}
        self._books = _Books()
        self.num_blocks = 0

    def problems(self) -> Iterator[str]:
        """Each thing found wrong, in words."""
        before: Block | None = None
        for row in rows(self._connection, _BLOCK):
            self.num_blocks += 1
            try:
                block = Block.parse(row[-3])
            except MalformedFrame as error:
                yield f"block {row[0]}: {error.message}"
                return  # nothing after it can be placed
            try:
                faults = list(self._block_faults(row, block, before))
            except StarAIError as error:
                faults = [error.message]
            for fault in faults:
                yield f"block {block.height}: {fault}"
            before = block
        yield from self._tile_faults()
        yield from self._checkpoint_faults()
        yield from self._witness_faults()

    def _block_faults(
        self, row: tuple[Any, ...], block: Block, before: Block | None
    ) -> Iterator[str]:
        block_hash, sig = row[-2:]
        columns = (
            *(block.height, block.prev, block.last_task, block.num_tasks, block.tree_size),
            *(block.log_root, block.last_transfer, block.transfers_root, block.books_hash),
            *(str(block.total_debits), block.closed_ms, block.canonical(), block.hash()),
        )
        if row[:-1] != columns:
            yield "its columns differ from its header"
        try:
            check_follows(block, before)
        except Conflict as error:
            yield error.message
        if block.network != self._network:
            yield f"it is of network {block.network!r}"
        try:
            account = public_nkey(KeyKind.ACCOUNT, self._account)
            verify(account, signed_bytes(block_hash), sig, KeyKind.ACCOUNT)
        except SealBroken:
            yield "its signature does not verify"
        yield from self._content_faults(block, before)

    def _content_faults(self, block: Block, before: Block | None) -> Iterator[str]:
        """What it says of tasks and transfers, against their rows."""
        start = before or BEFORE_ALL
        sql = "SELECT leaf FROM task WHERE seq > ? AND seq <= ? ORDER BY seq"
        leaves = [leaf for (leaf,) in rows(self._connection, sql, start.last_task, block.last_task)]
        if len(leaves) != block.num_tasks:
            yield f"it covers {block.num_tasks} records, of which {len(leaves)} are there"
        self._log.extend(leaves)
        if self._log.root() != block.log_root:
            yield "the log's root is not that of the records"
        self._roots[block.tree_size] = block.log_root
        found = transfers_after(self._connection, start.last_transfer, block.last_transfer)
        moved = [transfer for _, transfer in found]
        if transfers_root(moved) != block.transfers_root:
            yield "its transfers' root is not that of the transfers"
        self._books.add(moved)
        if block.books_hash != state_hash(self._books.total):
            yield "its books' hash is not that of all transfers until then"
        if block.total_debits != start.total_debits + sum(one.amount for one in moved):
            yield "its sum is not that of the transfers"

    def _tile_faults(self) -> Iterator[str]:
        expected = self._log.changes()
        for level, position, hashes in rows(
            self._connection, "SELECT level, position, hashes FROM log_tile"
        ):
            if expected.pop((level, position), None) != hashes:
                yield f"the log's tile {position} of level {level} is not that of the records"
        for level, position in expected:
            yield f"the log's tile {position} of level {level} is gone"

    def _checkpoint_faults(self) -> Iterator[str]:
        for size, root, note in rows(self._connection, "SELECT size, root, note FROM checkpoint"):
            try:
                found = open_checkpoint(note, log_origin(self._network), self._account)
            except StarAIError as error:
                yield f"the checkpoint of {size} records: {error.message}"
                continue
            known = self._roots.pop(size, None)
            if (found.size, found.root) != (size, root) or known != root:
                yield f"the checkpoint of {size} records is not that of a block"
        for size in self._roots:
            yield f"the checkpoint of {size} records is gone"

    def _witness_faults(self) -> Iterator[str]:
        for size, name, line, note in rows(
            self._connection,
            "SELECT witness.size, witness.witness, witness.line, checkpoint.note FROM witness"
            " LEFT JOIN checkpoint ON checkpoint.size = witness.size",
        ):
            try:
                whose = witness_of(self._network, name)
                if whose is None or note is None:
                    raise MalformedFrame("it is no witness's of this log")
                verify_cosignature(Note.parse(note).text, line, name, raw_public(whose[1]))
            except StarAIError as error:
                yield f"a cosignature of {size} records: {error.message}"


class _Books:
    """The books as transfers make them, with the sum that their hash is made of."""

    def __init__(self) -> None:
        self.total = 0
        self._replay = Replay()

    def add(self, moved: Sequence[Transfer]) -> None:
        accounts, holds = self._replay.accounts, self._replay.holds
        touched = {account for one in moved for account in (one.debit, one.credit)}
        drawn = {
            one.ref[:ID_BYTES] for one in moved if Kind.HELD in {one.debit.kind, one.credit.kind}
        }
        totals = {account: accounts.get(account, UNUSED) for account in touched}
        held = {hold_id: holds.get(hold_id) for hold_id in drawn}
        for one in moved:
            self._replay.add(one)  # what is wrong with it, the books' own check says
        changed = [AccountChange(one, totals[one], accounts[one]) for one in touched]
        held_now = []
        for hold_id, before in held.items():
            after = holds.get(hold_id, replace(before, remaining=0) if before else None)
            if after is not None:
                held_now.append(HoldChange(before, after))
        self.total = add(self.total, Changes((), tuple(changed), tuple(held_now)))
