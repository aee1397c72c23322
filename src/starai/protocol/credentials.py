"""Credentials: who may connect, as what, until when; signed by the network's account key.

A credential is a NATS user JWT, version 2 (ADR-14 of nats-architecture-and-design: header
``{"typ":"JWT","alg":"ed25519-nkey"}``, claims signed with Ed25519). The NATS server holds a party
to it; parties show it to each other to prove their role. Carrying one is not enough: its holder
also signs with the key that it names. Knows nothing of servers, files or revocation.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final, TypeVar

import msgspec

from starai.core.errors import (
    ConfigurationRefused,
    InternalFault,
    MalformedFrame,
    PartyRefused,
    SealBroken,
)
from starai.protocol.identity import Identity, KeyKind, PartyId, party_id, verify
from starai.protocol.subjects import Role, permissions

#: A credential of ours is about 1.2 KB; what is far longer is not read at all.
CREDENTIAL_CHARS_MAX: Final = 16_384
#: No credential lives longer, so that a list of revoked ones can forget.
LIFETIME_MS_MAX: Final = 30 * 86_400_000
#: Subscriptions of one party: a service holds about ten; the server stops a runaway.
SUBSCRIPTIONS_MAX: Final = 1_024

_HEADER: Final = {"typ": "JWT", "alg": "ed25519-nkey"}
_UNLIMITED: Final = -1

_Claims = TypeVar("_Claims")


class Credential(msgspec.Struct, frozen=True):
    """What a verified credential says: ``party`` acts as ``role`` between two moments (ms)."""

    party: PartyId
    role: Role
    issued_ms: int
    expires_ms: int


class _Allowed(msgspec.Struct, frozen=True):
    allow: tuple[str, ...]


class _UserGrant(msgspec.Struct, frozen=True):
    """The ``nats`` part of a user's claims."""

    pub: _Allowed
    sub: _Allowed
    tags: tuple[str, ...]
    subs: int = SUBSCRIPTIONS_MAX
    data: int = _UNLIMITED
    payload: int = _UNLIMITED
    type: str = "user"
    version: int = 2


class _UserClaims(msgspec.Struct, frozen=True):
    """A user's claims; times in seconds since the epoch."""

    sub: str
    iss: str
    name: str
    iat: int
    exp: int
    nats: _UserGrant
    jti: str = ""


def _text64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _bytes64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise SealBroken("not a credential: it is not base64") from error
    if _text64(raw) != text:
        raise SealBroken("not a credential: its base64 is not canonical")
    return raw


def sign_claims(issuer: Identity, claims: dict[str, object]) -> str:
    """A NATS JWT of ``claims`` in ``issuer``'s name; ``iss`` and ``jti`` are filled in."""
    claims = {**claims, "iss": issuer.nkey, "jti": ""}
    digest = hashlib.sha256(msgspec.json.encode(claims, order="sorted")).digest()
    claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
    body = f"{_text64(msgspec.json.encode(_HEADER))}.{_text64(msgspec.json.encode(claims))}"
    return f"{body}.{_text64(issuer.sign(body.encode()))}"


def read_claims(jwt: str, issuer: str, issuer_kind: KeyKind, shape: type[_Claims]) -> _Claims:
    """The claims of a NATS JWT that ``issuer`` signed, as a ``shape``.

    Raises:
        SealBroken: it is no JWT of that shape, or ``issuer`` did not sign it.
    """
    parts = jwt.strip().split(".") if len(jwt) <= CREDENTIAL_CHARS_MAX else []
    if len(parts) != 3 or not jwt.isascii():
        raise SealBroken("not a credential: expected three parts separated by dots")
    header, claims, signature = (_bytes64(part) for part in parts)
    try:
        verify(issuer, f"{parts[0]}.{parts[1]}".encode(), signature, issuer_kind)
        if msgspec.json.decode(header) != _HEADER:
            raise SealBroken("not a credential: its algorithm is not ed25519-nkey")
        return msgspec.json.decode(claims, type=shape)
    except (msgspec.DecodeError, MalformedFrame) as error:
        raise SealBroken("not a credential: its claims cannot be read") from error


def issue_credential(
    account: Identity, party: PartyId, role: Role, lifetime_ms: int, now_ms: int
) -> str:
    """Admit ``party`` as ``role``: a signed credential with that role's permissions.

    NATS counts whole seconds: the credential lives at least ``lifetime_ms`` and at most a second
    longer.

    Raises:
        ConfigurationRefused: ``lifetime_ms`` is longer than 30 days, or no time at all.
    """
    if not 0 < lifetime_ms <= LIFETIME_MS_MAX:
        raise ConfigurationRefused("a credential lives for at most 30 days")
    opened = permissions(role, party)
    if not (opened.publish and opened.subscribe):
        # NATS would read an empty list as "everything".
        raise InternalFault(f"role {role.value!r} opens no subjects")
    claims = _UserClaims(
        sub=party,
        iss=account.nkey,
        name=f"{role.value}-{party[:8]}",
        iat=now_ms // 1000,
        exp=-(-(now_ms + lifetime_ms) // 1000),
        nats=_UserGrant(
            pub=_Allowed(opened.publish),
            sub=_Allowed(opened.subscribe),
            tags=(f"role:{role.value}",),
        ),
    )
    return sign_claims(account, msgspec.to_builtins(claims))


def read_credential(jwt: str, account_nkey: str, now_ms: int) -> Credential:
    """What a credential says, once it is seen to be ``account_nkey``'s and still valid.

    Raises:
        SealBroken: it is no credential, or this account did not sign it.
        PartyRefused: it has expired, or names no role of ours.
    """
    claims = read_claims(jwt, account_nkey, KeyKind.ACCOUNT, _UserClaims)
    if claims.iss != account_nkey or claims.nats.type != "user" or claims.nats.version != 2:
        raise SealBroken("not a credential of this network")
    if now_ms >= claims.exp * 1000:
        raise PartyRefused("the credential has expired; renew it, or join again with a new token")
    roles = [tag.removeprefix("role:") for tag in claims.nats.tags if tag.startswith("role:")]
    try:
        (role,) = (Role(value) for value in roles)
        party = party_id(claims.sub)
    except ValueError as error:
        raise PartyRefused("the credential names no role of this network") from error
    except MalformedFrame as error:
        raise PartyRefused("the credential names no party") from error
    return Credential(party, role, claims.iat * 1000, claims.exp * 1000)
