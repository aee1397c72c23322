"""What a field of a message may hold: a frame with anything else in it is not decoded at all.

So whoever is handed a decoded message need not fear a name that is no name, a number that fits
into no canonical record, or a list without end. These bounds are checked on decoding only; they
say nothing about a message that a party makes itself.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from starai.protocol.identity import PartyId

#: The form of a public user nkey; its checksum is `starai.protocol.identity.raw_public`'s.
Party = Annotated[PartyId, Meta(pattern=r"^U[A-Z2-7]{55}\Z")]

Bytes16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]

U32 = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
#: What SQLite, JSON readers and sums of many still hold.
Count = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
#: Unix milliseconds, up to the year 6429: every calendar can show them.
UnixMs = Annotated[int, Meta(ge=0, le=1 << 47)]
#: Tokens per second; not NaN, not infinite.
Speed = Annotated[float, Meta(ge=0.0, le=1e9)]

#: What people call something, or a short code.
Name = Annotated[str, Meta(max_length=256)]
