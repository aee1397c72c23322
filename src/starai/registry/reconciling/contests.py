"""An attempt of which more was said than one record twice: judged anew, paid or taken back.

All that was said is read from the database and judged by `starai.ledger.reconciling`, so what is
paid in the end does not depend on the order in which it came. Each record that is not agreed gets
a case in table `dispute`, which time or a person decides (`starai.registry.reconciling.disputes`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

from starai.core.errors import BalanceTooLow
from starai.core.logging import event
from starai.ledger.accounts import Kind
from starai.ledger.events import Corrected, Refunded, event_id
from starai.ledger.outcomes import DEADLINE_MS, Verdict
from starai.ledger.prices import node_share
from starai.ledger.reconciling import WAITING, Claim, Standing, due, judge
from starai.protocol.records import TaskRecord
from starai.registry.money.books import Invoice, Owed, apply_event, capture
from starai.registry.money.shelf import OF_EVENT, StoredShelf, of_event
from starai.registry.schema import rows, rows_in
from starai.registry.storage import Connection

_LOG = logging.getLogger(__name__)

_CLAIMS: Final = (
    "SELECT task.seq, task.rec, task.leaf, task.block, task.state, task.event_id, said.at_ms,"
    " heard.at_ms, dispute.verdict, dispute.event_id FROM task"
    " LEFT JOIN confirm AS said ON said.seq = task.node_confirm"
    " LEFT JOIN confirm AS heard ON heard.seq = task.dist_confirm"
    " LEFT JOIN dispute ON dispute.task_seq = task.seq"
    " WHERE task.task_id = ? AND task.attempt = ? ORDER BY task.seq"
)
#: Payments that a verdict made: only another verdict takes them back.
_DECIDED: Final = (Verdict.PAID, Verdict.INSURED)


class ClaimRow(NamedTuple):
    """A record of an attempt, as it is kept."""

    seq: int
    leaf: bytes
    block: int
    claim: Claim
    state: int
    event_id: bytes | None
    verdict: str | None
    refund: bytes | None

    @property
    def is_paid(self) -> bool:
        """Whether it was paid and not taken back."""
        return self.event_id is not None and self.refund is None

    @property
    def owed(self) -> Owed:
        """What is to be paid for it."""
        return owed_for(self.seq, self.leaf, self.claim.record)


def owed_for(seq: int, leaf: bytes, record: TaskRecord) -> Owed:
    """What is to be paid for a record."""
    return Owed(
        seq,
        leaf,
        record.customer,
        record.price_id,
        record.prompt_tokens,
        record.answer_tokens,
        record.charge_nano_usd,
    )


def claims_of(connection: Connection, task_id: bytes, attempt: int) -> list[ClaimRow]:
    """All that was said of an attempt, oldest row first."""
    return [
        ClaimRow(
            seq,
            leaf,
            block,
            Claim(
                TaskRecord.parse(rec),
                node_ms,
                dist_ms,
                Standing.UNKNOWN if state == Standing.UNKNOWN else None,
            ),
            state,
            paid_by,
            verdict,
            refund,
        )
        for seq, rec, leaf, block, state, paid_by, node_ms, dist_ms, verdict, refund in rows(
            connection, _CLAIMS, task_id, attempt
        )
    ]


def rejudge(
    connection: Connection, task_id: bytes, attempt: int, cause: int, now_ms: int
) -> dict[int, Standing]:
    """Judge an attempt by all that was said of it, and let states, cases and payments follow.

    ``cause`` is the number of the confirmation that brings something new. Returns each row's
    standing.
    """
    found = claims_of(connection, task_id, attempt)
    claims = [row.claim for row in found]
    standings = judge(claims)
    for row, standing in zip(found, standings, strict=True):
        if row.state != standing:
            connection.execute("UPDATE task SET state = ? WHERE seq = ?", (int(standing), row.seq))
        _see_to_case(connection, row.seq, standing, now_ms)
    _settle(connection, found, standings, due(claims, standings), cause, now_ms)
    return {row.seq: standing for row, standing in zip(found, standings, strict=True)}


def _settle(
    connection: Connection,
    found: Sequence[ClaimRow],
    standings: Sequence[Standing],
    is_due: Sequence[bool],
    cause: int,
    now_ms: int,
) -> None:
    """Take back what is no longer due, then pay what is, once a distributor and attempt."""
    paid_for: set[bytes] = set()
    for row, standing, stays in zip(found, standings, is_due, strict=True):
        if not row.is_paid:
            continue
        if (
            stays
            or standing in WAITING
            or row.verdict in _DECIDED
            or not take_back(connection, row, cause, now_ms)
        ):
            paid_for.add(row.claim.record.distributor)
    for row, wanted in zip(found, is_due, strict=True):
        if wanted and not row.is_paid and row.claim.record.distributor not in paid_for:
            pay_row(connection, row, now_ms)


def pay_row(connection: Connection, row: ClaimRow, now_ms: int) -> bool:
    """Let the customer pay for a record, again if that was taken back; whether it is paid now."""
    if row.refund is not None:
        return _undo_refund(connection, row, row.refund, now_ms)
    if row.event_id is None and row.owed.charge:
        pay(connection, [Invoice(row.claim.record.node, [row.owed], now_ms, row.block)])
    return True


def pay(connection: Connection, invoices: Sequence[Invoice]) -> None:
    """Pay nodes for records, and say in the log what could not be paid."""
    due = [invoice for invoice in invoices if invoice.records]
    if not due:
        return
    paid = capture(connection, due)
    for payer, nano in paid.uncovered:
        event(_LOG, "payment_uncovered", logging.WARNING, payer=payer, nano_usd=nano)
    if paid.overcharged:
        event(_LOG, "charge_above_price", logging.WARNING, records=len(paid.overcharged))


def take_back(connection: Connection, row: ClaimRow, cause: int, now_ms: int) -> bool:
    """Give the customer back what was paid for a record, if all of it was the customer's.

    Returns False if others paid a part, or the node's part is no longer pending: a person sees
    to it then. The record goes on to name the event that paid it; its case names the refund.
    ``cause`` is a number that no other refund of this record has.
    """
    record = row.claim.record
    owner = next(
        rows(connection, "SELECT owner FROM key WHERE customer = ?", record.customer), (None,)
    )[0]
    charged = _charged(connection, row)
    if owner is None or charged is None:
        return False
    charge, node_nano = charged
    refund = Refunded(
        event_id=event_id(b"refunded", row.leaf, cause.to_bytes(8, "big")),
        at_ms=now_ms,
        customer=owner,
        node=record.node,
        from_pending=node_nano,
        from_fee=charge - node_nano,
        ref=row.leaf,
    )
    try:
        apply_event(connection, refund)
    except BalanceTooLow:
        return False
    connection.execute(
        "UPDATE dispute SET state = 'closed', verdict = ?, event_id = ? WHERE task_seq = ?",
        (Verdict.REFUSED.value, refund.event_id, row.seq),
    )
    _count_spent(connection, record.customer, -charge)
    return True


def _undo_refund(connection: Connection, row: ClaimRow, refund: bytes, now_ms: int) -> bool:
    """Reverse a refund; False if the customer has spent it."""
    shelf = StoredShelf(connection)
    moved = shelf.transfers_of(refund)
    if any(shelf.totals(one.credit).balance < sum(t.amount for t in moved) for one in moved):
        event(_LOG, "refund_not_undone", logging.WARNING, leaf=row.leaf.hex())
        return False
    for one in moved:
        apply_event(connection, Corrected.of(one.transfer_id, now_ms, row.leaf))
    connection.execute("UPDATE dispute SET event_id = NULL WHERE task_seq = ?", (row.seq,))
    _count_spent(connection, row.claim.record.customer, sum(one.amount for one in moved))
    return True


def _count_spent(connection: Connection, payer: int, nano: int) -> None:
    """Let a key's budget follow what it is charged after all."""
    sql = "UPDATE key SET spent_nano = spent_nano + ? WHERE customer = ?"
    connection.execute(sql, (nano, payer))


