"""What the sides of each task said, kept for ever, and whether they agree.

Both sides derive the same record, so agreement is equality of leaves (ledger design, section
4.3). What a record's standing is follows from the set of records that the sides confirmed, never
from the order in which they came: see `judge`. Knows nothing of prices, payment or disputes, nor
of who may confirm what: `starai.registry.confirmations` does.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

import msgspec

from starai.core.errors import Conflict, InvalidRequest
from starai.protocol.identity import raw_public
from starai.protocol.records import TaskRecord
from starai.protocol.registry import Confirm, Side
from starai.registry.schema import rows
from starai.registry.storage import Connection

_BOTH: Final = Side.NODE | Side.DISTRIBUTOR
_INSERT: Final = """
INSERT INTO task (
  task_id, attempt, leaf, sides, state, block, node, dist, cust, model, in_tok, out_tok,
  price_id, charge, closed_ms, rec
) VALUES (?, ?, ?, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq
"""
#: Adds one side's word to a record; the confirmation that first brought it stays named.
_CONFIRM: Final = {
    Side.NODE: "UPDATE task SET sides = sides | 1, node_confirm = ? WHERE seq = ?",
    Side.DISTRIBUTOR: "UPDATE task SET sides = sides | 2, dist_confirm = ? WHERE seq = ?",
}


class State(enum.IntEnum):
    """The standing of one record of one attempt."""

    #: Only the node confirmed it; the distributor may still.
    NODE_ONLY = 1
    #: Only the distributor confirmed it; the node may still.
    DIST_ONLY = 2
    #: Both sides confirmed exactly this record.
    MATCHED = 3
    #: The other side confirmed a different record.
    CONTENT = 4
    #: Its side confirmed several records of one attempt, and this one is not agreed.
    CONFLICT = 5


def judge(sides: Sequence[int]) -> list[State]:
    """The standing of each distinct record of one attempt, given who confirmed it.

    ``sides`` are bit sets of `Side`. A record that both sides signed is MATCHED even if one of
    them signs another later: that other one is the CONFLICT. Two records that both sides signed
    contradict each other, so neither is agreed.
    """
    agreed = sum(own == _BOTH for own in sides)
    states = []
    for own in sides:
        if own == _BOTH:
            states.append(State.MATCHED if agreed == 1 else State.CONFLICT)
        elif sum(1 for other in sides if other & own) > 1:
            states.append(State.CONFLICT)
        elif len(sides) > 1:
            states.append(State.CONTENT)
        else:
            states.append(State(own))
    return states


def state_named(name: str) -> State:
    """The state called ``name``, in any case.

    Raises:
        InvalidRequest: there is none; the message lists them.
    """
    try:
        return State[name.upper()]
    except KeyError:
        names = ", ".join(state.name.lower() for state in State)
        raise InvalidRequest(f"no state {name!r}; states are {names}", param="state") from None


class CheckedRecord(msgspec.Struct, frozen=True):
    """A record, its canonical bytes and their leaf."""

    leaf: bytes
    canonical: bytes
    record: TaskRecord


class Outcome(msgspec.Struct, frozen=True):
    """What a confirmation changed: new records, agreements reached, contradictions found."""

    fresh: int = 0
    matched: int = 0
    contradicting: int = 0


def apply(
    connection: Connection, confirm: Confirm, checked: Sequence[CheckedRecord], now_ms: int
) -> Outcome:
    """Keep a checked confirmation and match its records; the same once more changes nothing.

    Raises:
        Conflict: this part was confirmed before, with another root.
    """
    node, signer = raw_public(confirm.node), raw_public(confirm.signer)
    key = (confirm.block, signer, int(confirm.side), node, confirm.part)
    known = next(
        rows(
            connection,
            "SELECT root FROM confirm"
            " WHERE block = ? AND signer = ? AND side = ? AND node = ? AND part = ?",
            *key,
        ),
        None,
    )
    if known is not None:
        if known[0] != confirm.root:
            raise Conflict(f"part {confirm.part} of this block was confirmed with another root")
        return Outcome()
    leaves = b"".join(sorted(one.leaf for one in checked))
    ((seq,),) = connection.execute(
        "INSERT INTO confirm (block, signer, side, node, part, root, sig, leaves, at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq",
        (*key, confirm.root, confirm.signature, leaves, now_ms),
    )
    found = [_match(connection, confirm, seq, one) for one in checked]
    return Outcome(
        fresh=sum(is_fresh for is_fresh, _ in found),
        matched=sum(state is State.MATCHED for _, state in found),
        contradicting=sum(state in {State.CONTENT, State.CONFLICT} for _, state in found),
    )


def _match(
    connection: Connection, confirm: Confirm, confirm_seq: int, one: CheckedRecord
) -> tuple[bool, State | None]:
    """Add one side's word on one record, and judge its attempt anew.

    Returns whether the record is new, and its state, or None if this side said so before.
    """
    attempt = (one.record.task_id, one.record.attempt)
    known = list(
        rows(
            connection,
            "SELECT seq, leaf, sides, state FROM task WHERE task_id = ? AND attempt = ?",
            *attempt,
        )
    )
    mine = next((row for row in known if row[1] == one.leaf), None)
    if mine is not None and mine[2] & confirm.side:
        return False, None
    is_fresh = mine is None
    if mine is None:
        mine = (_insert(connection, confirm.block, one), one.leaf, 0, 0)
        known.append(mine)
    connection.execute(_CONFIRM[confirm.side], (confirm_seq, mine[0]))
    states = judge([own | confirm.side if seq == mine[0] else own for seq, _, own, _ in known])
    for (seq, _, _, before), after in zip(known, states, strict=True):
        if before != after:
            connection.execute("UPDATE task SET state = ? WHERE seq = ?", (int(after), seq))
    return is_fresh, states[known.index(mine)]


def _insert(connection: Connection, block: int, one: CheckedRecord) -> int:
    record = one.record
    ((seq,),) = connection.execute(
        _INSERT,
        (
            record.task_id,
            record.attempt,
            one.leaf,
            block,
            record.node,
            record.distributor,
            record.customer,
            record.model_root,
            record.prompt_tokens,
            record.answer_tokens,
            record.price_id,
            record.charge_nano_usd,
            record.closed_ms,
            one.canonical,
        ),
    )
    return int(seq)
