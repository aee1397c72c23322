"""What the sides of each task said, kept for ever, and what follows from it.

The usual way is short: the distributor's records are new, the node then says the same or only
their root, and all of them match and are paid at once. Whatever else happens to an attempt, all
that was said of it is read again and judged by `contests.py` beside this. Knows nothing of who may
confirm what (`confirmations.py`), nor of deadlines (`disputes.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

import msgspec

from starai.core.errors import Conflict, InvalidRequest, MalformedFrame
from starai.core.limits import ATTEMPT_RECORDS_MAX
from starai.ledger.reconciling import WAITING, Standing
from starai.protocol.identity import raw_public
from starai.protocol.records import TaskRecord
from starai.protocol.registry import Confirm, Side
from starai.registry.money.books import Owed
from starai.registry.reconciling.contests import close_cases, open_case, owed_for, pay, rejudge
from starai.registry.schema import rows
from starai.registry.storage import Connection

T = TypeVar("T")

_LEAF_BYTES: Final = 32
#: Attempts looked up by one statement; few sizes, so that few statements are prepared.
_LOOKUP_SIZES: Final = (1, 8, 64, 500)
_INSERT: Final = (
    "INSERT INTO task (task_id, attempt, leaf, sides, state, block, node, dist, cust, model,"
    " in_tok, out_tok, price_id, charge, closed_ms, rec, {column})"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_BY: Final = {
    Side.NODE: _INSERT.format(column="node_confirm"),
    Side.DISTRIBUTOR: _INSERT.format(column="dist_confirm"),
}
#: Adds the second side's word to a record that nobody contests.
_AGREE: Final = "UPDATE task SET sides = 3, state = 3, {column} = ? WHERE seq = ?"
_AGREE_BY: Final = {
    Side.NODE: _AGREE.format(column="node_confirm"),
    Side.DISTRIBUTOR: _AGREE.format(column="dist_confirm"),
}
#: How many different records of an attempt a party has said.
_COUNT_BY: Final = {
    Side.NODE: "SELECT count(*) FROM task WHERE task_id = ? AND attempt = ? AND node = ?"
    " AND node_confirm IS NOT NULL",
    Side.DISTRIBUTOR: "SELECT count(*) FROM task WHERE task_id = ? AND attempt = ? AND dist = ?"
    " AND dist_confirm IS NOT NULL",
}
#: Adds one side's word to a record; what it comes to is judged afterwards.
_SAY: Final = {
    Side.NODE: "UPDATE task SET sides = sides | 1, node_confirm = ? WHERE seq = ?",
    Side.DISTRIBUTOR: "UPDATE task SET sides = sides | 2, dist_confirm = ? WHERE seq = ?",
}


class CheckedRecord(msgspec.Struct, frozen=True, gc=False):
    """A record, its canonical bytes and their leaf."""

    leaf: bytes
    canonical: bytes
    record: TaskRecord

    @property
    def attempt(self) -> tuple[bytes, int]:
        """Which attempt of which task it is of."""
        return self.record.task_id, self.record.attempt


class Outcome(msgspec.Struct, frozen=True):
    """What a confirmation changed: new records, agreements reached, contradictions found."""

    fresh: int = 0
    matched: int = 0
    contradicting: int = 0


class _Row(NamedTuple):
    """A record as it is kept."""

    seq: int
    leaf: bytes
    sides: int
    event_id: bytes | None


class _Word(NamedTuple):
    """A confirmation that is being applied; ``seq`` is its row's."""

    seq: int
    side: Side
    node: bytes
    now_ms: int


def standing_named(name: str) -> Standing:
    """The standing called ``name``, in any case.

    Raises:
        InvalidRequest: there is none; the message lists them.
    """
    try:
        return Standing[name.upper()]
    except KeyError:
        names = ", ".join(standing.name.lower() for standing in Standing)
        raise InvalidRequest(f"no state {name!r}; states are {names}", param="state") from None


