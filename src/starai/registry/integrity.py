"""Does the file still say what was signed? Recomputes leaves, roots, signatures and matches.

Works block by block, so memory is bounded by one block. It shares no state with the code that
wrote the file; callable whenever the registry is idle. It reports, and repairs nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec

from starai.core.errors import MalformedFrame, SealBroken
from starai.protocol.identity import KeyKind, PartyId, public_nkey, verify
from starai.protocol.records import TaskRecord, leaf_hash, set_root
from starai.protocol.registry import Confirm, Side
from starai.registry.schema import rows
from starai.registry.storage import Connection
from starai.registry.tasks import judge

#: Problems listed before giving up: one broken page already says that the file is broken.
PROBLEMS_MAX = 100
_LEAF_BYTES = 32
_COLUMNS = (
    *("seq", "task_id", "attempt", "leaf", "sides", "block", "node", "dist", "cust", "model"),
    *("in_tok", "out_tok", "price_id", "charge", "closed_ms", "node_confirm", "dist_confirm"),
    "rec",
)


class Integrity(msgspec.Struct, frozen=True):
    """What was checked, and each thing found wrong, in words; ``problems`` empty means sound."""

    confirms: int
    records: int
    problems: tuple[str, ...]


class _Findings:
    """Counts and complaints of one check, per block: who confirmed which leaf."""

    def __init__(self) -> None:
        self.confirms = 0
        self.records = 0
        self.problems: list[str] = []

    def complain(self, what: str) -> None:
        self.problems.append(what)

    def done(self) -> bool:
        return len(self.problems) >= PROBLEMS_MAX


def check_integrity(connection: Connection) -> Integrity:
    """Check the whole file, through a connection that sees a consistent state of it."""
    found = _Findings()
    try:
        network, block_ms = next(rows(connection, "SELECT name, block_ms FROM network"), ("", 1))
        for line in connection.damage(PROBLEMS_MAX):
            found.complain(line)
        blocks = rows(connection, "SELECT block FROM confirm UNION SELECT block FROM task")
        for (block,) in list(blocks):
            if not found.done():
                _check_block(connection, found, block, network, block_ms)
        _check_attempts(connection, found)
    except connection.errors as error:
        found.complain(f"the database: {error}")
    return Integrity(found.confirms, found.records, tuple(found.problems[:PROBLEMS_MAX]))


def _check_block(
    connection: Connection, found: _Findings, block: int, network: str, block_ms: int
) -> None:
    """Confirmations against their own root and signature, then records against confirmations."""
    confirmed: dict[tuple[int, bytes, bytes], set[bytes]] = defaultdict(set)
    for row in rows(
        connection,
        "SELECT seq, signer, side, node, part, root, sig, leaves FROM confirm WHERE block = ?",
        block,
    ):
        seq, signer, side, node, _, _, _, joined = row
        found.confirms += 1
        leaves = {joined[i : i + _LEAF_BYTES] for i in range(0, len(joined), _LEAF_BYTES)}
        confirmed[side, signer, node] |= leaves
        for fault in _confirm_faults(row, leaves, network, block):
            found.complain(f"confirmation {seq}: {fault}")
    stored: dict[tuple[int, bytes, bytes], set[bytes]] = defaultdict(set)
    for row in rows(connection, f"SELECT {', '.join(_COLUMNS)} FROM task WHERE block = ?", block):  # noqa: S608
        cells = dict(zip(_COLUMNS, row, strict=True))
        found.records += 1
        for fault in _record_faults(cells, block_ms):
            found.complain(f"record {cells['seq']}: {fault}")
        if cells["sides"] & Side.NODE:
            stored[Side.NODE, cells["node"], cells["node"]].add(cells["leaf"])
        if cells["sides"] & Side.DISTRIBUTOR:
            stored[Side.DISTRIBUTOR, cells["dist"], cells["node"]].add(cells["leaf"])
    for key in confirmed.keys() | stored.keys():
        if confirmed[key] != stored[key]:
            found.complain(f"block {block}: side {key[0]} did not sign what is stored, or more")


def _confirm_faults(
    row: tuple[Any, ...], leaves: set[bytes], network: str, block: int
) -> Iterator[str]:
    _, signer, side, node, part, root, sig, joined = row
    if len(joined) != _LEAF_BYTES * len(leaves) or set_root(leaves) != root:
        yield "its root is not that of its leaves"
    try:
        signer_id = PartyId(public_nkey(KeyKind.USER, signer))
        node_id = PartyId(public_nkey(KeyKind.USER, node))
        confirm = Confirm(network, block, part, Side(side), signer_id, node_id, b"", root, sig)
        verify(signer_id, confirm.signed_bytes(), sig)
    except (MalformedFrame, SealBroken, ValueError):
        yield "its signature does not verify"


def _record_faults(cells: dict[str, Any], block_ms: int) -> Iterator[str]:
    if leaf_hash(cells["rec"]) != cells["leaf"]:
        yield "its leaf is not the hash of its bytes"
    try:
        record = TaskRecord.parse(cells["rec"])
    except MalformedFrame:
        yield "its bytes are no record"
        return
    expected = {
        "task_id": record.task_id,
        "attempt": record.attempt,
        "block": record.block(block_ms),
        "node": record.node,
        "dist": record.distributor,
        "cust": record.customer,
        "model": record.model_root,
        "in_tok": record.prompt_tokens,
        "out_tok": record.answer_tokens,
        "price_id": record.price_id,
        "charge": record.charge_nano_usd,
        "closed_ms": record.closed_ms,
    }
    wrong = [name for name, value in expected.items() if cells[name] != value]
    if wrong:
        yield f"columns {', '.join(wrong)} differ from its bytes"
    for side, column in ((Side.NODE, "node_confirm"), (Side.DISTRIBUTOR, "dist_confirm")):
        if bool(cells["sides"] & side) != (cells[column] is not None):
            yield f"{column} does not fit its sides"


def _check_attempts(connection: Connection, found: _Findings) -> None:
    """States against `judge`, attempt by attempt."""
    group: list[tuple[int, int]] = []
    current: tuple[Any, Any] | None = None
    for task_id, attempt, sides, state in rows(
        connection, "SELECT task_id, attempt, sides, state FROM task ORDER BY task_id, attempt"
    ):
        if (task_id, attempt) != current:
            _check_attempt(found, current, group)
            current, group = (task_id, attempt), []
        group.append((sides, state))
    _check_attempt(found, current, group)


def _check_attempt(
    found: _Findings, attempt: tuple[Any, Any] | None, group: list[tuple[int, int]]
) -> None:
    if attempt is None or found.done():
        return
    sound = all(0 < sides <= 3 for sides, _ in group)
    if not sound or judge([sides for sides, _ in group]) != [state for _, state in group]:
        found.complain(f"task {attempt[0].hex()}, attempt {attempt[1]}: its state is wrong")
