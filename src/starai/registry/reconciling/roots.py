"""A node's word by its root alone: it matches all that its distributor confirmed under that root.

The usual way of the network: a node need not repeat what its distributor has said already. Knows
nothing of single records, unless one of them was contested meanwhile.
"""

from __future__ import annotations

from typing import Final

from starai.core.errors import MalformedFrame
from starai.ledger.reconciling import Standing
from starai.protocol.identity import raw_public
from starai.registry.money.books import Invoice, Owed
from starai.registry.reconciling.contests import close_cases, pay, rejudge
from starai.registry.reconciling.words import (
    SAY,
    Answer,
    Kept,
    Outcome,
    Said,
    Word,
    keep,
    last_rows,
    said_before,
)
from starai.registry.schema import rows
from starai.registry.storage import Connection

_LEAF_BYTES: Final = 32


def apply_root(connection: Connection, said: Said) -> Answer:
    """Match all that a distributor confirmed under the same root as this node now does.

    Returns None if its distributor has confirmed no such root, or not all at once: then the
    records must be said.

    Raises:
        MalformedFrame: it counts otherwise than the distributor under the same root.
    """
    (before,) = said_before(connection, [said])
    if before is not None:
        return before
    confirm = said.confirm
    found = rows(
        connection,
        "SELECT seq, leaves, charge, first_task FROM confirm WHERE block = ? AND signer = ?"
        " AND side = 2 AND node = ? AND part = ? AND root = ?",
        *(confirm.block, raw_public(confirm.distributor), raw_public(confirm.node)),
        *(confirm.part, confirm.root),
    )
    for twin, leaves, charge, first in list(found):
        num = len(leaves) // _LEAF_BYTES
        if (num, charge) != (confirm.count, confirm.charge_nano_usd):
            raise MalformedFrame("a confirmation counts otherwise than its root's records")
        if first is not None:
            (word,) = keep(connection, last_rows(connection)[0], [Kept(said, leaves)])
            return _match_all(connection, word, twin, range(first, first + num))
    return None


def _match_all(connection: Connection, word: Word, twin: int, seqs: range) -> Outcome:
    """Match the rows that the distributor's confirmation ``twin`` brought; see `apply_root`."""
    bounds = (seqs.start, seqs.stop - 1, twin)
    owed = [
        Owed(*row)
        for row in rows(
            connection,
            "SELECT seq, leaf, cust, price_id, in_tok, out_tok, charge FROM task"
            " WHERE seq BETWEEN ? AND ? AND dist_confirm = ? AND state = 2 AND charge > 0"
            " AND event_id IS NULL",
            *bounds,
        )
    ]
    pay(connection, [Invoice(word.node, owed, word.said.now_ms)])
    connection.execute(
        "UPDATE task SET sides = 3, state = 3, node_confirm = ?"
        " WHERE seq BETWEEN ? AND ? AND dist_confirm = ? AND state = 2",
        (word.seq, *bounds),
    )
    matched = connection.changes()
    if matched == len(seqs):
        close_cases(connection, seqs)
        return Outcome(matched=matched)
    now_agreed = rows(
        connection,
        "SELECT seq FROM task WHERE seq BETWEEN ? AND ? AND node_confirm = ?",
        *(*bounds[:2], word.seq),
    )
    close_cases(connection, [seq for (seq,) in now_agreed])
    contradicting = 0
    rest = rows(
        connection,
        "SELECT seq, task_id, attempt FROM task WHERE seq BETWEEN ? AND ? AND dist_confirm = ?"
        " AND node_confirm IS NULL",
        *bounds,
    )
    for seq, task_id, attempt in list(rest):
        connection.execute(SAY[word.side], (word.seq, seq))
        state = rejudge(connection, task_id, attempt, word.seq, word.said.now_ms)[seq]
        matched += state is Standing.MATCHED
        contradicting += state is not Standing.MATCHED
    return Outcome(matched=matched, contradicting=contradicting)
