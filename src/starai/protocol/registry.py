"""What parties say to the registry: join, renew, confirm, ask; and what it answers."""

from __future__ import annotations

import enum
import struct
from typing import Annotated, Final

import msgspec

from starai.protocol.fields import U32, Bytes16, Count, Name, Party, UnixMs
from starai.protocol.frames import Message, travels
from starai.protocol.identity import Identity, PartyId, raw_public
from starai.protocol.records import Side as Side  # noqa: PLC0414 - where all words about tasks are


@travels(20)
class Confirm(Message, frozen=True):
    """One signature over the records of one node and one distributor in one block, by one side.

    ``records`` are ``count`` canonical records, concatenated, whose charges add up to
    ``charge_nano_usd``. A node may leave them out: if the distributor confirmed the same root,
    nothing more need be said, and else the registry asks for them (`RECORDS_WANTED`). ``part``
    numbers the confirmations of one side for one block: late records come in a further part. Both
    sides make it of the first bytes of the root (`part_of`), so each knows the other's.
    """

    network: str
    block: int
    part: int
    side: Side
    node: PartyId
    distributor: PartyId
    count: U32
    charge_nano_usd: int
    root: bytes
    signature: bytes
    records: bytes = b""

    @property
    def signer(self) -> PartyId:
        """Whose word it is."""
        return self.node if self.side is Side.NODE else self.distributor

    def signed_bytes(self) -> bytes:
        """The bytes under the signature."""
        name = self.network.encode()
        return b"starai/v2/confirm" + struct.pack(
            f"<H{len(name)}sQIB32s32sIQ32s",
            len(name),
            name,
            self.block,
            self.part,
            self.side,
            raw_public(self.node),
            raw_public(self.distributor),
            self.count,
            self.charge_nano_usd,
            self.root,
        )


#: The registry's answer to a root that the other side has not confirmed: say the records.
RECORDS_WANTED: Final = "records_wanted"


def part_of(root: bytes) -> int:
    """The number of the part with that root."""
    return int.from_bytes(root[:4], "big")


@travels(21)
class Acknowledged(Message, frozen=True):
    """The registry's answer: ``ok``, or the code and message of what is wrong."""

    ok: bool
    code: str = ""
    message: str = ""


@travels(22)
class Join(Message, frozen=True):
    """A newcomer asks to be let in: which token it uses, and two signatures over the same bytes.

    ``signature`` is by the newcomer's key and shows that it holds it; ``joiner_signature`` is by
    the key of the token's joiner and shows that it holds the token. ``token_id`` has 16 bytes.
    """

    token_id: bytes
    party: PartyId
    signature: bytes
    joiner_signature: bytes
    label: str = ""

    @classmethod
    def signed(cls, token_id: bytes, newcomer: Identity, joiner: Identity, label: str = "") -> Join:
        """The request of ``newcomer``, carried by ``joiner``."""
        said = _join_bytes(token_id, newcomer.party)
        return cls(token_id, newcomer.party, newcomer.sign(said), joiner.sign(said), label)

    def signed_bytes(self) -> bytes:
        """The bytes under both signatures: ``b"starai/v1/join" + token_id + party``."""
        return _join_bytes(self.token_id, self.party)


def _join_bytes(token_id: bytes, party: PartyId) -> bytes:
    return b"starai/v1/join" + token_id + party.encode()


@travels(23)
class Admitted(Message, frozen=True):
    """The registry lets a party in: its credential and what it must know of the network.

    ``credential`` is a NATS user JWT, valid until ``expires_ms``.
    """

    credential: str
    expires_ms: int
    network: str
    account: str
    block_ms: int


@travels(24)
class Renew(Message, frozen=True):
    """A party asks for a fresh credential before the old one expires."""

    party: PartyId


@travels(25)
class Query(Message, frozen=True):
    """A question to the registry, for people's eyes; ``arguments`` are JSON, never a secret."""

    what: str
    arguments: bytes = b"{}"


@travels(26)
class Report(Message, frozen=True):
    """The answer to a query: JSON, or an error's code and message."""

    body: bytes
    code: str = ""
    message: str = ""


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """An API key as services know it: its SHA-256, never itself; limits per minute, 0 = none.

    ``customer`` is the account number of the key itself, which records carry as the payer;
    ``owner`` is the customer whose balance it draws on (0: nobody's, nothing may cost anything).
    """

    key_hash: bytes
    key_id: str
    name: str
    customer: int
    requests_per_minute: int
    tokens_per_minute: int
    revoked: bool = False
    owner: int = 0


@travels(27)
class KeyTable(Message, frozen=True):
    """All API keys, or those that changed: registry to gateways."""

    version: int
    entries: tuple[KeyEntry, ...]
    complete: bool


@travels(28)
class KeyTableRequest(Message, frozen=True):
    """A gateway asks for all API keys."""

    gateway: PartyId


class PriceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A row of the operator's price table: what a token of ``model`` costs from a moment on.

    Prices are nano-USD (1e-9). The model ``*`` is any that has no row of its own.
    """

    price_id: U32
    model: Name
    input_nano_usd: U32
    output_nano_usd: U32
    valid_from_ms: UnixMs


@travels(40)
class Prices(Message, frozen=True):
    """All prices that hold now or will: registry to gateways and nodes.

    Without any the network is free.

    ``version`` grows with every row that the operator adds.
    """

    version: Count
    entries: tuple[PriceEntry, ...]


@travels(41)
class PricesRequest(Message, frozen=True):
    """A gateway or a node asks for the prices."""

    party: Party


class SpentAllotment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """An allotment that a gateway gives back: ``used_nano_usd`` of it were or will be charged."""

    hold_id: Bytes16
    used_nano_usd: Count


#: Allotments that one request gives back; a gateway has a few of a key at once.
SPENT_MAX = 64


@travels(42)
class AllotmentRequest(Message, frozen=True):
    """A gateway asks to have money of a key's owner set aside, which it may spend on its own.

    ``customer`` is the key's account number. The gateway makes ``hold_id`` and asks with the same
    again after a lost answer: money is set aside once. ``wanted_nano_usd`` is what it would like,
    ``least_nano_usd`` what would be of use to it; with 0 wanted it only gives ``spent`` back.
    """

    gateway: Party
    customer: Count
    hold_id: Bytes16
    wanted_nano_usd: Count
    least_nano_usd: Count
    spent: Annotated[tuple[SpentAllotment, ...], msgspec.Meta(max_length=SPENT_MAX)] = ()


class Shortage(enum.Enum):
    """Why no money was set aside."""

    NONE = ""
    #: The owner's balance is too low.
    BALANCE = "balance"
    #: It would do, but the rest is set aside at gateways, which are asked to give back.
    ELSEWHERE = "elsewhere"
    #: The key has spent its budget.
    BUDGET = "budget"
    #: There is no such key any more.
    NO_KEY = "no_key"


@travels(43)
class Allotment(Message, frozen=True):
    """The answer: ``amount_nano_usd`` is set aside under ``hold_id`` until ``expires_ms``.

    With an amount of 0, ``shortage`` says why, and ``available_nano_usd`` how much could be had.
    """

    hold_id: Bytes16
    amount_nano_usd: Count
    expires_ms: UnixMs
    available_nano_usd: Count
    shortage: Shortage = Shortage.NONE


@travels(44)
class FundsChanged(Message, frozen=True):
    """Registry to gateways: a customer's money has changed, by a deposit or a new budget.

    With ``recall`` it has run short: gateways give back what they do not need at this moment.
    """

    owner: Count
    recall: bool = False
