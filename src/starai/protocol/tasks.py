"""A task between two parties: offered by a caller, answered in sealed chunks by a callee, closed.

The same four messages serve both hops: a gateway offers to a distributor, a distributor offers to
a node. `starai.exchange` runs them; `starai.sealing` makes what is sealed in them.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final

import msgspec

from starai.core.errors import MalformedFrame
from starai.core.limits import CHUNK_BYTES_MAX
from starai.protocol.fields import U32, Bytes16, Bytes32, Count, Name, Party, UnixMs
from starai.protocol.frames import Message, travels
from starai.protocol.identity import raw_public

_HEADER: Final = struct.Struct("<4sB3x16sI32s32s16s32sIIQQQIII32s")
_VERSION: Final = 2


class TokenPrice(msgspec.Struct, frozen=True):
    """What a token costs, in nano-USD (1e-9), by row ``price_id`` of the operator's price table.

    The default is the price of a free network. A price has 32 bits: $4.29 a token at the most, so
    no charge that a message can ask for is out of a record's range.
    """

    price_id: int = 0
    input_nano_usd: int = 0
    output_nano_usd: int = 0

    def charge(self, prompt_tokens: int, answer_tokens: int) -> int:
        """What that many tokens cost, in nano-USD."""
        return prompt_tokens * self.input_nano_usd + answer_tokens * self.output_nano_usd


#: A network without prices.
FREE: Final = TokenPrice()


class TaskHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What may be known of a task without opening it. Its canonical bytes bind every seal.

    Times are Unix milliseconds. ``request_hash`` is the SHA-256 of the sealed plaintext (which
    holds a random salt), ``customer`` an opaque account number, ``price_id`` a row of the
    operator's price table (0: free), whose prices of a token in nano-USD stand beside it, so that
    both sides derive one charge. ``input_nano_usd`` is 0 where tokens of the answer were accepted
    from an earlier attempt: that one is paid for the prompt. ``attempt`` counts re-offers from 0.
    """

    task_id: Bytes16
    attempt: U32
    caller: Party
    callee: Party
    session_id: Bytes16
    model_root: Bytes32
    prompt_tokens: U32
    max_tokens: U32
    offered_ms: UnixMs
    deadline_ms: UnixMs
    customer: Count
    price_id: U32
    input_nano_usd: U32
    output_nano_usd: U32
    request_hash: Bytes32

    @property
    def price(self) -> TokenPrice:
        """What the tokens of this attempt cost."""
        return TokenPrice(self.price_id, self.input_nano_usd, self.output_nano_usd)

    def canonical(self) -> bytes:
        """Fixed-width bytes, equal on every machine.

        Raises:
            MalformedFrame: a field is outside its range.
        """
        ids = (len(self.task_id), len(self.session_id))
        if ids != (16, 16) or (len(self.model_root), len(self.request_hash)) != (32, 32):
            raise MalformedFrame("a task header has a field of the wrong length")
        try:
            return _HEADER.pack(
                b"SATH",
                _VERSION,
                self.task_id,
                self.attempt,
                raw_public(self.caller),
                raw_public(self.callee),
                self.session_id,
                self.model_root,
                self.prompt_tokens,
                self.max_tokens,
                self.offered_ms,
                self.deadline_ms,
                self.customer,
                self.price_id,
                self.input_nano_usd,
                self.output_nano_usd,
                self.request_hash,
            )
        except struct.error as error:
            raise MalformedFrame("a task header has a number out of range") from error


class Prekey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A party's short-lived X25519 key, signed by its identity. Times are Unix milliseconds."""

    party: Party
    prekey_id: Bytes16
    public: Bytes32
    not_before_ms: UnixMs
    not_after_ms: UnixMs
    signature: bytes

    def signed_bytes(self) -> bytes:
        """The bytes under the signature."""
        return b"starai/v1/prekey" + struct.pack(
            "<32s16s32sQQ",
            raw_public(self.party),
            self.prekey_id,
            self.public,
            self.not_before_ms,
            self.not_after_ms,
        )


class SessionOpening(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Opens a session: a secret sealed by HPKE to the callee's prekey, signed by the caller.

    ``credential`` is the caller's JWT: it shows the callee that the network gave this identity
    the role that may offer tasks.
    """

    session_id: Bytes16
    prekey_id: Bytes16
    box: bytes
    credential: str
    signature: bytes


@travels(1)
class Offer(Message, frozen=True):
    """Caller to callee: will you do this? ``sealed`` is a sealed `Generation`."""

    header: TaskHeader
    sealed: bytes
    opening: SessionOpening | None = None


@travels(2)
class Answer(Message, frozen=True):
    """Callee to caller: chunk number ``seq`` of the answer; ``sealed`` is a sealed `Part`.

    The first one accepts the task, be it only a sign of life. Every chunk is sealed under the code
    of the one before.
    """

    task_id: Bytes16
    attempt: U32
    seq: U32
    sealed: Annotated[bytes, msgspec.Meta(max_length=CHUNK_BYTES_MAX)]


@travels(3)
class Refusal(Message, frozen=True):
    """Callee to caller: no, or no more. ``code`` is one of `RefusalCode`'s values."""

    task_id: Bytes16
    attempt: U32
    code: Name
    retry_after_ms: U32 = 0


class RefusalCode:
    """Why a task is refused. Strings, so that a newer party may add one."""

    BUSY: Final = "busy"
    DRAINING: Final = "draining"
    UNKNOWN_SESSION: Final = "unknown_session"
    UNKNOWN_MODEL: Final = "unknown_model"
    CONTEXT_TOO_LONG: Final = "context_too_long"
    BAD_REQUEST: Final = "bad_request"  # the offer itself: a seal, a hash, a form
    INVALID_REQUEST: Final = "invalid_request"  # what it asks for; nobody else would do it
    UNSUPPORTED: Final = "unsupported"  # what it asks for; another callee may be able to
    DEADLINE: Final = "deadline"
    UNDERPAID: Final = "underpaid"  # the header's price is below the operator's
    NO_NODE: Final = "no_node"
    ENGINE_FAILED: Final = "engine_failed"


@travels(4)
class Close(Message, frozen=True):
    """Caller to callee: stop if you still run, and here is what I accepted of your answer.

    ``accepted_seq`` counts the chunks accepted (0: none), ``accepted_tokens`` the tokens in
    them. ``tag`` (16 bytes) is an HMAC under the task's close key, so only the caller can have
    said it. Both sides derive the same record from the header and this message.
    """

    task_id: Bytes16
    attempt: U32
    accepted_seq: U32
    accepted_tokens: U32
    closed_ms: UnixMs
    tag: Bytes16

    def tagged_bytes(self) -> bytes:
        """The bytes under the tag."""
        return b"starai/v1/close" + struct.pack(
            "<16sIIIQ",
            self.task_id,
            self.attempt,
            self.accepted_seq,
            self.accepted_tokens,
            self.closed_ms,
        )
