"""What the sides of each task said, kept for ever, and what follows from it.

The usual way is short: the distributor's records are new, the node then says the same or only
their root (`roots.py`), and all of them match and are paid at once. Whatever else happens to an
attempt, all that was said of it is read again and judged by `contests.py`. Confirmations that wait
together are applied together, by as many statements as one. Knows nothing of who may confirm what
(`confirmations.py`), nor of deadlines (`disputes.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from starai.core.errors import Conflict, InvalidRequest
from starai.core.limits import ATTEMPT_RECORDS_MAX
from starai.ledger.reconciling import WAITING, Standing
from starai.protocol.registry import Side
from starai.registry.money.books import Invoice
from starai.registry.reconciling.contests import close_cases, open_case, owed_for, pay, rejudge
from starai.registry.reconciling.roots import apply_roots
from starai.registry.reconciling.words import (
    SAY,
    Answer,
    CheckedRecord,
    Kept,
    Outcome,
    Said,
    Word,
    alone,
    keep,
    last_rows,
    said_before,
)
from starai.registry.schema import rows, rows_in
from starai.registry.storage import Connection

_Attempt: TypeAlias = tuple[bytes, int]

_KNOWN: Final = (
    "SELECT task_id, attempt, seq, leaf, sides, event_id FROM task"
    " WHERE (task_id, attempt) IN (VALUES {})"
)
_INSERT: Final = (
    "INSERT INTO task (seq, task_id, attempt, leaf, sides, state, block, node, dist, cust, model,"
    " in_tok, out_tok, price_id, charge, closed_ms, rec, node_confirm, dist_confirm)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
#: Adds the second side's word to a record that nobody contests.
_AGREE: Final = {
    Side.NODE: "UPDATE task SET sides = 3, state = 3, node_confirm = ? WHERE seq = ?",
    Side.DISTRIBUTOR: "UPDATE task SET sides = 3, state = 3, dist_confirm = ? WHERE seq = ?",
}
#: How many different records of an attempt a party has said.
_COUNT_BY: Final = {
    Side.NODE: "SELECT count(*) FROM task WHERE task_id = ? AND attempt = ? AND node = ?"
    " AND node_confirm IS NOT NULL",
    Side.DISTRIBUTOR: "SELECT count(*) FROM task WHERE task_id = ? AND attempt = ? AND dist = ?"
    " AND dist_confirm IS NOT NULL",
}


class _Row(NamedTuple):
    """A record as it is kept."""

    seq: int
    leaf: bytes
    sides: int
    event_id: bytes | None


class _Sorted(NamedTuple):
    """A confirmation's records: new, agreeing with the other side's only one, or contested.

    What its side said before is in none of the three.
    """

    said: Said
    fresh: list[CheckedRecord]
    agreeing: list[tuple[_Row, CheckedRecord]]
    contested: list[CheckedRecord]


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


def apply(connection: Connection, said: Sequence[Said]) -> list[Answer]:
    """Keep checked confirmations, match their records and pay; of each, what came of it.

    The same once more changes nothing. A confirmation that is refused leaves nothing behind, and
    is answered with a `Conflict` (its part was confirmed before with another root; or its signer
    has said `ATTEMPT_RECORDS_MAX` different records of one of its attempts before) or a
    `MalformedFrame` (see `apply_roots`). What waits for a distributor's word comes after all words.
    """
    answers: list[Answer] = [None] * len(said)
    for is_whole, apply_layer in ((True, _apply_records), (False, apply_roots)):
        for layer in _layers(said, [bool(one.checked) is is_whole for one in said]):
            found = apply_layer(connection, [said[position] for position in layer])
            for position, answer in zip(layer, found, strict=True):
                answers[position] = answer
    return answers


def _layers(said: Sequence[Said], chosen: Sequence[bool]) -> Iterable[list[int]]:
    """The positions of those chosen, in layers of which each can be applied at once.

    No part and no attempt is twice in a layer; what shares one follows in the order it came.
    """
    positions = [position for position, is_chosen in enumerate(chosen) if is_chosen]
    if len(positions) < 2:
        return [positions] * len(positions)
    layers: dict[int, list[int]] = defaultdict(list)
    free: dict[object, int] = {}
    for position in positions:
        keys = [said[position].part, *(checked.attempt for checked in said[position].checked)]
        layer = max(free.get(key, 0) for key in keys)
        layers[layer].append(position)
        free.update(dict.fromkeys(keys, layer + 1))
    return [layers[number] for number in sorted(layers)]


def _apply_records(connection: Connection, said: Sequence[Said]) -> list[Answer]:
    """Apply a layer: what is contested alone, all else together."""
    before = said_before(connection, said)
    new = [one for one, answer in zip(said, before, strict=True) if answer is None]
    known = _known(connection, [checked for one in new for checked in one.checked])
    found = [_sorted_out(one, known) for one in new]
    _take(connection, [one for one in found if not one.contested])
    outcomes = iter(
        [
            alone(connection, partial(_take_contested, connection, one))
            if one.contested
            else Outcome(fresh=len(one.fresh), matched=len(one.agreeing))
            for one in found
        ]
    )
    return [next(outcomes) if answer is None else answer for answer in before]


def _known(connection: Connection, checked: Sequence[CheckedRecord]) -> dict[_Attempt, list[_Row]]:
    """What is kept of the attempts in question; a task may have any number of others."""
    known: dict[_Attempt, list[_Row]] = defaultdict(list)
    for task_id, attempt, *row in rows_in(connection, _KNOWN, [one.attempt for one in checked]):
        known[task_id, attempt].append(_Row(*row))
    return known


def _sorted_out(said: Said, known: Mapping[_Attempt, list[_Row]]) -> _Sorted:
    side = said.confirm.side
    found = _Sorted(said, [], [], [])
    for one in said.checked:
        there = known.get(one.attempt)
        if there is None:
            found.fresh.append(one)
            continue
        mine = next((row for row in there if row.leaf == one.leaf), None)
        if mine is not None and mine.sides & side:
            continue
        if mine is not None and len(there) == 1:
            found.agreeing.append((mine, one))
        else:
            found.contested.append(one)
    return found


def _take(connection: Connection, found: Sequence[_Sorted]) -> list[Word]:
    """Keep confirmations with their new records, and pay for what now agrees."""
    if not found:
        return []
    last_word, last_task = last_rows(connection)
    kept: list[Kept] = []
    first = last_task + 1
    for said, fresh, *_ in found:
        leaves = b"".join(sorted(one.leaf for one in said.checked))
        is_whole = len(fresh) == len(said.checked)  # see `apply_roots`
        kept.append(Kept(said, leaves, first if is_whole else None))
        first += len(fresh)
    words = keep(connection, last_word, kept)
    pairs = list(zip(words, found, strict=True))
    fresh_of = [(word, one) for word, sorted_out in pairs for one in sorted_out.fresh]
    _insert(connection, last_task, fresh_of)
    _agree(connection, pairs)
    return words


def _insert(connection: Connection, last: int, fresh: Sequence[tuple[Word, CheckedRecord]]) -> None:
    """Add records of which nothing was said, after row ``last``."""
    connection.executemany(
        _INSERT, [_cells(seq, word, one) for seq, (word, one) in enumerate(fresh, last + 1)]
    )
    for seq, (word, _) in enumerate(fresh, last + 1):
        if word.said.unknown:
            open_case(connection, seq, Standing.UNKNOWN, word.said.now_ms)


def _cells(seq: int, word: Word, one: CheckedRecord) -> tuple[object, ...]:
    record, side = one.record, word.side
    return (
        seq,
        record.task_id,
        record.attempt,
        one.leaf,
        int(side),
        int(Standing.UNKNOWN if word.said.unknown else side),
        word.said.confirm.block,
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
        word.seq if side is Side.NODE else None,
        word.seq if side is Side.DISTRIBUTOR else None,
    )


def _agree(connection: Connection, found: Sequence[tuple[Word, _Sorted]]) -> None:
    invoices: list[Invoice] = []
    agreed: dict[Side, list[tuple[int, int]]] = {side: [] for side in Side}
    for word, sorted_out in found:
        owed = [
            owed_for(row.seq, one.leaf, one.record)
            for row, one in sorted_out.agreeing
            if one.record.charge_nano_usd and row.event_id is None
        ]
        invoices.append(Invoice(word.node, owed, word.said.now_ms, word.said.confirm.block))
        agreed[word.side] += [(word.seq, row.seq) for row, _ in sorted_out.agreeing]
    pay(connection, invoices)
    for side, pairs in agreed.items():
        connection.executemany(_AGREE[side], pairs)
        close_cases(connection, [seq for _, seq in pairs])


def _take_contested(connection: Connection, found: _Sorted) -> Outcome:
    """Take a confirmation of which some records differ from what is kept of their attempts."""
    (word,) = _take(connection, [found])
    judged = _contest(connection, word, found.contested)
    return Outcome(
        fresh=len(found.fresh) + sum(is_fresh for is_fresh, _ in judged),
        matched=len(found.agreeing) + sum(state is Standing.MATCHED for _, state in judged),
        contradicting=sum(
            state is not Standing.MATCHED and state not in WAITING for _, state in judged
        ),
    )


def _contest(
    connection: Connection, word: Word, contested: Sequence[CheckedRecord]
) -> list[tuple[bool, Standing]]:
    """Add contested records, and judge their attempts anew.

    Returns of each whether it is new, and its standing in the end.
    """
    seqs: list[tuple[int, bool, _Attempt]] = []
    for one in contested:
        found = rows(
            connection,
            "SELECT seq FROM task WHERE task_id = ? AND attempt = ? AND leaf = ?",
            *(*one.attempt, one.leaf),
        )
        kept = next(iter(list(found)), None)
        if kept is None:
            _check_room(connection, word.side, one)
            _, last = last_rows(connection)
            _insert(connection, last, [(word, one)])
            seqs.append((last + 1, True, one.attempt))
        else:
            connection.execute(SAY[word.side], (word.seq, kept[0]))
            seqs.append((kept[0], False, one.attempt))
    states: dict[int, Standing] = {}
    for attempt in sorted({attempt for _, _, attempt in seqs}):
        states |= rejudge(connection, *attempt, word.seq, word.said.now_ms)
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
