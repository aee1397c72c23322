"""Checks what the registry says of its log, believing nothing but the network's own key.

Knows nothing of how answers are fetched.
"""

from __future__ import annotations

import msgspec

from starai.core.errors import MalformedFrame, SealBroken
from starai.ledger.checkpoints import (
    Checkpoint,
    Note,
    open_checkpoint,
    verify_cosignature,
)
from starai.ledger.merkle_log import verify_consistency, verify_inclusion
from starai.protocol.identity import KeyKind, PartyId, raw_public
from starai.protocol.log import ConsistencyProof, TaskProof, log_origin, witness_of
from starai.protocol.records import TaskRecord, leaf_hash
from starai.protocol.subjects import Role


class Cosignature(msgspec.Struct, frozen=True):
    """Who cosigned a checkpoint, as what, and when (Unix seconds)."""

    party: PartyId
    role: Role
    unix_s: int


class CheckedCheckpoint(msgspec.Struct, frozen=True):
    """A checkpoint that the network signed, and whose cosignatures under it hold."""

    size: int
    root: bytes
    extensions: tuple[str, ...]
    cosignatures: tuple[Cosignature, ...]


def check_checkpoint(note: str, network: str, account: str) -> CheckedCheckpoint:
    """Check a checkpoint against the network's ``account`` nkey; witnesses by their own names.

    Lines that are neither the network's nor a witness's are passed over, as C2SP's signed-note
    has it. Whether a witness really is a node or a gateway, its name does not prove.

    Raises:
        MalformedFrame: it is no checkpoint.
        SealBroken: the network did not sign it, or a witness's line does not verify.
    """
    checkpoint = _open(note, network, account)
    parsed = Note.parse(note)
    found = []
    for one in parsed.signatures:
        whose = witness_of(network, one.name)
        if whose is not None:
            role, party = whose
            public = raw_public(party)
            signed_s = verify_cosignature(parsed.text, one.line(), one.name, public)
            found.append(Cosignature(party, role, signed_s))
    return CheckedCheckpoint(checkpoint.size, checkpoint.root, checkpoint.extensions, tuple(found))


def check_task(proof: TaskProof, task_id: str, network: str, account: str) -> CheckedCheckpoint:
    """Check that every record of a proof is this task's and in the log; its checkpoint.

    Raises:
        MalformedFrame: a part is malformed.
        SealBroken: something does not hold.
    """
    checked = check_checkpoint(proof.note, network, account)
    if not proof.records:
        raise MalformedFrame("the proof is of no record")
    for one in proof.records:
        record = TaskRecord.parse(one.record)
        if (record.task_id.hex(), record.attempt) != (task_id.lower(), one.attempt):
            raise SealBroken("the proof is of another task")
        verify_inclusion(leaf_hash(one.record), one.index, checked.size, one.path, checked.root)
    return checked


def check_consistency(
    proof: ConsistencyProof, network: str, account: str
) -> tuple[CheckedCheckpoint, CheckedCheckpoint]:
    """Check that the one checkpoint's log begins the other's.

    Raises:
        MalformedFrame: a part is malformed.
        SealBroken: it does not hold.
    """
    old = check_checkpoint(proof.old_note, network, account)
    new = check_checkpoint(proof.note, network, account)
    verify_consistency(old.size, old.root, new.size, new.root, proof.path)
    return old, new


def _open(note: str, network: str, account: str) -> Checkpoint:
    return open_checkpoint(note, log_origin(network), raw_public(account, KeyKind.ACCOUNT))