def _charged(connection: Connection, row: ClaimRow) -> tuple[int, int] | None:
    """What was charged for a paid record and the node's part of it, if the customer paid it all.

    A payment covers all that one confirmation completed, so its records are of one slot.
    """
    if row.event_id is None:
        return None
    ((insured, moved),) = rows(
        connection,
        f"SELECT count(*) FILTER (WHERE debit_kind = ?), sum(amount) FROM transfer {OF_EVENT}",  # noqa: S608 - a constant
        Kind.INSURANCE.value,
        *of_event(row.event_id),
    )
    total, mine = 0, None
    for seq, asked, prompt, answer, input_nano, output_nano, bps in rows(
        connection,
        "SELECT task.seq, task.charge, task.in_tok, task.out_tok, price.input_nano,"
        " price.output_nano, price.node_bps FROM task JOIN price ON price.id = task.price_id"
        " WHERE task.event_id = ? AND task.block = (SELECT block FROM task WHERE seq = ?)",
        row.event_id,
        row.seq,
    ):
        charge = min(asked, prompt * input_nano + answer * output_nano)
        total += charge
        if seq == row.seq:
            mine = (charge, node_share(charge, bps))
    return mine if moved == total and not insured else None


def _see_to_case(connection: Connection, seq: int, standing: Standing, now_ms: int) -> None:
    """Open a case for what is contested, with its reason; close that of what is agreed."""
    if standing is Standing.MATCHED:
        close_cases(connection, [seq])
    elif standing not in WAITING and standing is not Standing.LATE:
        open_case(connection, seq, standing, now_ms)


def open_case(connection: Connection, seq: int, standing: Standing, now_ms: int) -> None:
    """Open a record's case, or give the open one its new reason; one that is decided stays so."""
    connection.execute(
        "INSERT INTO dispute (task_seq, reason, opened_ms, deadline_ms, state)"
        " VALUES (?, ?, ?, ?, 'open') ON CONFLICT (task_seq) DO UPDATE"
        " SET reason = excluded.reason WHERE dispute.state = 'open'",
        (seq, standing.name.lower(), now_ms, now_ms + DEADLINE_MS),
    )


def close_cases(connection: Connection, seqs: Sequence[int]) -> None:
    """Close the cases of records on which both sides agree after all, whatever was decided."""
    found = rows_in(
        connection,
        "SELECT task_seq FROM dispute WHERE task_seq IN ({})"
        " AND (verdict IS NULL OR verdict IN ('refused', 'lower'))",
        seqs,
    )
    connection.executemany(
        "UPDATE dispute SET state = 'closed', verdict = 'agreed' WHERE task_seq = ?",
        sorted(set(found)),
    )
