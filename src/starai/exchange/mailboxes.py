"""A bounded mailbox with one reader, filled from handlers that cannot wait."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class Mailbox(Generic[T]):
    """First in, first out; `put` never blocks, `get` waits."""

    def __init__(self, limit: int) -> None:
        """Hold at most ``limit`` items."""
        self._items: deque[T] = deque()
        self._limit = limit
        self._arrived = anyio.Event()

    def put(self, item: T) -> bool:
        """Add an item; False, and nothing is added, when the mailbox is full."""
        if len(self._items) >= self._limit:
            return False
        self._items.append(item)
        self._arrived.set()
        return True

    async def get(self) -> T:
        """The oldest item; wait for one."""
        while not self._items:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._items.popleft()

    def __len__(self) -> int:
        return len(self._items)
