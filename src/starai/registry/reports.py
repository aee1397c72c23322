"""What people ask of the registry, read from the database: tasks, one task, the ledger.

Each function takes a connection and returns a value fit for JSON: parties as nkeys, ids and
hashes as hex, money as strings (a JSON number above 2^53 is another number in JavaScript). Knows
nothing of who may ask.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from starai.core.errors import InvalidRequest, NotFound
from starai.ledger.reconciling import Standing
from starai.protocol.identity import KeyKind, public_nkey, raw_public
from starai.protocol.registry import Side
from starai.registry.reconciling.tasks import standing_named
from starai.registry.schema import INTEGER_MAX, integer, rows
from starai.registry.storage import Connection

#: Rows of one report: 500 tasks are 300 KB, well inside a frame.
REPORT_ROWS_MAX: Final = 500

_TASK: Final = (
    "SELECT seq, task_id, attempt, state, block, node, dist, cust, model, in_tok, out_tok,"
    " price_id, charge, closed_ms, leaf, sides FROM task"
)
#: Of distinct records; tokens count where both sides agree.
_SUMS: Final = (
    "count(*), count(*) FILTER (WHERE state = 3), count(*) FILTER (WHERE state IN (1, 2)),"
    " count(*) FILTER (WHERE state > 3),"
    " sum(in_tok) FILTER (WHERE state = 3), sum(out_tok) FILTER (WHERE state = 3)"
)
_SUM_NAMES: Final = ("records", "matched", "waiting", "conflicting", "in_tokens", "out_tokens")


def tasks(
    connection: Connection,
    *,
    limit: int = 50,
    state: str | None = None,
    node: str | None = None,
    before: int = INTEGER_MAX,
) -> dict[str, object]:
    """The newest records, one row each. ``before`` is the ``seq`` to page on from.

    Raises:
        InvalidRequest: a filter is malformed.
    """
    integer(limit, "limit", least=1, most=REPORT_ROWS_MAX)
    integer(before, "before")
    filters: dict[str, object] = {"seq < ?": before}
    if state is not None:
        filters["state = ?"] = int(standing_named(state))
    if node is not None:
        filters["node = ?"] = raw_public(node)
    where = " AND ".join(filters)
    found = rows(
        connection,
        f"{_TASK} WHERE {where} ORDER BY seq DESC LIMIT ?",
        *(*filters.values(), limit),
    )
    return {"tasks": [_task(row) for row in found]}


def task(connection: Connection, *, task_id: str) -> dict[str, object]:
    """All that is known of one task: each attempt, each record, who signed it and when.

    Raises:
        InvalidRequest: ``task_id`` is not hexadecimal.
        NotFound: no side has confirmed it yet.
    """
    try:
        raw = bytes.fromhex(task_id)
    except ValueError:
        raise InvalidRequest("task_id is 32 hexadecimal digits", param="task_id") from None
    found = list(rows(connection, f"{_TASK} WHERE task_id = ? ORDER BY attempt, seq", raw))
    if not found:
        raise NotFound(f"no side has confirmed task {task_id!r} yet")
    records = []
    for row in found:
        signed = rows(
            connection,
            "SELECT confirm.side, confirm.part, confirm.root, confirm.at_ms"
            " FROM task JOIN confirm ON confirm.seq IN (task.node_confirm, task.dist_confirm)"
            " WHERE task.seq = ? ORDER BY confirm.side",
            row[0],
        )
        confirmed = [
            {"side": Side(side).name.lower(), "part": part, "root": root.hex(), "at_ms": at_ms}
            for side, part, root, at_ms in signed
        ]
        records.append({**_task(row), "confirmed": confirmed})
    return {"task_id": task_id, "records": records}


def ledger(connection: Connection, *, limit: int = 20) -> dict[str, object]:
    """The newest blocks, the totals, and each node's part. Tokens count where both sides agree.

    Raises:
        InvalidRequest: ``limit`` is out of range.
    """
    integer(limit, "limit", least=1, most=REPORT_ROWS_MAX)
    name, block_ms = next(rows(connection, "SELECT name, block_ms FROM network"), ("", 0))
    blocks = rows(
        connection,
        f"SELECT block, {_SUMS} FROM task GROUP BY block ORDER BY block DESC LIMIT ?",  # noqa: S608
        limit,
    )
    nodes = rows(
        connection,
        f"SELECT node, {_SUMS} FROM task GROUP BY node ORDER BY 2 DESC LIMIT ?",  # noqa: S608
        REPORT_ROWS_MAX,
    )
    totals = next(rows(connection, f"SELECT {_SUMS} FROM task"))  # noqa: S608
    return {
        "network": name,
        "block_ms": block_ms,
        "totals": _sums(totals),
        "blocks": [
            {"block": block, "from_ms": block * block_ms, **_sums(sums)} for block, *sums in blocks
        ],
        "nodes": [{"node": _nkey(node), **_sums(sums)} for node, *sums in nodes],
        "money": _money(connection),
    }


def _money(connection: Connection) -> dict[str, str]:
    """What is in all accounts of each kind together, in nano-USD."""
    kinds = rows(
        connection,
        "SELECT kind, CAST(sum(credits - debits) AS BIGINT) FROM account"
        " GROUP BY kind ORDER BY kind",
    )
    return {kind: str(amount) for kind, amount in kinds}


def _nkey(raw: bytes) -> str:
    return public_nkey(KeyKind.USER, raw)


def _sums(values: Iterable[int | None]) -> dict[str, int]:
    return {name: value or 0 for name, value in zip(_SUM_NAMES, values, strict=True)}


def _task(row: tuple[Any, ...]) -> dict[str, object]:
    seq, task_id, attempt, state, block, node, dist, *more = row
    cust, model, in_tok, out_tok, price_id, charge, closed_ms, leaf, sides = more
    return {
        "seq": seq,
        "task_id": task_id.hex(),
        "attempt": attempt,
        "state": Standing(state).name.lower(),
        "sides": [side.name.lower() for side in Side if sides & side],
        "block": block,
        "node": _nkey(node),
        "distributor": _nkey(dist),
        "customer": cust,
        "model_root": model.hex(),
        "prompt_tokens": in_tok,
        "answer_tokens": out_tok,
        "price_id": price_id,
        "charge_nano_usd": str(charge),
        "closed_ms": closed_ms,
        "leaf": leaf.hex(),
    }
