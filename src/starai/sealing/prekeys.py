"""Short-lived X25519 keys, signed by a party's identity; deleting one is forward secrecy.

A ring keeps the current prekey and those that callers may still use. It is rotated at half a
prekey's life, so a caller always sees one that is valid for a while yet.
"""

from __future__ import annotations

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from starai.core.clock import Clock
from starai.core.errors import MalformedFrame, SealBroken
from starai.core.limits import PREKEY_LIFETIME_S
from starai.core.randomness import Randomness
from starai.protocol.identity import Identity, verify
from starai.protocol.tasks import Prekey

#: Clocks of two machines may differ by this much before a fresh prekey looks unborn.
CLOCK_SKEW_MS = 120_000
#: A prekey that lives longer gives no forward secrecy worth the name: it is not sealed to.
LIFETIME_MS_MAX = 86_400_000


class PrekeyRing:
    """A callee's prekeys, made and forgotten as time passes."""

    def __init__(
        self,
        identity: Identity,
        clock: Clock,
        randomness: Randomness,
        lifetime_s: float = PREKEY_LIFETIME_S,
    ) -> None:
        """Take the identity that signs, and how long each prekey lives."""
        self._identity = identity
        self._clock = clock
        self._randomness = randomness
        self._lifetime_ms = int(lifetime_s * 1000)
        self._keys: dict[bytes, tuple[Prekey, X25519PrivateKey]] = {}
        self._current: Prekey | None = None

    def current(self) -> Prekey:
        """The prekey to announce; makes a new one when half the old one's life is over."""
        now_ms = self._clock.now_ms()
        current = self._current
        if current is None or current.not_after_ms - now_ms < self._lifetime_ms // 2:
            self._forget(now_ms)
            current = self._current = self._create(now_ms)
        return current

    def private_key(self, prekey_id: bytes) -> X25519PrivateKey:
        """The secret half.

        Raises:
            SealBroken: that prekey is unknown or forgotten.
        """
        self._forget(self._clock.now_ms())
        try:
            return self._keys[prekey_id][1]
        except KeyError:
            raise SealBroken("sealed to a prekey that is gone; take the current one") from None

    def _create(self, now_ms: int) -> Prekey:
        private = X25519PrivateKey.from_private_bytes(self._randomness.take(32))
        unsigned = Prekey(
            party=self._identity.party,
            prekey_id=self._randomness.take(16),
            public=private.public_key().public_bytes_raw(),
            not_before_ms=now_ms,
            not_after_ms=now_ms + self._lifetime_ms,
            signature=b"",
        )
        prekey = msgspec.structs.replace(
            unsigned, signature=self._identity.sign(unsigned.signed_bytes())
        )
        self._keys[prekey.prekey_id] = (prekey, private)
        return prekey

    def _forget(self, now_ms: int) -> None:
        dead = [key for key, (prekey, _) in self._keys.items() if prekey.not_after_ms < now_ms]
        for key in dead:
            del self._keys[key]


def check_prekey(prekey: Prekey, now_ms: int) -> None:
    """See that a prekey is signed by its party and valid now.

    Raises:
        SealBroken: it is not.
    """
    if len(prekey.public) != 32 or len(prekey.prekey_id) != 16:
        raise SealBroken("a prekey has a field of the wrong length")
    if prekey.not_after_ms - prekey.not_before_ms > LIFETIME_MS_MAX:
        raise SealBroken("a prekey lives for more than a day")
    if not prekey.not_before_ms - CLOCK_SKEW_MS <= now_ms <= prekey.not_after_ms:
        raise SealBroken("a prekey is outside its validity; are both clocks right?")
    try:
        verify(prekey.party, prekey.signed_bytes(), prekey.signature)
    except MalformedFrame as error:
        raise SealBroken("a prekey's party is no party") from error
