"""What a witness remembers of a log, and the one way on from it.

A witness cosigns a checkpoint only if everything it saw before is still in the log: that is what a
consistency proof shows. So a log that was set back, or that shows others another history, finds
no witness for it. Knows nothing of files or wires: whoever cosigns keeps the new state durably
first.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from starai.core.errors import Conflict, SealBroken
from starai.ledger.checkpoints import Note, open_checkpoint
from starai.ledger.merkle_log import EMPTY_ROOT, verify_consistency


class Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last checkpoint that a witness believed: its size, its root, and its note."""

    size: int = 0
    root: bytes = EMPTY_ROOT
    note: str = ""


def advance(seen: Seen, note: str, proof: Sequence[bytes], origin: str, public: bytes) -> Seen:
    """What a witness has seen once it believes ``note``; ``public`` is the log's raw key.

    Args:
        seen: what it saw before.
        note: the log's checkpoint.
        proof: a consistency proof from ``seen.size`` to the checkpoint's size.
        origin: the log's name.
        public: the log's key.

    Raises:
        MalformedFrame, SealBroken: it is no checkpoint of that log.
        Conflict: the log was set back, or has another history than it had.
    """
    checkpoint = open_checkpoint(note, origin, public)
    if checkpoint.size < seen.size:
        raise Conflict(
            f"the log was set back: it had {seen.size} records, and now shows {checkpoint.size}"
        )
    if checkpoint.size == seen.size and seen.note:
        if Note.parse(seen.note).text != checkpoint.text():
            raise Conflict(f"the log shows two checkpoints of {seen.size} records")
        return seen
    try:
        verify_consistency(seen.size, seen.root, checkpoint.size, checkpoint.root, proof)
    except SealBroken as error:
        raise Conflict(
            f"the log of {checkpoint.size} records does not begin with the {seen.size} it had"
        ) from error
    return Seen(checkpoint.size, checkpoint.root, note)
