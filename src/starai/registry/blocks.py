"""Closes blocks: every some seconds, or when enough is new, or when asked to.

One transaction reads what is new, extends the log, and writes the block with its signed
checkpoint; so a crash leaves all of it or nothing, and the next start goes on from what is there.
Nothing new makes no block. Knows nothing of what records and transfers mean.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import anyio

from starai.core.clock import Clock
from starai.core.errors import InternalFault, StarAIError, StoreFailed
from starai.core.logging import event
from starai.ledger.accounts import Account, Kind
from starai.ledger.blocks import NO_BLOCK, Block, signed_bytes
from starai.ledger.checkpoints import Checkpoint, sign_checkpoint
from starai.ledger.merkle_log import MerkleLog, tree_root
from starai.ledger.transfers import Code, Transfer
from starai.protocol.identity import Identity
from starai.protocol.log import log_origin
from starai.protocol.records import leaf_hash
from starai.registry.schema import rows
from starai.registry.storage import Connection, Store

_LOG = logging.getLogger(__name__)

#: The state of the books as a hash, at the moment of the call.
BooksHash = Callable[[Connection], bytes]

_TRANSFER: Final = (
    "SELECT seq, id, event_id, code, debit_kind, debit_owner, credit_kind, credit_owner,"
    " amount, ref, reverses, at_ms FROM transfer"
)
_INSERT: Final = (
    "INSERT INTO block (height, prev, last_task, n, tree_size, log_root, last_transfer,"
    " transfers_root, books_hash, total_debits, closed_ms, header, hash, sig)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


@dataclass(frozen=True)
class BlockTerms:
    """When a block is closed: after ``every_s`` seconds, or ``num_tasks`` new rows if sooner."""

    every_s: float = 10.0
    num_tasks: int = 5_000


class StoredTiles:
    """The log's tiles as the database has them."""

    def __init__(self, connection: Connection) -> None:
        """Read through ``connection``."""
        self._connection = connection

    def tile(self, level: int, position: int) -> bytes:
        """The hashes of a tile.

        Raises:
            InternalFault: the database has lost it.
        """
        sql = "SELECT hashes FROM log_tile WHERE level = ? AND position = ?"
        for (hashes,) in rows(self._connection, sql, level, position):
            return bytes(hashes)
        raise InternalFault(f"the log's tile {position} of level {level} is gone")


class Closer:
    """Closes blocks; `run` does it in time, `close_now` at once."""

    def __init__(
        self,
        store: Store,
        network: str,
        account: Identity,
        clock: Clock,
        books_hash: BooksHash,
        terms: BlockTerms,
    ) -> None:
        """Sign with the network's ``account``; ``books_hash`` is called inside the transaction."""
        self._store = store
        self._network = network
        self._account = account
        self._clock = clock
        self._books_hash = books_hash
        self._terms = terms
        self._num_fresh = 0
        self._enough = anyio.Event()

    def note(self, num_tasks: int) -> None:
        """Hear of new rows; enough of them close a block early."""
        self._num_fresh += num_tasks
        if self._num_fresh >= self._terms.num_tasks:
            self._enough.set()

    async def run(self) -> None:
        """Close blocks until cancelled.

        Raises:
            StoreFailed: the disk failed.
        """
        while True:
            with anyio.move_on_after(self._terms.every_s):
                await self._enough.wait()
            try:
                await self.close_now()
            except StoreFailed:
                raise
            except StarAIError as error:  # what waits is in the next block
                event(_LOG, "block_not_closed", logging.ERROR, code=error.code, why=error.message)
                await anyio.sleep(self._terms.every_s)

    async def close_now(self) -> Block | None:
        """Close a block over all that is new; None if nothing is.

        Raises:
            Overloaded: too many writes wait.
            InternalFault: the log or the chain is damaged.
            StoreFailed: the disk failed.
        """
        self._num_fresh, self._enough = 0, anyio.Event()
        now_ms = self._clock.now_ms()
        return await self._store.write(
            lambda connection: close_block(
                connection, self._network, self._account, self._books_hash, now_ms
            )
        )


