"""A node's word by its root alone: it matches all that its distributor confirmed under that root.

The usual way of the network: a node need not repeat what its distributor has said already. Knows
nothing of records that a node says.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from starai.core.errors import MalformedFrame
from starai.ledger.reconciling import Standing
from starai.protocol.identity import raw_public
from starai.protocol.registry import Side
from starai.registry.money.books import Invoice, Owed
from starai.registry.reconciling.contests import close_cases, pay, rejudge
from starai.registry.reconciling.words import (
    SAY,
    Answer,
    Kept,
    Outcome,
    Part,
    Said,
    Word,
    alone,
    keep,
    last_rows,
    said_before,
)
from starai.registry.schema import rows_in
from starai.registry.storage import Connection

_LEAF_BYTES: Final = 32
_TWINS: Final = (
    "SELECT block, signer, side, node, part, root, seq, leaves, charge, first_task FROM confirm"
    " WHERE (block, signer, side, node, part) IN (VALUES {})"
)
_RECORDS: Final = (
    "SELECT seq, leaf, cust, price_id, in_tok, out_tok, charge, task_id, attempt, state,"
    " dist_confirm, node_confirm, event_id FROM task WHERE seq IN ({})"
)
#: Adds a node's word to all that its distributor's word brought and nobody contests.
_AGREE: Final = (
    "UPDATE task SET sides = 3, state = 3, node_confirm = ?"
    " WHERE seq BETWEEN ? AND ? AND dist_confirm = ? AND state = 2"
)


class _Record(NamedTuple):
    """A record as it is kept."""

    owed: Owed
    task_id: bytes
    attempt: int
    state: int
    dist_confirm: int | None
    node_confirm: int | None
    event_id: bytes | None


class _Twin(NamedTuple):
    """The distributor's confirmation of the same root: its row, and those that it brought."""

    seq: int
    leaves: bytes
    charge: int
    first_task: int

    @property
    def seqs(self) -> range:
        """The rows of `task`."""
        return range(self.first_task, self.first_task + len(self.leaves) // _LEAF_BYTES)


class _Matching(NamedTuple):
    """A node's root, its twin, and of what that brought: what now agrees, and what is contested."""

    said: Said
    twin: _Twin
    agreeing: list[_Record]
    contested: list[_Record]


def apply_roots(connection: Connection, said: Sequence[Said]) -> list[Answer]:
    """Match all that distributors confirmed under the same roots as these nodes now do.

    No part may be twice in ``said``. The answer is None if the distributor has confirmed no such
    root, or not all at once: then the records must be said. It is a `MalformedFrame` if the node
    counts otherwise than the distributor under the same root.
    """
    answers = said_before(connection, said)
    new = [position for position, answer in enumerate(answers) if answer is None]
    twins = _twins(connection, [said[position] for position in new])
    matching: dict[int, _Matching] = {}
    for position in new:
        one = said[position]
        twin = twins.get(_twin_part(one))
        if twin is None:
            continue
        confirm = one.confirm
        if (len(twin.seqs), twin.charge) == (confirm.count, confirm.charge_nano_usd):
            matching[position] = _Matching(one, twin, [], [])
        else:
            answers[position] = MalformedFrame(
                "a confirmation counts otherwise than its root's records"
            )
    _look_up(connection, list(matching.values()))
    _match(connection, [one for one in matching.values() if not one.contested])
    for position, found in matching.items():
        answers[position] = (
            alone(connection, partial(_match_contested, connection, found))
            if found.contested
            else Outcome(matched=len(found.agreeing))
        )
    return answers


def _twin_part(said: Said) -> Part:
    confirm = said.confirm
    distributor, node = raw_public(confirm.distributor), raw_public(confirm.node)
    return confirm.block, distributor, int(Side.DISTRIBUTOR), node, confirm.part


def _twins(connection: Connection, said: Sequence[Said]) -> dict[Part, _Twin]:
    """The distributors' confirmations of the same roots, of which all records were new."""
    roots = {_twin_part(one): one.confirm.root for one in said}
    twins: dict[Part, _Twin] = {}
    for *key, root, seq, leaves, charge, first_task in rows_in(connection, _TWINS, list(roots)):
        block, signer, side, node, part = key
        if roots[block, signer, side, node, part] == root and first_task is not None:
            twins[block, signer, side, node, part] = _Twin(seq, leaves, charge, first_task)
    return twins


def _look_up(connection: Connection, matching: Sequence[_Matching]) -> None:
    """Read the records of all of them, and sort them."""
    seqs = [seq for one in matching for seq in one.twin.seqs]
    found: dict[int, _Record] = {}
    for *owed, task_id, attempt, state, heard, said, event_id in rows_in(
        connection, _RECORDS, seqs
    ):
        kept = _Record(Owed(*owed), task_id, attempt, state, heard, said, event_id)
        found[kept.owed.seq] = kept
    for one in matching:
        for seq in one.twin.seqs:
            record = found.get(seq)
            if record is None or record.dist_confirm != one.twin.seq:
                continue
            if record.state == Standing.DIST_ONLY:
                one.agreeing.append(record)
            elif record.node_confirm is None:
                one.contested.append(record)


def _match(connection: Connection, matching: Sequence[_Matching]) -> list[Word]:
    """Keep the nodes' words, pay for what now agrees, and let it match."""
    if not matching:
        return []
    kept = [Kept(one.said, one.twin.leaves) for one in matching]
    words = keep(connection, last_rows(connection)[0], kept)
    invoices: list[Invoice] = []
    ranges: list[tuple[int, int, int, int]] = []
    for word, (said, twin, agreeing, _) in zip(words, matching, strict=True):
        owed = [one.owed for one in agreeing if one.owed.charge and one.event_id is None]
        invoices.append(Invoice(word.node, owed, said.now_ms, said.confirm.block))
        ranges.append((word.seq, twin.seqs.start, twin.seqs.stop - 1, twin.seq))
    pay(connection, invoices)
    connection.executemany(_AGREE, ranges)
    close_cases(connection, [one.owed.seq for found in matching for one in found.agreeing])
    return words


def _match_contested(connection: Connection, found: _Matching) -> Outcome:
    """Match what agrees, and judge anew what was contested meanwhile."""
    (word,) = _match(connection, [found])
    matched = len(found.agreeing)
    for record in found.contested:
        seq = record.owed.seq
        connection.execute(SAY[word.side], (word.seq, seq))
        states = rejudge(connection, record.task_id, record.attempt, word.seq, found.said.now_ms)
        matched += states[seq] is Standing.MATCHED
    agreed = matched - len(found.agreeing)
    return Outcome(matched=matched, contradicting=len(found.contested) - agreed)
