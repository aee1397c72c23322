"""Keeps what a party must know as the registry has it: one table, and every change of it.

Knows nothing of what is in the table.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from starai.core.concurrency import task_group
from starai.core.errors import MalformedFrame, StarAIError
from starai.core.logging import event
from starai.exchange.member import Member
from starai.protocol.frames import decode, encode
from starai.protocol.ports import Delivery
from starai.protocol.registry import Prices, PricesRequest
from starai.protocol.subjects import PRICES_CHANGED, registry

_LOG = logging.getLogger(__name__)

#: The whole table is asked for this often, in case a change got lost on the way.
REFRESH_S = 60.0
#: And this often until it has come once.
RETRY_S = 0.25
TIMEOUT_S = 2.0


@asynccontextmanager
async def follow_prices(
    member: Member, apply: Callable[[Prices], bool], retry_s: float = RETRY_S
) -> AsyncIterator[None]:
    """Have ``apply`` take in each price table inside the context."""
    asked = encode(PricesRequest(member.identity.party))
    follower = Follower(
        member, "prices", asked, lambda frame: apply(decode(frame, Prices)), retry_s
    )
    async with follower.following(PRICES_CHANGED):
        yield


class Follower:
    """Asks for one table until it has come, hears what changes, and asks again now and then."""

    def __init__(
        self,
        member: Member,
        verb: str,
        asked: bytes,
        apply: Callable[[bytes], bool],
        retry_s: float = RETRY_S,
    ) -> None:
        """Ask ``asked`` of ``verb``; ``apply`` says False of a frame before which one is missing.

        Until the table has come once it is asked for every ``retry_s``.
        """
        self._member = member
        self._verb = verb
        self._asked = asked
        self._apply = apply
        self._retry_s = retry_s
        self._stale = anyio.Event()

    @asynccontextmanager
    async def following(self, subject: str) -> AsyncIterator[None]:
        """Follow inside the context; changes are told on ``subject``."""
        async with (
            self._member.wire.subscribe(subject, self._on_change),
            task_group() as group,
        ):
            group.start_soon(self._run)
            yield
            group.cancel_scope.cancel()

    def _on_change(self, delivery: Delivery) -> None:
        try:
            in_step = self._apply(delivery.payload)
        except MalformedFrame:
            in_step = False
        if not in_step:
            self._stale.set()

    async def _run(self) -> None:
        while True:
            done = await self._ask()
            with anyio.move_on_after(REFRESH_S if done else self._retry_s):
                await self._stale.wait()

    async def _ask(self) -> bool:
        subject = registry(self._verb, self._member.identity.party)
        self._stale = anyio.Event()
        try:
            frame = await self._member.wire.request(subject, self._asked, timeout_s=TIMEOUT_S)
            return self._apply(frame)
        except StarAIError as error:  # whatever it is, what is known so far is still good
            event(_LOG, f"{self._verb}_not_fetched", logging.DEBUG, code=error.code)
            return False
