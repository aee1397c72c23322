"""Keeps a gateway's key ring as the registry has it: the whole table, then every change."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from starai.core.concurrency import task_group
from starai.core.errors import MalformedFrame, StarAIError
from starai.core.logging import event
from starai.exchange.member import Member
from starai.gateway.keys import KeyRing
from starai.protocol.frames import decode, encode
from starai.protocol.ports import Delivery
from starai.protocol.registry import KeyTable, KeyTableRequest
from starai.protocol.subjects import KEYS_CHANGED, registry

_LOG = logging.getLogger(__name__)

#: The whole table is asked for this often, in case a change got lost on the way.
REFRESH_S = 60.0
#: And this often until it has come once.
RETRY_S = 0.25
TIMEOUT_S = 2.0


@asynccontextmanager
async def follow_keys(member: Member, keys: KeyRing) -> AsyncIterator[None]:
    """Keep ``keys`` current inside the context."""
    follower = _Follower(member, keys)
    async with (
        member.wire.subscribe(KEYS_CHANGED, follower.on_change),
        task_group() as group,
    ):
        group.start_soon(follower.run)
        yield
        group.cancel_scope.cancel()


class _Follower:
    def __init__(self, member: Member, keys: KeyRing) -> None:
        self._member = member
        self._keys = keys
        self._stale = anyio.Event()

    def on_change(self, delivery: Delivery) -> None:
        try:
            in_step = self._keys.apply(decode(delivery.payload, KeyTable))
        except MalformedFrame:
            in_step = False
        if not in_step:
            self._stale.set()

    async def run(self) -> None:
        while True:
            done = await self._ask()
            with anyio.move_on_after(REFRESH_S if done else RETRY_S):
                await self._stale.wait()

    async def _ask(self) -> bool:
        party = self._member.identity.party
        self._stale = anyio.Event()
        try:
            frame = await self._member.wire.request(
                registry("keys", party), encode(KeyTableRequest(party)), timeout_s=TIMEOUT_S
            )
            return self._keys.apply(decode(frame, KeyTable))
        except StarAIError as error:  # whatever it is, the keys known so far are still good
            event(_LOG, "keys_not_fetched", logging.DEBUG, code=error.code)
            return False
