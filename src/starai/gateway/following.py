"""Keeps what a gateway must know as the registry has it: API keys and prices, and every change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starai.exchange import following
from starai.exchange.member import Member
from starai.gateway.paying.keys import KeyRing
from starai.gateway.paying.pricing import PriceBook
from starai.protocol.frames import decode, encode
from starai.protocol.registry import KeyTable, KeyTableRequest
from starai.protocol.subjects import KEYS_CHANGED


@asynccontextmanager
async def follow_keys(member: Member, keys: KeyRing) -> AsyncIterator[None]:
    """Keep ``keys`` current inside the context."""
    asked = encode(KeyTableRequest(member.identity.party))
    follower = following.Follower(
        member, "keys", asked, lambda frame: keys.apply(decode(frame, KeyTable))
    )
    async with follower.following(KEYS_CHANGED):
        yield


@asynccontextmanager
async def follow_prices(member: Member, prices: PriceBook) -> AsyncIterator[None]:
    """Keep ``prices`` current inside the context."""
    async with following.follow_prices(member, prices.apply):
        yield
