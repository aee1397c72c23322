"""How a sequence leaves its blocks for the tier, and how it comes back: some read, some computed.

While it comes back it has all its blocks, but of some the content is missing: it is read from the
tier meanwhile, or computed by passes over the tokens before it. Whoever drives this says which;
what is there already, in order, is computed. Until a block's content is there, nobody else can find
it, and its slot stays its own, so that a sequence which must give way again loses nothing.

A slot that could not be written is void: what belongs there is always computed. It moves no data.
"""

from __future__ import annotations

from collections.abc import Iterable

from starai.engines.paging.blocks import Blocks, OutOfBlocks
from starai.engines.paging.sequences import Copy, Held, Tally


class Swapping:
    """The slots of the tier, and who is on the way there or back."""

    def __init__(self, blocks: Blocks, tier_blocks: int, size: int, tally: Tally) -> None:
        """Share blocks and tally; ``size`` is tokens a block."""
        self.free = list(range(tier_blocks - 1, -1, -1))
        self._blocks = blocks
        self._size = size
        self._tally = tally
        self._void: set[int] = set()

    # -- there

    def out(self, held: Held) -> tuple[Copy, ...]:
        """Leave the blocks that nobody else holds; returns what must be copied at once.

        Raises:
            OutOfBlocks: there are too few slots; nothing has changed.
        """
        refs, kept = self._blocks.refs, -(-held.extent // self._size)
        private = [i for i in range(kept) if i not in held.slots and refs[held.table[i]] == 1]
        if len(private) > len(self.free):
            raise OutOfBlocks(f"{len(private)} tier slots needed, {len(self.free)} free")
        for i, slot in held.slots.items():
            self._blocks.release(held.table[i])
            held.table[i] = ~slot
        held.computed = held.extent
        _end(held)
        copies = []
        # The last block first, so that the cache evicts it before those it depends on.
        for i in reversed(private):
            block, slot = held.table[i], self.free.pop()
            if self._blocks.links[block] is None:
                copies.append(Copy(block, slot))
            else:
                self._blocks.parking.park(block, slot)
            self._blocks.release(block)
            held.table[i] = ~slot
        return self._told(copies)

    def spills(self) -> tuple[Copy, ...]:
        """What others take of what was left: to be copied before it is overwritten."""
        return self._told([Copy(*pair) for pair in self._blocks.parking.spilled()])

    def void(self, slots: Iterable[int]) -> None:
        """These slots were not written."""
        self._void.update(slots)

    def give(self, slot: int) -> None:
        """Nobody wants the slot's content any more."""
        self._blocks.parking.forget(slot)
        self._void.discard(slot)
        self.free.append(slot)

    # -- and back

    def cached(self, held: Held, i: int) -> int | None:
        """The block that has what belongs into place ``i`` of a swapped sequence, if one has."""
        parked = self._blocks.parking.block(~held.table[i])
        if parked is not None:
            return parked
        return self._blocks.find(held.chain[i]) if i < len(held.chain) else None

    def gap(self, held: Held) -> tuple[int, int]:
        """The first tokens in a row that are not in memory: from, to."""
        missing = (i for i, b in enumerate(held.table) if b < 0 and self.cached(held, i) is None)
        first = last = next(missing, None)
        if first is None or last is None:
            return held.computed, held.computed
        for i in missing:
            if i != last + 1:
                break
            last = i
        return first * self._size, min((last + 1) * self._size, held.computed)

    def bring(self, held: Held, compute_to: int) -> tuple[Copy, ...]:
        """Take blocks for all that is away; returns what is to be read, in order of position."""
        away = {i: ~block for i, block in enumerate(held.table) if block < 0}
        # Everything still cached is held before the first block is taken, which might evict it.
        for i, slot in away.items():
            block = self.cached(held, i)
            if block is not None:
                self._blocks.hold(block)
                held.table[i] = block
                self.give(slot)
        for i, slot in away.items():
            if held.table[i] < 0:
                held.table[i] = self._blocks.take()
                held.slots[i] = slot
                if i * self._size >= compute_to and slot not in self._void:
                    held.reading.add(i)
        if held.slots:
            held.back, held.computed = held.computed, min(held.slots) * self._size
        self._tally.swapped_in_blocks += len(held.reading)
        self._tally.head_tokens += (len(held.slots) - len(held.reading)) * self._size
        return tuple(Copy(held.slots[i], held.table[i]) for i in sorted(held.reading))

    def expected(self, held: Held, copies: Iterable[Copy]) -> list[Copy]:
        """Those of the reads that are still wanted."""
        reading = {(held.slots[i], held.table[i]) for i in held.reading}
        return [copy for copy in copies if (copy.source, copy.target) in reading]

    def arrived(self, held: Held, copies: Iterable[Copy]) -> None:
        """These were read."""
        places = {held.slots[i]: i for i in held.reading}
        for copy in self.expected(held, copies):
            self._here(held, places[copy.source])
        self._advance(held)

    def astray(self, held: Held, copies: Iterable[Copy]) -> None:
        """These will not come."""
        places = {held.slots[i]: i for i in held.reading}
        for copy in self.expected(held, copies):
            held.reading.remove(places[copy.source])
            self._void.add(copy.source)

    def computed(self, held: Held) -> None:
        """What is missing was computed up to ``held.computed``."""
        done = [
            i
            for i in held.slots
            if (i + 1) * self._size <= held.computed or held.back <= held.computed
        ]
        for i in done:
            self._here(held, i)
        self._advance(held)

    def cut(self, held: Held, length: int) -> None:
        """Nothing behind ``length`` is wanted any more, and no block behind it is held."""
        ended = length <= held.computed
        for i in [i for i in held.slots if ended or i >= len(held.table)]:
            held.reading.discard(i)
            self.give(held.slots.pop(i))
        held.back = 0 if ended else min(held.back, length)

    def runnable(self, held: Held, length: int) -> int:
        """The end of what may be computed now, of ``length`` tokens."""
        i = held.computed // self._size
        while i * self._size < held.back:
            if i not in held.slots or i in held.reading:
                return min(length, i * self._size)
            i += 1
        return length

    # -- inside

    def _told(self, copies: list[Copy]) -> tuple[Copy, ...]:
        self._void.difference_update(copy.target for copy in copies)
        self._tally.swapped_out_blocks += len(copies)
        return tuple(copies)

    def _here(self, held: Held, i: int) -> None:
        held.reading.discard(i)
        self.give(held.slots.pop(i))
        if i < len(held.chain):
            self._blocks.publish(held.table[i], held.chain[i])

    def _advance(self, held: Held) -> None:
        """Go on over what is there."""
        size = self._size
        while held.computed < held.back and held.computed // size not in held.slots:
            held.computed = min((held.computed // size + 1) * size, held.back)
        if held.back and held.computed >= held.back:
            _end(held)


def _end(held: Held) -> None:
    """All is there, or away: nothing is on its way any more."""
    held.back = held.writable = 0
    held.slots.clear()
    held.reading.clear()
