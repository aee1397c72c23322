"""Where handlers that cannot wait leave things for a reader: a bounded mailbox with a bell."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from starai.core.waking import Bell

__all__ = ["Bell", "Mailbox", "MailboxOverflow"]

T = TypeVar("T")


class MailboxOverflow(Exception):
    """An item came for which there was no room: what the reader gets has a gap."""


class Mailbox(Generic[T]):
    """First in, first out; `put` never blocks, `get` waits.

    A reader is never handed what comes before a gap as if it were all: once an item had to be
    dropped, `get` and `pop` raise.
    """

    def __init__(self, limit: int, bell: Bell | None = None) -> None:
        """Hold at most ``limit`` items; ring ``bell`` for each: several boxes may share one."""
        self._items: deque[T] = deque()
        self._limit = limit
        self._overflown = False
        self._bell = bell or Bell()

    def put(self, item: T) -> None:
        """Add an item, or drop it when the mailbox is full."""
        if len(self._items) < self._limit:
            self._items.append(item)
        else:
            self._overflown = True
        self._bell.ring()

    async def get(self) -> T:
        """The oldest item; wait for one.

        Raises:
            MailboxOverflow: an item had to be dropped.
        """
        while not self.has_news:
            await self._bell.wait()
        return self.pop()

    @property
    def has_news(self) -> bool:
        """Whether `pop` would return, or raise."""
        return bool(self._items) or self._overflown

    def pop(self) -> T:
        """The oldest item, which is there.

        Raises:
            MailboxOverflow: an item had to be dropped.
        """
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
