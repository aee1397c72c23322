"""Blocks that a swapped sequence left in the cache: they go to the tier only if others take them.

Whoever is swapped out may be back before its blocks are needed. So a tier slot is set aside for
each, but the block is copied at the last moment: when its content is about to go. It knows numbers
of blocks and slots; neither sequences nor what is in them.
"""

from __future__ import annotations


class Parking:
    """Which slots are owed the content of which block."""

    def __init__(self) -> None:
        """Start with none."""
        self._slots: dict[int, list[int]] = {}
        self._blocks: dict[int, int] = {}
        self._spilled: list[tuple[int, int]] = []

    def park(self, block: int, slot: int) -> None:
        """The block's content belongs into the slot, should it go."""
        self._slots.setdefault(block, []).append(slot)
        self._blocks[slot] = block

    def block(self, slot: int) -> int | None:
        """The block that still has what belongs into the slot, if it was not carried there."""
        return self._blocks.get(slot)

    def forget(self, slot: int) -> None:
        """Nobody wants the slot's content any more: it may belong to another soon."""
        self.unpark(slot)
        self._spilled = [pair for pair in self._spilled if pair[1] != slot]

    def unpark(self, slot: int) -> None:
        """The slot's content was taken from the block itself."""
        block = self._blocks.pop(slot, None)
        if block is None:
            return
        self._slots[block].remove(slot)
        if not self._slots[block]:
            del self._slots[block]

    def spill(self, block: int) -> None:
        """The block's content goes: it must be carried to its slots before anything is written."""
        for slot in self._slots.pop(block, ()):
            del self._blocks[slot]
            self._spilled.append((block, slot))

    def spilled(self) -> list[tuple[int, int]]:
        """Blocks and slots to copy, in order; each is told once."""
        spilled, self._spilled = self._spilled, []
        return spilled

    @property
    def parked(self) -> dict[int, int]:
        """The block of each slot that is owed something: to be looked at."""
        return self._blocks
