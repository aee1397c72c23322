"""An outbox without a disk: for simulations under virtual time, where a thread cannot wait."""

from __future__ import annotations

from collections.abc import Sequence

from anyio.lowlevel import checkpoint

from starai.core.errors import Overloaded


class MemoryOutbox:
    """Behaves as `starai.wire.outbox.Outbox`; keep the object to survive a simulated restart."""

    def __init__(self, limit: int = 100_000) -> None:
        """Hold at most ``limit`` items."""
        self._limit = limit
        self._last = 0
        self._items: dict[int, tuple[str, bytes]] = {}

    async def append(self, topic: str, item: bytes, *, flushed: bool = True) -> int:
        """Keep ``item`` under ``topic``.

        Raises:
            Overloaded: it is full.
        """
        number = self.keep(topic, item)
        await checkpoint()
        return number

    def keep(self, topic: str, item: bytes) -> int:
        """Keep ``item`` under ``topic``.

        Raises:
            Overloaded: it is full.
        """
        if len(self._items) >= self._limit:
            raise Overloaded("the outbox is full")
        self._last += 1
        self._items[self._last] = (topic, item)
        return self._last

    async def pending(self, topic: str, limit: int) -> list[tuple[int, bytes]]:
        """The oldest items of ``topic``."""
        await checkpoint()
        found = [(number, item) for number, (of, item) in self._items.items() if of == topic]
        return found[:limit]

    async def settle(self, ids: Sequence[int]) -> None:
        """Forget items."""
        await checkpoint()
        for number in ids:
            self._items.pop(number, None)

    @property
    def depth(self) -> int:
        """How many items wait, under all topics."""
        return len(self._items)
