"""Proofs that people ask for: that a task is in the log, and that one log begins another.

An answer holds all that is needed to check it without believing the registry, except the
network's key, which who asks must have from elsewhere. Knows nothing of who may ask.
"""

from __future__ import annotations

from starai.core.errors import InvalidRequest, NotFound
from starai.ledger.blocks import Block
from starai.ledger.checkpoints import with_cosignatures
from starai.ledger.merkle_log import MerkleLog
from starai.ledger.reconciling import Standing
from starai.protocol.log import ConsistencyProof, ProvenRecord, TaskProof
from starai.registry.log.blocks import StoredTiles, last_block
from starai.registry.log.witnesses import cosignatures, newest_checkpoint, note_of
from starai.registry.schema import integer, rows
from starai.registry.storage import Connection


def checkpoint(connection: Connection, *, size: int | None = None) -> dict[str, object]:
    """The newest checkpoint, or that of ``size`` records, with its cosignatures as one note.

    Raises:
        NotFound: there is none, or none of that size.
        InvalidRequest: ``size`` is out of range.
    """
    size, note = _checkpoint(connection, size)
    block = last_block(connection)
    closed = {} if block is None else {"block": block.height, "closed_ms": block.closed_ms}
    return {"size": size, "note": note, **closed}


def task_proof(connection: Connection, *, task_id: str, node: bytes | None = None) -> TaskProof:
    """The records of a task, with their places in the log of the newest checkpoint.

    With a ``node`` (raw key), only those of its own work.

    Raises:
        InvalidRequest: ``task_id`` is not hexadecimal.
        NotFound: no side has confirmed it yet, or no block covers it yet.
    """
    try:
        raw = bytes.fromhex(task_id)
    except ValueError:
        raise InvalidRequest("task_id is 32 hexadecimal digits", param="task_id") from None
    sql = "SELECT seq, attempt, state, rec, node FROM task WHERE task_id = ? ORDER BY attempt, seq"
    found = [row for row in rows(connection, sql, raw) if node in {None, row[-1]}]
    if not found:
        raise NotFound(f"no side has confirmed task {task_id!r} yet")
    size, note = _checkpoint(connection, None)
    log = MerkleLog(StoredTiles(connection), size)
    records = []
    for seq, attempt, state, rec, _ in found:
        index = _index_of(connection, seq)
        if index is not None:
            path = tuple(log.inclusion(index))
            records.append(ProvenRecord(attempt, Standing(state).name.lower(), rec, index, path))
    if not records:
        raise NotFound(f"no block covers task {task_id!r} yet: ask again in some seconds")
    return TaskProof(note, tuple(records))


def consistency_proof(connection: Connection, *, old: int, size: int) -> ConsistencyProof:
    """That the log of ``old`` records begins the log of ``size``, both checkpoints of ours.

    Raises:
        InvalidRequest: the sizes are out of order.
        NotFound: there is no checkpoint of one of them.
    """
    integer(old, "old", most=integer(size, "size"))
    _, old_note = _checkpoint(connection, old)
    _, note = _checkpoint(connection, size)
    path = MerkleLog(StoredTiles(connection), size).consistency(old)
    return ConsistencyProof(old_note, note, tuple(path))


def _checkpoint(connection: Connection, size: int | None) -> tuple[int, str]:
    if size is None:
        newest = newest_checkpoint(connection)
        if newest is None:
            raise NotFound("no block has been closed yet: ask again in some seconds")
        size, note = newest
    else:
        known = note_of(connection, integer(size, "size"))
        if known is None:
            raise NotFound(f"no checkpoint of {size} records was signed")
        note = known
    return size, with_cosignatures(note, cosignatures(connection, size))


def _index_of(connection: Connection, seq: int) -> int | None:
    """The place in the log of row ``seq``, or None if no block covers it yet."""
    sql = "SELECT header FROM block WHERE last_task >= ? ORDER BY last_task, height LIMIT 1"
    for (header,) in rows(connection, sql, seq):
        block = Block.parse(header)
        before = "SELECT count(*) FROM task WHERE seq >= ? AND seq < ?"
        ((count,),) = rows(connection, before, block.first_task, seq)
        return block.tree_size - block.num_tasks + int(count)
    return None
