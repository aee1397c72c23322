"""What the insurance pays a node for work whose distributor is gone, and how much at most.

Nobody confirms such work, so no more is paid for it than the node itself would lose: what others
paid it that is still pending, and its stake. Knows nothing of cases and deadlines.
"""

from __future__ import annotations

from typing import Final

from starai.ledger.accounts import INSURANCE, pending, stake
from starai.ledger.events import Captured, event_id
from starai.ledger.outcomes import Verdict
from starai.protocol.records import set_root
from starai.registry.money.books import apply_event
from starai.registry.money.shelf import StoredShelf
from starai.registry.reconciling.contests import ClaimRow
from starai.registry.schema import rows
from starai.registry.storage import Connection

#: The newest maturity of a node's earnings names the block up to which they matured.
_MATURED: Final = (
    "SELECT ref FROM transfer WHERE code = 'mature' AND debit_owner = ? ORDER BY seq DESC LIMIT 1"
)
_INSURED: Final = (
    "SELECT sum(amount) FROM transfer WHERE debit_kind = 'insurance' AND credit_owner = ?"
    " AND credit_kind = 'node.pending' AND seq > ?"
)


def at_risk(connection: Connection, node: bytes) -> int:
    """How much the insurance may still pay ``node`` (raw key), in nano-USD; never below 0.

    In all that is pending, it pays no more than is pending from others and at stake: what it paid
    itself gives no claim to more.
    """
    shelf = StoredShelf(connection)
    there = sum(shelf.totals(account).balance for account in (pending(node), stake(node)))
    ((insured,),) = rows(connection, _INSURED, node, _matured_up_to(connection, node))
    return max(0, there - 2 * int(insured or 0))


def _matured_up_to(connection: Connection, node: bytes) -> int:
    """The number of the last transfer to ``node`` that has surely matured; 0 before any has."""
    for (ref,) in rows(connection, _MATURED, node):
        sql = "SELECT last_transfer FROM block WHERE height = ?"
        for (last,) in rows(connection, sql, int.from_bytes(ref, "big")):
            return int(last)
    return 0


def insure(connection: Connection, row: ClaimRow, most: int, now_ms: int) -> Verdict:
    """Let the insurance pay up to ``most`` for a record; refused if that comes to nothing."""
    record = row.claim.record
    found = rows(
        connection,
        "SELECT input_nano, output_nano FROM price WHERE id = ?",
        record.price_id,
    )
    prices = next(found, (0, 0))
    priced = prices[0] * record.prompt_tokens + prices[1] * record.answer_tokens
    there = StoredShelf(connection).totals(INSURANCE).balance
    amount = min(record.charge_nano_usd, priced, most, there)
    if amount <= 0 or row.event_id is not None:
        return Verdict.REFUSED if record.charge_nano_usd else Verdict.INSURED
    insured = Captured(
        event_id=event_id(b"insured", row.leaf),
        at_ms=now_ms,
        customer=0,  # nobody's number: only the insurance pays
        payer=0,
        node=record.node,
        charge=amount,
        node_share=amount,
        ref=set_root([row.leaf]),
    )
    apply_event(connection, insured)
    connection.execute("UPDATE task SET event_id = ? WHERE seq = ?", (insured.event_id, row.seq))
    return Verdict.INSURED
