"""A join ticket: all that a newcomer needs, in one line to copy: ``sat_…``.

It holds where the network is and a passing identity, the joiner, that may do nothing but ask to
join. Whoever has it can join, so it is passed on like a password; it dies with its uses or its
time. Its one secret, the joiner's seed, is made by who asks for the token: the registry is told
the joiner's public key only, and sees later that the joiner signs. Knows nothing of messages.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final

import msgspec

from starai.core.errors import ConfigurationRefused
from starai.protocol.identity import Identity

_PREFIX: Final = "sat_"
_CHECK_BYTES: Final = 4
#: A ticket has about 2.2 KB; what is far longer is no ticket.
TICKET_CHARS_MAX: Final = 16_384
TOKEN_ID_BYTES: Final = 16


class TokenGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the registry gives to a joiner's public key: no part of it is secret.

    ``token_id`` is 16 bytes in hexadecimal, ``credential`` the joiner's JWT, ``urls`` where the
    wire is; ``account`` (an nkey) and ``network`` name the network. ``ca`` is the certificate
    (DER) of the network's own authority, empty where its servers have public ones or no TLS.
    """

    token_id: str
    credential: str
    urls: tuple[str, ...]
    account: str
    network: str
    ca: bytes = b""


class JoinTicket(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a newcomer is handed.

    ``urls`` say where the wire is, best first; ``account`` (an nkey) and ``network`` name the
    network; ``seed`` (an nkey seed) and ``credential`` (a JWT) are the joiner's; ``token_id`` (16
    bytes) is the join token that it may use; ``ca`` (DER) is whom to hold the servers to.
    """

    urls: tuple[str, ...]
    account: str
    network: str
    seed: str
    credential: str
    token_id: bytes
    ca: bytes = b""

    @classmethod
    def of(cls, grant: TokenGrant, joiner: Identity) -> JoinTicket:
        """The ticket of a grant to ``joiner``, put together where the joiner's seed was made."""
        return cls(
            urls=grant.urls,
            account=grant.account,
            network=grant.network,
            seed=joiner.seed,
            credential=grant.credential,
            token_id=bytes.fromhex(grant.token_id),
            ca=grant.ca,
        )

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
        except (binascii.Error, ValueError, msgspec.DecodeError) as error:
            raise ConfigurationRefused(
                "the join token is damaged: copy the whole line again"
            ) from error

    def __repr__(self) -> str:
        return f"JoinTicket(network={self.network!r})"
