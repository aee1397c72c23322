"""The authority of a network: its NATS operator, account and system account, and their JWTs.

Three keys, made once, say everything that NATS needs to know: the operator vouches for the
accounts, the account admits parties (`starai.protocol.credentials`) and names those it revoked,
the system account pushes such changes to the servers. Knows no files and no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from starai.core.randomness import Randomness
from starai.protocol.credentials import issue_credential, sign_claims
from starai.protocol.identity import Identity, KeyKind, PartyId
from starai.protocol.subjects import Role, inbox

#: Where a server with a resolver takes a new account JWT.
CLAIMS_UPDATE: Final = "$SYS.REQ.CLAIMS.UPDATE"
#: The system user lives only as long as one push of a claim.
_SYSTEM_USER_LIFETIME_S: Final = 60

_UNLIMITED: Final = {
    "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True,
    "conn": -1, "leaf": -1,
}  # fmt: skip


@dataclass(frozen=True)
class Authority:
    """The keys that rule a network; whoever has them can admit and revoke anyone."""

    operator: Identity
    account: Identity
    system: Identity

    @classmethod
    def create(cls, randomness: Randomness) -> Authority:
        """New keys."""
        return cls(
            Identity.create(randomness, KeyKind.OPERATOR),
            Identity.create(randomness, KeyKind.ACCOUNT),
            Identity.create(randomness, KeyKind.ACCOUNT),
        )

    def operator_jwt(self, now_ms: int) -> str:
        """What the server's configuration trusts."""
        nats = {"type": "operator", "version": 2, "system_account": self.system.nkey}
        return sign_claims(self.operator, _claims(self.operator.nkey, "starai", now_ms, nats))

    def account_jwt(self, revoked_s: Mapping[PartyId, int], now_ms: int) -> str:
        """The parties' account; ``revoked_s`` says from when on credentials of whom are void.

        A credential issued at or before that second is refused, and its holder disconnected.
        """
        nats: dict[str, object] = {
            "type": "account",
            "version": 2,
            "limits": _UNLIMITED,
            "default_permissions": {"pub": {}, "sub": {}},
        }
        if revoked_s:
            nats["revocations"] = dict(revoked_s)
        return sign_claims(self.operator, _claims(self.account.nkey, "starai", now_ms, nats))

    def system_jwt(self, now_ms: int) -> str:
        """The system account."""
        nats = {"type": "account", "version": 2, "limits": _UNLIMITED}
        return sign_claims(self.operator, _claims(self.system.nkey, "system", now_ms, nats))

    def system_user_jwt(self, user: PartyId, now_ms: int) -> str:
        """A user that may push account JWTs and nothing else, for a minute."""
        nats = {
            "type": "user",
            "version": 2,
            "pub": {"allow": [CLAIMS_UPDATE]},
            "sub": {"allow": [f"{inbox(user)}.>"]},
            "subs": -1,
            "data": -1,
            "payload": -1,
        }
        claims = _claims(user, "system", now_ms, nats)
        claims["exp"] = now_ms // 1000 + _SYSTEM_USER_LIFETIME_S
        return sign_claims(self.system, claims)

    def user_jwt(self, party: PartyId, role: Role, lifetime_ms: int, now_ms: int) -> str:
        """Admit ``party`` as ``role``; see `starai.protocol.credentials.issue_credential`."""
        return issue_credential(self.account, party, role, lifetime_ms, now_ms)


def _claims(subject: str, name: str, now_ms: int, nats: dict[str, object]) -> dict[str, object]:
    return {"sub": subject, "name": name, "iat": now_ms // 1000, "nats": nats}