def apply(
    connection: Connection,
    confirm: Confirm,
    checked: Sequence[CheckedRecord],
    now_ms: int,
    *,
    unknown: bool = False,
) -> Outcome:
    """Keep a checked confirmation, match its records and pay; the same once more changes nothing.

    ``unknown``: its other party is not in the network.

    Raises:
        Conflict: this part was confirmed before, with another root; or its signer has said
            `ATTEMPT_RECORDS_MAX` different records of one of its attempts before.
    """
    if _said_before(connection, confirm):
        return Outcome()
    leaves = b"".join(sorted(one.leaf for one in checked))
    word = _keep(connection, confirm, leaves, now_ms)
    fresh, agreeing, contested = _sorted_out(connection, checked, word.side)
    seqs = _insert(connection, word, confirm.block, fresh, unknown=unknown)
    if len(seqs) == len(checked):  # see `apply_root`
        connection.execute(
            "UPDATE confirm SET first_task = ? WHERE seq = ?", (seqs.start, word.seq)
        )
    _agree(connection, word, agreeing)
    found = _contest(connection, word, confirm.block, contested, unknown=unknown)
    return Outcome(
        fresh=len(fresh) + sum(is_fresh for is_fresh, _ in found),
        matched=len(agreeing) + sum(state is Standing.MATCHED for _, state in found),
        contradicting=sum(
            state is not Standing.MATCHED and state not in WAITING for _, state in found
        ),
    )


def apply_root(connection: Connection, confirm: Confirm, now_ms: int) -> Outcome | None:
    """Match all that a distributor confirmed under the same root as this node now does.

    Returns None if its distributor has confirmed no such root, or not all at once: then the
    records must be said.

    Raises:
        Conflict: this part was confirmed before, with another root.
        MalformedFrame: it counts otherwise than the distributor under the same root.
    """
    if _said_before(connection, confirm):
        return Outcome()
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
            word = _keep(connection, confirm, leaves, now_ms)
            return _match_all(connection, word, twin, range(first, first + num))
    return None


def _match_all(connection: Connection, word: _Word, twin: int, seqs: range) -> Outcome:
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
    pay(connection, word.node, owed, word.now_ms)
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
        connection.execute(_SAY[word.side], (word.seq, seq))
        state = rejudge(connection, task_id, attempt, word.seq, word.now_ms)[seq]
        matched += state is Standing.MATCHED
        contradicting += state is not Standing.MATCHED
    return Outcome(matched=matched, contradicting=contradicting)


def _said_before(connection: Connection, confirm: Confirm) -> bool:
    known = connection.execute(
        "SELECT root FROM confirm"
        " WHERE block = ? AND signer = ? AND side = ? AND node = ? AND part = ?",
        (
            *(confirm.block, raw_public(confirm.signer), int(confirm.side)),
            *(raw_public(confirm.node), confirm.part),
        ),
    )
    for (root,) in list(known):
        if root != confirm.root:
            raise Conflict(f"part {confirm.part} of this block was confirmed with another root")
        return True
    return False


def _keep(connection: Connection, confirm: Confirm, leaves: bytes, now_ms: int) -> _Word:
    node = raw_public(confirm.node)
    ((seq,),) = connection.execute(
        "INSERT INTO confirm (block, signer, side, node, part, root, sig, leaves, at_ms,"
        " dist, charge) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq",
        (
            *(confirm.block, raw_public(confirm.signer), int(confirm.side), node, confirm.part),
            *(confirm.root, confirm.signature, leaves, now_ms),
            *(raw_public(confirm.distributor), confirm.charge_nano_usd),
        ),
    )
    return _Word(seq, confirm.side, node, now_ms)


def _sorted_out(
    connection: Connection, checked: Sequence[CheckedRecord], side: Side
) -> tuple[list[CheckedRecord], list[tuple[_Row, CheckedRecord]], list[CheckedRecord]]:
    """Which records are new, which agree with the other side's only one, and the others.

    What this side said before is in none of the three.
    """
    known = _known(connection, checked)
    fresh: dict[tuple[bytes, int], CheckedRecord] = {}
    agreeing: list[tuple[_Row, CheckedRecord]] = []
    contested: list[CheckedRecord] = []
    for one in checked:
        attempt = one.attempt
        there = known.get(attempt)
        if there is None and attempt not in fresh:
            fresh[attempt] = one
            continue
        mine = next((row for row in there or () if row.leaf == one.leaf), None)
        if mine is not None and mine.sides & side:
            continue
        if mine is not None and len(there or ()) == 1:
            agreeing.append((mine, one))
        else:
            contested.append(one)
    return list(fresh.values()), agreeing, contested


