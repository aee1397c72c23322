"""A session: one secret between a caller and a callee's prekey, from which task keys come.

HPKE (RFC 9180, base mode, X25519-HKDF-SHA256, ChaCha20-Poly1305) carries a random secret to the
callee; its ``info`` binds both names, the prekey and the session. Base mode does not say who
sealed, so the caller signs the opening and shows its credential.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from starai.core.errors import PartyRefused, SealBroken
from starai.core.randomness import Randomness
from starai.protocol.credentials import read_credential
from starai.protocol.identity import Identity, PartyId, raw_public, verify
from starai.protocol.subjects import Role
from starai.protocol.tasks import Prekey, SessionOpening
from starai.sealing.prekeys import PrekeyRing

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class Session(msgspec.Struct, frozen=True):
    """What both sides keep of a session. ``secret`` never leaves their memory."""

    session_id: bytes
    caller: PartyId
    callee: PartyId
    secret: bytes
    expires_ms: int

    def __repr__(self) -> str:
        return f"Session({self.session_id.hex()})"


def open_session(
    prekey: Prekey, identity: Identity, credential: str, randomness: Randomness
) -> tuple[Session, SessionOpening]:
    """A new session with the owner of an already checked prekey. Costs about 0.2 ms.

    Raises:
        SealBroken: the prekey is no key: its owner may sign any 32 bytes.
    """
    session_id, secret = randomness.take(16), randomness.take(32)
    info = _info(identity.party, prekey.party, prekey.prekey_id, session_id)
    try:
        box = _SUITE.encrypt(secret, X25519PublicKey.from_public_bytes(prekey.public), info=info)
    except ValueError as error:
        raise SealBroken("a prekey is a point to which nothing can be sealed") from error
    opening = SessionOpening(
        session_id=session_id,
        prekey_id=prekey.prekey_id,
        box=box,
        credential=credential,
        signature=identity.sign(info + box),
    )
    session = Session(session_id, identity.party, prekey.party, secret, prekey.not_after_ms)
    return session, opening


def accept_session(
    opening: SessionOpening,
    ring: PrekeyRing,
    callee: PartyId,
    account: str,
    roles: Collection[Role],
    now_ms: int,
) -> Session:
    """The session of an opening, once its caller is seen to have one of ``roles``.

    Args:
        opening: as it came.
        ring: the callee's prekeys.
        callee: who we are.
        account: the network's account nkey, which signs credentials.
        roles: who may offer tasks to us.
        now_ms: the time.

    Raises:
        PartyRefused: the credential does not give the caller one of ``roles``.
        SealBroken: a signature, the prekey or the seal is wrong.
    """
    caller = read_credential(opening.credential, account, now_ms)
    if caller.role not in roles:
        raise PartyRefused(f"a {caller.role.value} may not offer tasks here")
    info = _info(caller.party, callee, opening.prekey_id, opening.session_id)
    verify(caller.party, info + opening.box, opening.signature)
    try:
        secret = _SUITE.decrypt(opening.box, ring.private_key(opening.prekey_id), info=info)
    except (InvalidTag, ValueError) as error:
        raise SealBroken("a session's seal does not open") from error
    if len(secret) != 32 or len(opening.session_id) != 16:
        raise SealBroken("a session's secret or id has the wrong length")
    # The callee forgets a prekey at its end; a session may not outlive the caller's credential.
    return Session(opening.session_id, caller.party, callee, secret, caller.expires_ms)


def _info(caller: PartyId, callee: PartyId, prekey_id: bytes, session_id: bytes) -> bytes:
    parts = (raw_public(caller), raw_public(callee), prekey_id, session_id)
    return b"starai/v1/session" + b"".join(parts)
