"""Lets earnings mature: what a node earned in a block old enough becomes payable.

How old is said by blocks, not by records: nobody who confirms late or lies about a time gains or
loses by it. What was taken back meanwhile counts against the oldest earnings, so it may delay some
and never pays what is still open. Knows nothing of days.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starai.core.errors import BalanceTooLow, Conflict
from starai.ledger.books import Books
from starai.ledger.events import Matured, event_id
from starai.registry.money.shelf import StoredShelf
from starai.registry.schema import rows
from starai.registry.storage.base import Connection

#: Events in one write: some tens of milliseconds in which nothing else is written.
MATURED_AT_ONCE: Final = 500
_PENDING: Final = "node.pending"


def due(connection: Connection, now_ms: int, maturity_ms: int) -> list[Matured]:
    """What can mature at ``now_ms``, one event a node; reads only.

    What a node has pending, less what it earned in younger blocks or in none so far, is old.
    """
    ripe = rows(
        connection,
        "SELECT height, last_transfer FROM block WHERE closed_ms <= ? ORDER BY height DESC LIMIT 1",
        now_ms - maturity_ms,
    )
    block = next(ripe, None)
    if block is None:
        return []
    height, last_transfer = block
    young = {
        node: int(total)
        for node, total in rows(
            connection,
            "SELECT credit_owner, SUM(amount) FROM transfer"
            " WHERE seq > ? AND credit_kind = ? GROUP BY credit_owner",
            last_transfer,
            _PENDING,
        )
    }
    pending = rows(
        connection,
        "SELECT owner, credits - debits FROM account WHERE kind = ? AND credits > debits"
        " ORDER BY owner",
        _PENDING,
    )
    ref = height.to_bytes(8, "big")
    return [
        Matured(
            event_id=event_id(b"matured", node, ref),
            at_ms=now_ms,
            node=node,
            amount=nano - young.get(node, 0),
            ref=ref,
        )
        for node, nano in pending
        if nano > young.get(node, 0)
    ]


def mature(connection: Connection, events: Sequence[Matured]) -> int:
    """Apply what `due` found; how many did. What was refunded meanwhile waits for the next time."""
    shelf = StoredShelf(connection)
    books = Books(shelf)
    applied = 0
    for event in events:
        try:
            applied += bool(books.apply(event))
        except (BalanceTooLow, Conflict):
            continue  # the next block's maturity has it
    shelf.keep(books.changes())
    return applied