def close_block(
    connection: Connection, network: str, account: Identity, books_hash: BooksHash, now_ms: int
) -> Block | None:
    """Write the next block over all that is new, inside the caller's transaction.

    Raises:
        InternalFault: the log lacks tiles, or another checkpoint of this size is signed already.
    """
    before = last_block(connection)
    last_task, last_transfer, size, total, closed_ms, prev, height = (
        (0, 0, 0, 0, 0, NO_BLOCK, -1)
        if before is None
        else (
            *(before.last_task, before.last_transfer, before.tree_size, before.total_debits),
            *(before.closed_ms, before.hash(), before.height),
        )
    )
    tasks = list(rows(connection, "SELECT seq, leaf FROM task WHERE seq > ? ORDER BY seq", last_task))
    moved = list(transfers_after(connection, last_transfer))
    if not tasks and not moved:
        return None
    log = MerkleLog(StoredTiles(connection), size)
    log.extend(leaf for _, leaf in tasks)
    block = Block(
        network=network,
        height=height + 1,
        prev=prev,
        first_task=last_task + 1,
        last_task=tasks[-1][0] if tasks else last_task,
        num_tasks=len(tasks),
        tree_size=log.size,
        log_root=log.root(),
        first_transfer=last_transfer + 1,
        last_transfer=moved[-1][0] if moved else last_transfer,
        transfers_root=transfers_root(transfer for _, transfer in moved),
        books_hash=books_hash(connection),
        total_debits=total + sum(transfer.amount for _, transfer in moved),
        closed_ms=max(now_ms, closed_ms),
    )
    _write_tiles(connection, log)
    _write_block(connection, block, account)
    _write_checkpoint(connection, block, account)
    return block


def _write_tiles(connection: Connection, log: MerkleLog) -> None:
    connection.executemany(
        "INSERT INTO log_tile (level, position, hashes) VALUES (?, ?, ?)"
        " ON CONFLICT (level, position) DO UPDATE SET hashes = excluded.hashes",
        [(level, position, tile) for (level, position), tile in log.changes().items()],
    )


def _write_block(connection: Connection, block: Block, account: Identity) -> None:
    block_hash = block.hash()
    connection.execute(
        _INSERT,
        (
            *(block.height, block.prev, block.last_task, block.num_tasks, block.tree_size),
            *(block.log_root, block.last_transfer, block.transfers_root, block.books_hash),
            *(str(block.total_debits), block.closed_ms, block.canonical(), block_hash),
            account.sign(signed_bytes(block_hash)),
        ),
    )


def _write_checkpoint(connection: Connection, block: Block, account: Identity) -> None:
    """Sign the log's new size; a block without tasks leaves the checkpoint that there is."""
    known = next(rows(connection, "SELECT root FROM checkpoint WHERE size = ?", block.tree_size), None)
    if known is not None:
        if known[0] != block.log_root:
            raise InternalFault(f"another checkpoint of {block.tree_size} records is signed already")
        return
    checkpoint = Checkpoint(
        *(log_origin(block.network), block.tree_size, block.log_root),
        extensions=(f"block {block.height} {block.hash().hex()}",),
    )
    note = sign_checkpoint(checkpoint, account.raw, account.sign)
    connection.execute(
        "INSERT INTO checkpoint (size, root, note) VALUES (?, ?, ?)",
        (block.tree_size, block.log_root, note),
    )


def last_block(connection: Connection) -> Block | None:
    """The newest block's header, or None before the first."""
    for (header,) in rows(connection, "SELECT header FROM block ORDER BY height DESC LIMIT 1"):
        return Block.parse(header)
    return None


def transfers_after(
    connection: Connection, seq: int, last: int | None = None
) -> Iterator[tuple[int, Transfer]]:
    """Transfers numbered above ``seq``, up to ``last`` or all, each with its number."""
    bound = "" if last is None else " AND seq <= ?"
    bindings = (seq,) if last is None else (seq, last)
    found = rows(connection, f"{_TRANSFER} WHERE seq > ?{bound} ORDER BY seq", *bindings)
    return ((number, _transfer(cells)) for number, *cells in found)


def transfers_root(transfers: Iterator[Transfer]) -> bytes:
    """The RFC 9162 root over transfers' canonical bytes."""
    return tree_root(leaf_hash(transfer.canonical()) for transfer in transfers)


def _transfer(cells: list[Any]) -> Transfer:
    transfer_id, event_id, code, debit_kind, debit_owner, credit_kind, credit_owner, *rest = cells
    try:
        debit = Account(Kind(debit_kind), debit_owner)
        credit = Account(Kind(credit_kind), credit_owner)
        return Transfer(transfer_id, event_id, Code(code), debit, credit, *rest)
    except ValueError as error:
        raise InternalFault(f"a transfer in the database is none: {error}") from error
