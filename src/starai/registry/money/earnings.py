"""What a node earned, where that money is, and when it moves on; read from the database.

Each function takes a connection and returns a value fit for JSON: money as strings of nano-USD.
Knows nothing of who may ask.
"""

from __future__ import annotations

from typing import Any, Final

from starai.core.errors import InvalidRequest, NotFound
from starai.ledger.accounts import payable, pending, stake
from starai.ledger.prices import node_share
from starai.ledger.reconciling import Standing
from starai.protocol.identity import KeyKind, PartyId, public_nkey, raw_public
from starai.registry.money.shelf import OF_EVENT, StoredShelf, of_event
from starai.registry.schema import rows
from starai.registry.storage import Connection

#: Nodes of one report.
NODES_MAX: Final = 500
# A node can say of itself that it is owed nearly all an integer holds: in halves no sum overflows.
_UNPAID: Final = (
    "SELECT count(*), CAST(coalesce(sum(charge >> 32), 0) AS BIGINT),"
    " CAST(coalesce(sum(charge & 4294967295), 0) AS BIGINT) FROM task"
    " WHERE node = ? AND event_id IS NULL AND charge > 0 AND state IN (1, 2)"
)
_CASES: Final = (
    "SELECT count(*), min(dispute.deadline_ms) FROM dispute"
    " JOIN task ON task.seq = dispute.task_seq WHERE task.node = ? AND dispute.state = 'open'"
)
_RECORDS: Final = (
    "SELECT task.seq, task.attempt, task.node, task.state, task.in_tok, task.out_tok,"
    " task.price_id, task.charge, task.closed_ms, task.event_id, price.node_bps,"
    " dispute.state, dispute.reason, dispute.deadline_ms, dispute.verdict"
    " FROM task LEFT JOIN price ON price.id = task.price_id"
    " LEFT JOIN dispute ON dispute.task_seq = task.seq"
    " WHERE task.task_id = ? ORDER BY task.attempt, task.seq"
)


def earnings(
    connection: Connection, *, node: PartyId | None, now_ms: int, maturity_ms: int
) -> dict[str, object]:
    """What each node has (or one node), and when what is pending becomes payable."""
    if node is not None:
        found = [raw_public(node)]
    else:
        owners = rows(
            connection,
            "SELECT DISTINCT owner FROM account"
            " WHERE kind IN ('node.pending', 'node.payable') ORDER BY owner LIMIT ?",
            NODES_MAX,
        )
        found = [owner for (owner,) in owners]
    shown = [_of_node(connection, raw, now_ms, maturity_ms) for raw in found]
    return {"maturity_ms": maturity_ms, "nodes": shown}


def _of_node(
    connection: Connection, node: bytes, now_ms: int, maturity_ms: int
) -> dict[str, object]:
    shelf = StoredShelf(connection)
    open_now, ripe = shelf.totals(pending(node)).balance, shelf.totals(payable(node))
    staked = shelf.totals(stake(node))
    ((waiting, high, low),) = rows(connection, _UNPAID, node)
    ((cases, deadline_ms),) = rows(connection, _CASES, node)
    address = next(
        rows(
            connection,
            "SELECT address FROM payout WHERE node = ? ORDER BY bound_ms DESC LIMIT 1",
            node,
        ),
        None,
    )
    return {
        "node": public_nkey(KeyKind.USER, node),
        "pending_nano_usd": str(open_now),
        "payable_nano_usd": str(ripe.balance),
        # What left the payable account went to the stake or was claimed.
        "paid_nano_usd": str(max(0, ripe.debits - staked.credits)),
        "stake_nano_usd": str(staked.balance),
        "next_payable_ms": _next_ms(connection, node, now_ms, maturity_ms) if open_now else None,
        "waiting_records": waiting,
        "waiting_nano_usd": str((high << 32) + low),
        "open_cases": cases,
        "next_deadline_ms": deadline_ms,
        "payout_address": f"0x{address[0].hex()}" if address is not None else None,
        "at_ms": now_ms,
    }


def _next_ms(connection: Connection, node: bytes, now_ms: int, maturity_ms: int) -> int | None:
    """When the oldest of what is pending becomes payable; None: its block is not closed yet."""
    ripe = next(
        rows(
            connection,
            "SELECT last_transfer FROM block WHERE closed_ms <= ?"
            " ORDER BY closed_ms DESC, height DESC LIMIT 1",
            now_ms - maturity_ms,
        ),
        (0,),
    )[0]
    young = next(
        rows(
            connection,
            "SELECT seq FROM transfer WHERE seq > ? AND credit_kind = 'node.pending'"
            " AND credit_owner = ? ORDER BY seq LIMIT 1",
            ripe,
            node,
        ),
        None,
    )
    # Without younger earnings all of it is old enough: the next look lets it mature.
    return now_ms if young is None else _mature_ms(connection, young[0], maturity_ms)


