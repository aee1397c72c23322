"""What is carried, and who chooses the parties that it is offered to."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import msgspec

from starai.core.limits import ATTEMPT_NUMBERS
from starai.exchange.base import AttemptFailed
from starai.exchange.caller.attempt import Target
from starai.protocol.generation import Generation
from starai.protocol.identity import PartyId
from starai.protocol.tasks import FREE, TokenPrice


class Journey(msgspec.Struct, frozen=True):
    """What is to be carried: one answer, for one customer, until a deadline in Unix ms.

    Attempts are numbered from ``first_attempt`` on. Whoever carries on what was offered to it
    under some attempt takes `attempts_within` that: so no two attempts at one task ever bear the
    same number, whichever distributors carried it, and each has its own place in the books.
    """

    task_id: bytes
    model_root: bytes
    customer: int
    deadline_ms: int
    generation: Generation
    price: TokenPrice = FREE
    first_attempt: int = 0


def attempts_within(attempt: int) -> int:
    """The first number of the attempts that are made on behalf of ``attempt``."""
    return attempt * ATTEMPT_NUMBERS


class Route(Protocol):
    """Chooses who is next."""

    async def choose(self, journey: Journey, failed: Collection[PartyId]) -> Target:
        """The next callee, preferably none of ``failed``; may wait for one to be free.

        Raises:
            Overloaded: too many wait already.
            Unavailable: there is nobody, or not for the model.
            ModelNotFound: a distributor has no node for the model; another may.
            DeadlinePassed: nobody was free before the journey's deadline.
        """
        ...

    def choose_now(
        self,
        journey: Journey,
        failed: Collection[PartyId],
        *,
        spare: bool = False,
        even_resting: bool = False,
    ) -> Target | None:
        """A callee that is free this moment and none of ``failed``; None: there is none.

        ``spare``: only a place for which nobody waits; ``even_resting``: also one that is a last
        resort.
        """
        ...

    def ended(self, target: Target, journey: Journey, failure: AttemptFailed | None) -> None:
        """Hear how an attempt ended (None: with the answer's end); once for each choice."""
        ...