def _known(
    connection: Connection, checked: Sequence[CheckedRecord]
) -> dict[tuple[bytes, int], list[_Row]]:
    """What is kept of the attempts in question; a task may have any number of others."""
    known: dict[tuple[bytes, int], list[_Row]] = defaultdict(list)
    tasks: dict[int, list[bytes]] = defaultdict(list)
    for one in checked:
        tasks[one.record.attempt].append(one.record.task_id)
    for attempt, task_ids in tasks.items():  # most are of the first attempt
        for ids in _in_lots(task_ids):
            marks = ", ".join("?" * len(ids))
            found = connection.execute(
                "SELECT task_id, seq, leaf, sides, event_id FROM task"  # noqa: S608 - marks
                f" WHERE attempt = ? AND task_id IN ({marks})",
                (attempt, *ids),
            )
            for task_id, *row in found:
                known[task_id, attempt].append(_Row(*row))
    return dict(known)


def _in_lots(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """``values`` in lots of `_LOOKUP_SIZES`, the last of which repeats its end."""
    largest = _LOOKUP_SIZES[-1]
    for start in range(0, len(values), largest):
        lot = values[start : start + largest]
        size = next(size for size in _LOOKUP_SIZES if size >= len(lot))
        yield [*lot, *[lot[-1]] * (size - len(lot))]


def _insert(
    connection: Connection,
    word: _Word,
    block: int,
    fresh: Sequence[CheckedRecord],
    *,
    unknown: bool,
) -> range:
    """Add records of which nothing was said; the rows they have."""
    if not fresh:
        return range(0)
    state = int(Standing.UNKNOWN if unknown else Standing(word.side))
    connection.executemany(
        _INSERT_BY[word.side], [_cells(one, word, block, state) for one in fresh]
    )
    ((last,),) = connection.execute("SELECT max(seq) FROM task")  # there is one writer
    seqs = range(last - len(fresh) + 1, last + 1)
    if unknown:
        for seq in seqs:
            open_case(connection, seq, Standing.UNKNOWN, word.now_ms)
    return seqs


def _cells(one: CheckedRecord, word: _Word, block: int, state: int) -> tuple[object, ...]:
    record = one.record
    return (
        record.task_id,
        record.attempt,
        one.leaf,
        int(word.side),
        state,
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
        word.seq,
    )


def _agree(
    connection: Connection, word: _Word, agreeing: Sequence[tuple[_Row, CheckedRecord]]
) -> None:
    if not agreeing:
        return
    owed = [
        owed_for(row.seq, one.leaf, one.record)
        for row, one in agreeing
        if one.record.charge_nano_usd and row.event_id is None
    ]
    pay(connection, word.node, owed, word.now_ms)
    connection.executemany(_AGREE_BY[word.side], [(word.seq, row.seq) for row, _ in agreeing])
    close_cases(connection, [row.seq for row, _ in agreeing])


def _contest(
    connection: Connection,
    word: _Word,
    block: int,
    contested: Sequence[CheckedRecord],
    *,
    unknown: bool,
) -> list[tuple[bool, Standing]]:
    """Add records that differ from what is kept of their attempts, and judge those anew.

    Returns of each whether it is new, and its standing in the end.
    """
    seqs: list[tuple[int, bool, tuple[bytes, int]]] = []
    for one in contested:
        found = rows(
            connection,
            "SELECT seq, sides FROM task WHERE task_id = ? AND attempt = ? AND leaf = ?",
            *(*one.attempt, one.leaf),
        )
        kept = next(iter(list(found)), None)
        if kept is None:
            _check_room(connection, word.side, one)
            (seq,) = _insert(connection, word, block, [one], unknown=unknown)
            seqs.append((seq, True, one.attempt))
        else:
            connection.execute(_SAY[word.side], (word.seq, kept[0]))
            seqs.append((kept[0], False, one.attempt))
    states: dict[int, Standing] = {}
    for attempt in sorted({attempt for _, _, attempt in seqs}):
        states |= rejudge(connection, *attempt, word.seq, word.now_ms)
    return [(is_fresh, states[seq]) for seq, is_fresh, _ in seqs]


def _check_room(connection: Connection, side: Side, one: CheckedRecord) -> None:
    """Refuse one more record of an attempt by a party that has contradicted itself enough.

    Never one that the other side has said already: that has its row, and may be the truth.
    """
    record = one.record
    signer = record.node if side is Side.NODE else record.distributor
    ((num,),) = connection.execute(_COUNT_BY[side], (*one.attempt, signer))
    if num >= ATTEMPT_RECORDS_MAX:
        raise Conflict(f"{num} different records of this attempt were confirmed before")
