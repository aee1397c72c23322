"""What parties say to the registry: join, renew, confirm, ask; and what it answers."""

from __future__ import annotations

import enum
import struct

import msgspec

from starai.protocol.frames import Message, travels
from starai.protocol.identity import Identity, PartyId, raw_public


class Side(enum.IntEnum):
    """Which side of a task a confirmation comes from."""

    NODE = 1
    DISTRIBUTOR = 2


@travels(20)
class Confirm(Message, frozen=True):
    """One signature over the records of one node in one block, from one side.

    ``records`` are canonical records, concatenated. ``part`` numbers the confirmations of one
    signer for one (block, node): late records come in a further part.
    """

    network: str
    block: int
    part: int
    side: Side
    signer: PartyId
    node: PartyId
    records: bytes
    root: bytes
    signature: bytes

    def signed_bytes(self) -> bytes:
        """The bytes under the signature."""
        name = self.network.encode()
        return b"starai/v1/confirm" + struct.pack(
            f"<H{len(name)}sQIB32s32s32s",
            len(name),
            name,
            self.block,
            self.part,
            self.side,
            raw_public(self.signer),
            raw_public(self.node),
            self.root,
        )


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
    """An API key as services know it: its SHA-256, never itself; limits per minute, 0 = none."""

    key_hash: bytes
    key_id: str
    name: str
    customer: int
    requests_per_minute: int
    tokens_per_minute: int
    revoked: bool = False


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