def _mature_ms(connection: Connection, seq: int, maturity_ms: int) -> int | None:
    """When what transfer ``seq`` brought matures; None: its block is not closed yet."""
    block = next(
        rows(
            connection,
            "SELECT closed_ms FROM block WHERE last_transfer >= ?"
            " ORDER BY last_transfer, height LIMIT 1",
            seq,
        ),
        None,
    )
    return None if block is None else block[0] + maturity_ms


def why(
    connection: Connection,
    *,
    task_id: str,
    node: PartyId | None,
    now_ms: int,
    maturity_ms: int,
) -> dict[str, object]:
    """Where the money of one task is: each record of it, or each of one node's.

    Raises:
        InvalidRequest: ``task_id`` is not hexadecimal.
        NotFound: there is no such record.
    """
    try:
        raw = bytes.fromhex(task_id)
    except ValueError:
        raise InvalidRequest("task_id is 32 hexadecimal digits", param="task_id") from None
    found = [
        _Record(connection, row, now_ms, maturity_ms) for row in rows(connection, _RECORDS, raw)
    ]
    if node is not None:
        found = [one for one in found if one.node == raw_public(node)]
    if not found:
        raise NotFound(f"no side has confirmed task {task_id!r} yet")
    return {"task_id": task_id, "records": [one.shown() for one in found]}


class _Record:
    """One record, and what became of its charge."""

    def __init__(
        self, connection: Connection, row: tuple[Any, ...], now_ms: int, maturity_ms: int
    ) -> None:
        (_, self.attempt, self.node, self.state, self.prompt, self.answer, self.price_id, *more) = (
            row
        )
        (self.charge, self.closed_ms, self.event_id, bps, *case) = more
        self.case_state, self.case_reason, self.deadline_ms, self.verdict = case
        self.share = node_share(self.charge, bps) if bps is not None else 0
        self.now_ms = now_ms
        self.mature_ms: int | None = None
        if self.event_id is not None:
            seq = next(
                rows(
                    connection,
                    f"SELECT max(seq) FROM transfer {OF_EVENT}",  # noqa: S608 - a constant
                    *of_event(self.event_id),
                )
            )[0]
            self.mature_ms = _mature_ms(connection, seq, maturity_ms) if seq else None

    def shown(self) -> dict[str, object]:
        """The record as it is reported."""
        stage, reason, moves_on_ms = self._stage()
        return {
            "attempt": self.attempt,
            "node": public_nkey(KeyKind.USER, self.node),
            "standing": Standing(self.state).name.lower(),
            "prompt_tokens": self.prompt,
            "answer_tokens": self.answer,
            "price_id": self.price_id,
            "charge_nano_usd": str(self.charge),
            "node_share_nano_usd": str(self.share),
            "closed_ms": self.closed_ms,
            "stage": stage,
            "reason": reason,
            "moves_on_ms": moves_on_ms,
        }

    def _stage(self) -> tuple[str, str, int | None]:
        """Where the money is, why, and when it moves on (Unix ms), if that is known."""
        if not self.charge:
            return "free", "no price was set for the model when it was asked", None
        if self.case_state == "open":
            reason = f"the two sides do not agree ({self.case_reason}): silence decides by default"
            return "contested", reason, self.deadline_ms
        if self.event_id is None:
            return self._unpaid()
        if self.mature_ms is None:
            return "pending", "paid; the block that holds the payment closes within seconds", None
        if self.now_ms < self.mature_ms:
            return "pending", "paid; it can still be contested until it matures", self.mature_ms
        return "payable", "matured: it goes into the next day's root, to be claimed", None

    def _unpaid(self) -> tuple[str, str, int | None]:
        if self.verdict is not None:
            return "decided", f"a case was decided: {self.verdict}", None
        match Standing(self.state):
            case Standing.NODE_ONLY:
                return "waiting", "the distributor has not confirmed it yet", None
            case Standing.DIST_ONLY:
                return "waiting", "the node has not confirmed it yet", None
            case Standing.MATCHED:
                return "unpaid", "both sides agree, and nobody could pay: see the operator", None
            case other:
                return "refused", f"it is not what the other side says ({other.name.lower()})", None
