"""Parties for tests and simulations: members of a network of their own, in memory, seeded."""

from __future__ import annotations

from starai.core.clock import AnyioClock, Clock
from starai.core.randomness import SeededRandomness
from starai.exchange.member import Member
from starai.protocol.credentials import issue_credential
from starai.protocol.identity import Identity, KeyKind
from starai.protocol.subjects import Role
from starai.wire.memory import MemoryNetwork

_DAY_MS = 86_400_000


class Parties:
    """Makes members of one network; the same seed makes the same identities."""

    def __init__(
        self,
        network: MemoryNetwork,
        *,
        seed: int = 1,
        clock: Clock | None = None,
        block_ms: int = 2_000,
    ) -> None:
        """Make members that are connected to ``network``."""
        self.network = network
        self.clock = clock or AnyioClock()
        self.randomness = SeededRandomness(seed)
        self.account = Identity.create(self.randomness, KeyKind.ACCOUNT)
        self._block_ms = block_ms

    def join(self, role: Role) -> Member:
        """A new party, connected and with a credential for a day."""
        identity = Identity.create(self.randomness)
        credential = issue_credential(
            self.account, identity.party, role, _DAY_MS, self.clock.now_ms()
        )
        return Member(
            wire=self.network.connect(identity.party, role),
            identity=identity,
            credential=lambda: credential,
            account=self.account.nkey,
            network="test",
            block_ms=self._block_ms,
            clock=self.clock,
            randomness=self.randomness,
        )
