"""A join ticket: all that a newcomer needs, in one line to copy: ``sat_…``.

It holds where the network is, a passing identity that may do nothing but ask to join, and the
join token itself. Whoever has it can join in its stead, so it is passed on like a password; it
dies with its uses or its time. Knows nothing of who gives it out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final

import msgspec

from starai.core.errors import ConfigurationRefused

_PREFIX: Final = "sat_"
_CHECK_BYTES: Final = 4
#: A ticket has about 1.6 KB; what is far longer is no ticket.
TICKET_CHARS_MAX: Final = 16_384
TOKEN_ID_BYTES: Final = 16
SECRET_BYTES: Final = 32


class JoinTicket(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a newcomer is handed.

    ``urls`` say where the wire is; ``account`` (an nkey) and ``network`` name the network;
    ``seed`` (an nkey seed) and ``credential`` (a JWT) are the joiner's; ``token_id`` (16 bytes)
    and ``secret`` (32 bytes) are the join token.
    """

    urls: tuple[str, ...]
    account: str
    network: str
    seed: str
    credential: str
    token_id: bytes
    secret: bytes

    def text(self) -> str:
        """The ticket as one line of URL-safe text; its checksum catches a bad copy."""
        body = msgspec.msgpack.encode(self)
        check = hashlib.sha256(body).digest()[:_CHECK_BYTES]
        return _PREFIX + base64.urlsafe_b64encode(check + body).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> JoinTicket:
        """The ticket that ``text`` is.

        Raises:
            ConfigurationRefused: it is none, or was not copied whole; never quotes it.
        """
        text = text.strip()
        if not text.startswith(_PREFIX) or len(text) > TICKET_CHARS_MAX:
            raise ConfigurationRefused(f"not a join token: it begins with {_PREFIX}")
        text = text.removeprefix(_PREFIX)
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            body = raw[_CHECK_BYTES:]
            if hashlib.sha256(body).digest()[:_CHECK_BYTES] != raw[:_CHECK_BYTES]:
                raise ConfigurationRefused("the join token is damaged: copy the whole line again")
            return msgspec.msgpack.decode(body, type=cls)
        except (binascii.Error, ValueError) as error:
            raise ConfigurationRefused(
                "the join token is damaged: copy the whole line again"
            ) from error

    def __repr__(self) -> str:
        return f"JoinTicket(network={self.network!r})"
