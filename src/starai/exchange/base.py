"""What both sides of an exchange share: how an attempt fails, and what it leaves behind."""

from __future__ import annotations

import enum

import msgspec

from starai.core.errors import Unavailable
from starai.protocol.identity import PartyId
from starai.protocol.records import TaskRecord, answer_hash
from starai.protocol.tasks import TaskHeader

#: A callee gives a sign of life at least this often while it works on a task.
SIGN_OF_LIFE_S = 0.2
#: A caller gives up on a callee after this long without any chunk: four signs missed, and a
#: tenth of a second left of the second within which it shall be noticed.
SILENCE_S = 0.9


class FailureKind(enum.Enum):
    """How an attempt at a task ended without its end."""

    REFUSED = "refused"
    SILENT = "silent"
    #: Signs of life, but no token for much longer than it took before.
    STALLED = "stalled"
    #: Signs of life, but no first token for much longer than its prompts took.
    LATE = "late"
    #: A chunk whose seal, number or size is wrong.
    MALFORMED = "malformed"
    #: Bytes that are no message.
    DAMAGED = "damaged"
    GONE = "gone"
    OVERFLOW = "overflow"
    FLOOD = "flood"
    #: Two different chunks under one number.
    TWICE = "answered twice"
    #: The callee drains, and somebody else takes over: nobody's fault.
    HANDED_OVER = "handed over"
    #: Another callee was first with a token: nobody's fault.
    OUTRUN = "outrun"
    #: The caller left: nobody's fault.
    LEFT = "left"


class AttemptFailed(Unavailable):
    """A callee did not carry a task to its end; another may.

    ``code`` of a refusal is in ``refusal`` (a `RefusalCode`), else empty.
    """

    code = "attempt_failed"

    def __init__(self, kind: FailureKind, refusal: str = "", retry_after_ms: int = 0) -> None:
        """Say how it failed."""
        super().__init__(
            f"the attempt failed: {kind.value} {refusal}".rstrip(),
            retry_after_s=retry_after_ms / 1000 if retry_after_ms else None,
        )
        self.kind = kind
        self.refusal = refusal


class Settled(msgspec.Struct, frozen=True):
    """An attempt as it ended: what was accepted, and the code chain's end there."""

    header: TaskHeader
    ids: bytes
    code: bytes
    closed_ms: int
    embedding: bytes = b""

    @property
    def is_owed(self) -> bool:
        """Whether something was accepted, so that the attempt belongs on record."""
        return bool(self.ids or self.embedding)


def task_record(settled: Settled, raw_node: bytes, raw_distributor: bytes) -> TaskRecord:
    """The record that both sides derive from how an attempt ended: equal on both, or disputed."""
    header, num_answer = settled.header, len(settled.ids) // 4
    return TaskRecord(
        task_id=header.task_id,
        attempt=header.attempt,
        node=raw_node,
        distributor=raw_distributor,
        customer=header.customer,
        model_root=header.model_root,
        prompt_tokens=header.prompt_tokens,
        answer_tokens=num_answer,
        price_id=header.price_id,
        charge_nano_usd=header.price.charge(header.prompt_tokens, num_answer),
        offered_ms=header.offered_ms,
        closed_ms=settled.closed_ms,
        request_hash=header.request_hash,
        answer_hash=answer_hash(settled.ids + settled.embedding),
        # The chain's code is 16 bytes; the record keeps a full hash's width for it.
        proof_hash=answer_hash(settled.code),
    )


TaskKey = tuple[bytes, int]


def short(party: PartyId) -> str:
    """A party's name as logs show it."""
    return party[:10]
