"""The kernel's values and the shape of a policy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec


class Demand(msgspec.Struct, frozen=True):
    """What a task needs: ``max_tokens`` bounds the answer, accepted tokens included."""

    prompt_tokens: int
    max_tokens: int


class Candidate(msgspec.Struct, frozen=True):
    """A node as matching sees it. Speeds are tokens per second (0: not measured yet).

    ``running`` counts its tasks, ``slots`` how many it runs at once, ``failures`` its recent
    failures (decayed, not whole), ``rtt_ms`` the round trip to it.
    """

    party: str
    slots: int
    running: int
    context_length: int
    prefill_tps: float = 0.0
    decode_tps: float = 0.0
    rtt_ms: float = 0.0
    failures: float = 0.0


class Policy(Protocol):
    """Ranks the candidates that can take a task now."""

    def rank(self, demand: Demand, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Best first; candidates that cannot take the task are left out."""
        ...
