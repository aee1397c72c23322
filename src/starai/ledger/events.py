"""What happens to money, as values. Applying the same event twice is applying it once.

Every event has an ``event_id`` of 16 bytes, which whoever makes it chooses once and keeps, and the
time it is said to have happened (Unix milliseconds; used only to say when). An event that could
not mean anything cannot be made. What each does to accounts is said by `starai.ledger.rules`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeAlias

import msgspec

from starai.core.errors import InvalidRequest
from starai.ledger.accounts import NODE_BYTES, natural
from starai.ledger.transfers import ID_BYTES

#: A reason: a hash or two, or a few words.
REF_BYTES_MAX: Final = 64


def event_id(*parts: bytes, slot: int | None = None) -> bytes:
    """An id made of what makes an event the one that it is; the first part says which kind.

    With ``slot``, a number that grows with time, it begins with that: ids made at about the same
    time then lie together in an index, which halves what a database writes. 96 bits are left to
    tell them apart.
    """
    joined = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    digest = hashlib.sha256(b"starai/v1/event" + joined).digest()
    if slot is None:
        return digest[:ID_BYTES]
    return (slot % (1 << 32)).to_bytes(4, "big") + digest[: ID_BYTES - 4]


def correction_id(transfer_id: bytes) -> bytes:
    """The event id of a transfer's correction: there is one, so nothing is undone twice."""
    return event_id(b"correct", transfer_id)


def _positive(value: object, name: str) -> None:
    natural(value, name, least=1)


def _bytes_of(width: int) -> Callable[[object, str], None]:
    def check(value: object, name: str) -> None:
        if type(value) is not bytes or len(value) != width:
            raise InvalidRequest(f"{name} must have {width} bytes", param=name)

    return check


def _reason(value: object, name: str) -> None:
    if type(value) is not bytes or len(value) > REF_BYTES_MAX:
        raise InvalidRequest(f"{name} must have at most {REF_BYTES_MAX} bytes", param=name)


_CHECKS: Final[dict[str, Callable[[object, str], object]]] = {
    **dict.fromkeys(("event_id", "hold_id", "reverses"), _bytes_of(ID_BYTES)),
    **dict.fromkeys(("at_ms", "customer", "payer", "expires_ms", "charge", "node_share"), natural),
    **dict.fromkeys(("from_pending", "from_fee", "from_insurance"), natural),
    "amount": _positive,
    "node": _bytes_of(NODE_BYTES),
    **dict.fromkeys(("ref", "gateway"), _reason),
}


class _Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    _may_be_none: ClassVar[frozenset[str]] = frozenset()

    event_id: bytes
    at_ms: int

    def __post_init__(self) -> None:
        """Refuse what could not mean anything.

        Raises:
            InvalidRequest: a field has another type (``True`` for 1 too), or is out of range.
        """
        for name in self.__struct_fields__:
            value: Any = getattr(self, name)
            if value is not None or name not in self._may_be_none:
                _CHECKS[name](value, name)


class Deposited(_Event, frozen=True, kw_only=True, tag="deposited"):
    """A customer paid in; ``ref`` says where that can be looked up."""

    customer: int
    amount: int
    ref: bytes = b""


class Withdrawn(_Event, frozen=True, kw_only=True, tag="withdrawn"):
    """A customer took out what was available."""

    customer: int
    amount: int
    ref: bytes = b""


class HoldPlaced(_Event, frozen=True, kw_only=True, tag="hold_placed"):
    """Money of a customer was set aside for what ``payer`` (one of its keys) asks one gateway.

    ``expires_ms`` and ``gateway`` are kept for whoever looks after holds; the books go by neither.
    """

    hold_id: bytes
    customer: int
    payer: int
    amount: int
    expires_ms: int
    gateway: bytes = b""


class HoldReleased(_Event, frozen=True, kw_only=True, tag="hold_released"):
    """What was not used of a hold became available again: ``amount``, or all that remains."""

    _may_be_none: ClassVar[frozenset[str]] = frozenset({"amount"})

    hold_id: bytes
    amount: int | None = None


class Captured(_Event, frozen=True, kw_only=True, tag="captured"):
    """A node did work for ``payer``, whose customer pays ``charge``, of it ``node_share`` to it.

    It is drawn from the payer's open holds, oldest first, then from what the customer has
    available, then from the insurance; the node is served before the fee. What then is still
    missing stays unpaid: see `uncovered`.
    """

    customer: int
    payer: int
    node: bytes
    charge: int
    node_share: int
    ref: bytes

    def __post_init__(self) -> None:
        """Refuse what could not mean anything.

        Raises:
            InvalidRequest: a field is wrong, or the node's share is more than the charge.
        """
        super().__post_init__()
        if self.node_share > self.charge:
            raise InvalidRequest("node_share is more than the charge", param="node_share")


class Matured(_Event, frozen=True, kw_only=True, tag="matured"):
    """What a node earned can no longer be disputed."""

    node: bytes
    amount: int
    ref: bytes = b""


class Staked(_Event, frozen=True, kw_only=True, tag="staked"):
    """A node put some of what it earned at stake."""

    node: bytes
    amount: int
    ref: bytes = b""


class Unstaked(_Event, frozen=True, kw_only=True, tag="unstaked"):
    """A node took its stake back."""

    node: bytes
    amount: int
    ref: bytes = b""


class Slashed(_Event, frozen=True, kw_only=True, tag="slashed"):
    """A node lost up to ``amount`` of its stake to the insurance; never more than is there."""

    node: bytes
    amount: int
    ref: bytes


class Refunded(_Event, frozen=True, kw_only=True, tag="refunded"):
    """A customer got back what a task had cost, from whoever has it; ``ref`` names the task."""

    customer: int
    node: bytes
    from_pending: int = 0
    from_fee: int = 0
    from_insurance: int = 0
    ref: bytes


class Claimed(_Event, frozen=True, kw_only=True, tag="claimed"):
    """A node was paid outside; ``ref`` is the transaction's hash."""

    node: bytes
    amount: int
    ref: bytes


class Corrected(_Event, frozen=True, kw_only=True, tag="corrected"):
    """The transfer with id ``reverses`` was wrong and is undone; make it by `Corrected.of`.

    Money that came from a hold goes back to what the customer has available. Holds themselves are
    not corrected but released.
    """

    reverses: bytes
    ref: bytes = b""

    @classmethod
    def of(cls, transfer_id: bytes, at_ms: int, ref: bytes = b"") -> Corrected:
        """The correction of a transfer; ``ref`` says why."""
        return cls(event_id=correction_id(transfer_id), at_ms=at_ms, reverses=transfer_id, ref=ref)

    def __post_init__(self) -> None:
        """Refuse what could not mean anything.

        Raises:
            InvalidRequest: a field is wrong, or the id is not that of this correction.
        """
        super().__post_init__()
        if self.event_id != correction_id(self.reverses):
            raise InvalidRequest("a correction has the id that its transfer gives it")


Event: TypeAlias = (
    Deposited
    | Withdrawn
    | HoldPlaced
    | HoldReleased
    | Captured
    | Matured
    | Staked
    | Unstaked
    | Slashed
    | Refunded
    | Claimed
    | Corrected
)
