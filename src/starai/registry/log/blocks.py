"""Closes blocks: every some seconds, or when enough is new, or when asked to.

One transaction reads what is new, extends the log, and writes the block with its signed
checkpoint; so a crash leaves all of it or nothing, and the next start goes on from what is there.
Nothing new makes no block. A block is never older than the one before, so one that was closed while
the clock was far ahead would hold up all that counts by blocks: a clock that jumps is not believed
alone. Knows nothing of what records and transfers mean.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import anyio

from starai.core.clock import Clock
from starai.core.errors import InternalFault, StarAIError, StoreFailed
from starai.core.logging import event
from starai.ledger.blocks import NO_BLOCK, Block, signed_bytes
from starai.ledger.checkpoints import Checkpoint, sign_checkpoint
from starai.ledger.merkle_log import EMPTY_ROOT, MerkleLog, tree_root
from starai.ledger.state import state_hash
from starai.ledger.transfers import Transfer
from starai.protocol.identity import Identity
from starai.protocol.log import log_origin
from starai.protocol.records import leaf_hash
from starai.registry.log.believing import Believed
from starai.registry.money.books import books_hash
from starai.registry.money.shelf import StoredShelf
from starai.registry.schema import rows
from starai.registry.storage import Connection, Store

_LOG = logging.getLogger(__name__)

#: How far blocks may be ahead of the clock before that is an alarm: clocks are set back a little.
AHEAD_MS: Final = 60_000

_INSERT: Final = (
    "INSERT INTO block (height, prev, last_task, n, tree_size, log_root, last_transfer,"
    " transfers_root, books_hash, total_debits, closed_ms, header, hash, sig)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)

#: What the first block goes on from: as if a block of nothing had been closed before it.
BEFORE_ALL: Final = Block(
    network="",
    height=-1,
    prev=NO_BLOCK,
    first_task=1,
    last_task=0,
    num_tasks=0,
    tree_size=0,
    log_root=EMPTY_ROOT,
    first_transfer=1,
    last_transfer=0,
    transfers_root=EMPTY_ROOT,
    books_hash=state_hash(0),
    total_debits=0,
    closed_ms=0,
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
        terms: BlockTerms,
    ) -> None:
        """Sign with the network's ``account``."""
        self._store = store
        self._network = network
        self._identity = account
        self._terms = terms
        self._num_fresh = 0
        self._enough = anyio.Event()
        self._believed = Believed(clock)
        #: The raw public key by which blocks are signed.
        self.account = account.raw

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
            InternalFault: the log or the chain is damaged, or the clock jumped ahead.
            StoreFailed: the disk failed.
        """
        self._num_fresh, self._enough = 0, anyio.Event()
        look = self._believed.look()

        def work(connection: Connection) -> Block | None:
            block = close_block(connection, self._network, self._identity, look.now_ms)
            if block is not None:
                look.check(connection)
            return block

        block = await self._store.write(work)
        if block is not None or not look.has_jumped:
            self._believed.believe(look)
        if block is not None and block.closed_ms > look.now_ms + AHEAD_MS:
            ahead_ms = block.closed_ms - look.now_ms
            event(_LOG, "blocks_ahead_of_clock", logging.ERROR, ahead_ms=ahead_ms)
        return block


def close_block(
    connection: Connection, network: str, account: Identity, now_ms: int
) -> Block | None:
    """Write the next block over all that is new, inside the caller's transaction.

    Raises:
        InternalFault: the log lacks tiles, or another checkpoint of this size is signed already.
    """
    last = last_block(connection)
    before = last or BEFORE_ALL
    sql = "SELECT seq, leaf FROM task WHERE seq > ? ORDER BY seq"
    tasks = list(rows(connection, sql, before.last_task))
    moved = list(transfers_after(connection, before.last_transfer))
    if not tasks and not moved:
        return None
    log = MerkleLog(StoredTiles(connection), before.tree_size)
    log.extend(leaf for _, leaf in tasks)
    block = Block(
        network=network,
        height=before.height + 1,
        prev=NO_BLOCK if last is None else last.hash(),
        first_task=before.last_task + 1,
        last_task=tasks[-1][0] if tasks else before.last_task,
        num_tasks=len(tasks),
        tree_size=log.size,
        log_root=log.root(),
        first_transfer=before.last_transfer + 1,
        last_transfer=moved[-1][0] if moved else before.last_transfer,
        transfers_root=transfers_root(transfer for _, transfer in moved),
        books_hash=books_hash(connection),
        total_debits=before.total_debits + sum(transfer.amount for _, transfer in moved),
        closed_ms=max(now_ms, before.closed_ms),
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
    size = block.tree_size
    for (root,) in rows(connection, "SELECT root FROM checkpoint WHERE size = ?", size):
        if root != block.log_root:
            raise InternalFault(f"another checkpoint of {size} records is signed already")
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
    return StoredShelf(connection).transfers_after(seq, last)


def transfers_root(transfers: Iterable[Transfer]) -> bytes:
    """The RFC 9162 root over transfers' canonical bytes."""
    return tree_root(leaf_hash(transfer.canonical()) for transfer in transfers)
