"""What one side said by one confirmation: what it is made of, and its row.

A confirmation is one side's word for records of one node and one distributor. Knows nothing of
what follows from it for the records (`tasks.py`, `roots.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

import msgspec

from starai.core.errors import Conflict, StarAIError
from starai.protocol.identity import raw_public
from starai.protocol.records import TaskRecord
from starai.protocol.registry import Confirm, Side
from starai.registry.schema import rows, rows_in
from starai.registry.storage import Connection

#: What one side says at once: block, signer, side, node, part. It is said once.
Part: TypeAlias = tuple[int, bytes, int, bytes, int]

_SAID: Final = (
    "SELECT block, signer, side, node, part, root FROM confirm"
    " WHERE (block, signer, side, node, part) IN (VALUES {})"
)
# Rows are numbered here, so that each can name the other; there is one writer.
_LAST: Final = "SELECT (SELECT max(seq) FROM confirm), (SELECT max(seq) FROM task)"
_KEEP: Final = (
    "INSERT INTO confirm (seq, block, signer, side, node, part, root, sig, leaves, at_ms, dist,"
    " charge, first_task) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
#: Adds one side's word to a record; what it comes to is judged afterwards.
SAY: Final = {
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


class Said(msgspec.Struct, frozen=True):
    """A confirmation that holds by itself, heard at ``now_ms`` (Unix milliseconds).

    ``checked`` are its records; a node's may have none, and stands for all under its root.
    ``unknown``: its other party is not in the network.
    """

    confirm: Confirm
    checked: Sequence[CheckedRecord]
    now_ms: int
    unknown: bool = False

    @property
    def part(self) -> Part:
        """What no other confirmation has, unless it says the same or contradicts."""
        confirm = self.confirm
        signer, node = raw_public(confirm.signer), raw_public(confirm.node)
        return confirm.block, signer, int(confirm.side), node, confirm.part


class Outcome(msgspec.Struct, frozen=True):
    """What a confirmation changed: new records, agreements reached, contradictions found."""

    fresh: int = 0
    matched: int = 0
    contradicting: int = 0


#: What comes of a confirmation; None if its records must be said, not their root alone.
Answer: TypeAlias = Outcome | StarAIError | None


class Word(NamedTuple):
    """A confirmation that is kept; ``seq`` is its row's."""

    seq: int
    said: Said

    @property
    def side(self) -> Side:
        """Whose word it is."""
        return self.said.confirm.side

    @property
    def node(self) -> bytes:
        """The raw key of the node that it is about."""
        return raw_public(self.said.confirm.node)


class Kept(NamedTuple):
    """What to keep of a confirmation beside itself.

    ``leaves`` are what its root was made of; ``first_task`` is where its records begin in `task`,
    if all of them are new.
    """

    said: Said
    leaves: bytes
    first_task: int | None = None


def said_before(connection: Connection, said: Sequence[Said]) -> list[Answer]:
    """Of each: None if it is new, an empty outcome if it was said before, or why it cannot be."""
    parts = [one.part for one in said]
    found = rows_in(connection, _SAID, parts)
    known = {(block, signer, side, node, part): root
             for block, signer, side, node, part, root in found}  # fmt: skip
    answers: list[Answer] = []
    for one, part in zip(said, parts, strict=True):
        root = known.get(part)
        if root is None or root == one.confirm.root:
            answers.append(None if root is None else Outcome())
        else:
            number = one.confirm.part
            answers.append(Conflict(f"part {number} of this block was confirmed with another root"))
    return answers


def alone(connection: Connection, work: Callable[[], Answer]) -> Answer:
    """Do ``work``; if it is refused, undo it and nothing else."""
    connection.execute("SAVEPOINT alone")
    try:
        answer = work()
    except StarAIError as error:
        connection.execute("ROLLBACK TO alone")
        answer = error
    connection.execute("RELEASE alone")
    return answer


def last_rows(connection: Connection) -> tuple[int, int]:
    """The numbers of the newest confirmation and the newest record; 0 before the first."""
    ((confirmation, task),) = rows(connection, _LAST)
    return confirmation or 0, task or 0


def keep(connection: Connection, last: int, kept: Sequence[Kept]) -> list[Word]:
    """Add confirmations after row ``last``."""
    words = [Word(seq, one.said) for seq, one in enumerate(kept, last + 1)]
    connection.executemany(
        _KEEP, [_cells(word, one) for word, one in zip(words, kept, strict=True)]
    )
    return words


def _cells(word: Word, kept: Kept) -> tuple[object, ...]:
    said, leaves, first_task = kept
    confirm = said.confirm
    return (
        *(word.seq, *said.part, confirm.root, confirm.signature, leaves, said.now_ms),
        *(raw_public(confirm.distributor), confirm.charge_nano_usd, first_task),
    )
