"""A party's place in the network: what every service needs to speak and be believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starai.core.clock import Clock
from starai.core.randomness import Randomness
from starai.protocol.identity import Identity
from starai.protocol.ports import Wire


@dataclass(frozen=True)
class Member:
    """One party, connected.

    ``credential`` returns the party's current JWT (it is renewed while the service runs);
    ``account`` is the network's account nkey, which vouches for all credentials; ``network`` is
    its name, and ``block_ms`` the length of its confirmation blocks in milliseconds.
    """

    wire: Wire
    identity: Identity
    credential: Callable[[], str]
    account: str
    network: str
    block_ms: int
    clock: Clock
    randomness: Randomness
