"""Does the file still say what was signed? Recomputes leaves, roots, signatures and matches.

First the confirmations, slot by slot; then the books; then the chain of blocks over them. It shares
no state with the code that wrote the file, and can be called at any time. It reports, and repairs
nothing.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec

from starai.core.errors import MalformedFrame, SealBroken
from starai.ledger.reconciling import Standing, judge
from starai.protocol.identity import KeyKind, PartyId, public_nkey, raw_public, verify
from starai.protocol.records import TaskRecord, leaf_hash, set_root
from starai.protocol.registry import Confirm, Side
from starai.registry.log.integrity import ChainCheck
from starai.registry.money.books import verify_books
from starai.registry.reconciling.contests import claims_of
from starai.registry.schema import rows
from starai.registry.storage import Connection

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
    blocks: int
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


def check_integrity(connection: Connection, account: bytes) -> Integrity:
    """Check the whole file, through a connection that sees a consistent state of it.

    ``account`` is the raw public key by which the network signs its blocks.
    """
    found, chain = _Findings(), None
    try:
        network, block_ms = next(rows(connection, "SELECT name, block_ms FROM network"), ("", 1))
        for line in connection.damage(PROBLEMS_MAX):
            found.complain(line)
        blocks = rows(connection, "SELECT block FROM confirm UNION SELECT block FROM task")
        for (block,) in list(blocks):
            if not found.done():
                _check_block(connection, found, block, network, block_ms)
        _check_attempts(connection, found)
        for problem in verify_books(connection).problems:
            found.complain(problem)
        chain = ChainCheck(connection, network, account)
        for problem in chain.problems():
            found.complain(problem)
            if found.done():
                break
    except connection.errors as error:
        found.complain(f"the database: {error}")
    blocks_seen = 0 if chain is None else chain.num_blocks
    problems = tuple(found.problems[:PROBLEMS_MAX])
    return Integrity(found.confirms, found.records, blocks_seen, problems)


def _check_block(
    connection: Connection, found: _Findings, block: int, network: str, block_ms: int
) -> None:
    """Confirmations against their own root and signature, then records against confirmations."""
    confirmed: dict[tuple[int, bytes, bytes], set[bytes]] = defaultdict(set)
    for row in rows(
        connection,
        "SELECT seq, signer, side, node, part, root, sig, leaves, dist, charge FROM confirm"
        " WHERE block = ?",
        block,
    ):
        seq, signer, side, node, _, _, _, joined, *_ = row
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
    _, signer, _, _, _, root, sig, joined, *_ = row
    if len(joined) != _LEAF_BYTES * len(leaves) or set_root(leaves) != root:
        yield "its root is not that of its leaves"
    try:
        verify(PartyId(public_nkey(KeyKind.USER, signer)), _signed(row, network, block), sig)
    except (MalformedFrame, SealBroken, ValueError, TypeError, struct.error):
        yield "its signature does not verify"


def _signed(row: tuple[Any, ...], network: str, block: int) -> bytes:
    """The bytes under a confirmation's signature."""
    _, signer, side, node, part, root, sig, joined, distributor, charge = row
    if distributor is None:  # confirmed before confirmations named their distributor
        name = network.encode()
        form = f"<H{len(name)}sQIB32s32s32s"
        fixed = struct.pack(form, len(name), name, block, part, side, signer, node, root)
        return b"starai/v1/confirm" + fixed
    confirm = Confirm(
        network=network,
        block=block,
        part=part,
        side=Side(side),
        node=PartyId(public_nkey(KeyKind.USER, node)),
        distributor=PartyId(public_nkey(KeyKind.USER, distributor)),
        count=len(joined) // _LEAF_BYTES,
        charge_nano_usd=charge,
        root=root,
        signature=sig,
    )
    if raw_public(confirm.signer) != signer:
        raise MalformedFrame("its signer is neither of its parties")
    return confirm.signed_bytes()


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
    """States against what was said, attempt by attempt."""
    group: list[tuple[int, int]] = []
    current: tuple[Any, Any] | None = None
    for task_id, attempt, sides, state in rows(
        connection, "SELECT task_id, attempt, sides, state FROM task ORDER BY task_id, attempt"
    ):
        if (task_id, attempt) != current:
            _check_attempt(connection, found, current, group)
            current, group = (task_id, attempt), []
        group.append((sides, state))
    _check_attempt(connection, found, current, group)


def _check_attempt(
    connection: Connection,
    found: _Findings,
    attempt: tuple[Any, Any] | None,
    group: list[tuple[int, int]],
) -> None:
    if attempt is None or found.done():
        return
    if len(group) == 1:
        ((sides, state),) = group
        unknown = state == Standing.UNKNOWN and sides in set(Side)
        sound = 0 < sides <= 3 and (unknown or state == sides)
    else:
        try:
            kept = claims_of(connection, *attempt)
            sound = judge([row.claim for row in kept]) == [row.state for row in kept]
        except (MalformedFrame, ValueError):
            sound = False
    if not sound:
        found.complain(f"task {attempt[0].hex()}, attempt {attempt[1]}: its state is wrong")
