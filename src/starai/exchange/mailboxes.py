"""A bounded mailbox with one reader, filled from handlers that cannot wait."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class MailboxOverflow(Exception):
    """An item came for which there was no room: what the reader gets has a gap."""


class Mailbox(Generic[T]):
    """First in, first out; `put` never blocks, `get` waits.

    A reader is never handed what comes before a gap as if it were all: once an item had to be
    dropped, `get` raises.
    """

    def __init__(self, limit: int) -> None:
        """Hold at most ``limit`` items."""
        self._items: deque[T] = deque()
        self._limit = limit
        self._overflown = False
        self._arrived = anyio.Event()

    def put(self, item: T) -> None:
        """Add an item, or drop it when the mailbox is full."""
        if len(self._items) < self._limit:
            self._items.append(item)
        else:
            self._overflown = True
        self._arrived.set()

    async def get(self) -> T:
        """The oldest item; wait for one.

        Raises:
            MailboxOverflow: an item had to be dropped.
        """
        while not (self._items or self._overflown):
            self._arrived = anyio.Event()
            await self._arrived.wait()
        if self._overflown:
            raise MailboxOverflow
        return self._items.popleft()

    def take_ready(self) -> list[T]:
        """All that waits now, which may be nothing; a gap shows at the next `get`."""
        ready = [*self._items]
        self._items.clear()
        return ready

    def __len__(self) -> int:
        return len(self._items)
