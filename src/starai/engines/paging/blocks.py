"""A pool of equal blocks: free, cached (findable, held by nobody) or referenced.

Every operation is O(1). It does not know sequences, only how many hold a block; nor what a block
is made of.
"""

from __future__ import annotations

from collections import OrderedDict

from starai.engines.paging.chain import Link
from starai.engines.paging.parking import Parking


class OutOfBlocks(Exception):
    """There are not enough blocks; nothing has changed."""


class Blocks:
    """Reference counts, the index of findable blocks, and least-recently-released eviction.

    A findable block may be parked: what is in it is spilled before it becomes unfindable.
    """

    def __init__(self, num_blocks: int) -> None:
        self.refs = [0] * num_blocks
        self.links: list[Link | None] = [None] * num_blocks
        # A stack: the block freed last is the one most likely still in the CPU's cache.
        self.free = list(range(num_blocks - 1, -1, -1))
        self.cached: OrderedDict[int, None] = OrderedDict()
        self.index: dict[bytes, int] = {}
        self.parking = Parking()
        self.num_taken = 0
        self.num_evicted = 0

    @property
    def available(self) -> int:
        """How many blocks `take` can give: free ones and cached ones."""
        return len(self.free) + len(self.cached)

    def take(self) -> int:
        """A block with one holder and no content; the cached block released longest ago last.

        Raises:
            OutOfBlocks: every block is referenced.
        """
        if self.free:
            block = self.free.pop()
        elif self.cached:
            block = self.cached.popitem(last=False)[0]
            self.unpublish(block)
            self.num_evicted += 1
        else:
            raise OutOfBlocks("every block is in use")
        self.refs[block] = 1
        self.num_taken += 1
        return block

    def hold(self, block: int) -> None:
        """One more holder."""
        if self.refs[block] == 0:
            del self.cached[block]
        self.refs[block] += 1

    def release(self, block: int) -> None:
        """One holder less; the last one leaves the block cached if it is findable, else free."""
        self.refs[block] -= 1
        if self.refs[block] == 0:
            if self.links[block] is None:
                self.free.append(block)
            else:
                self.cached[block] = None

    def find(self, link: Link) -> int | None:
        """The findable block with this name and content, if there is one."""
        block = self.index.get(link.digest)
        return block if block is not None and self.links[block] == link else None

    def publish(self, block: int, link: Link) -> None:
        """Make a referenced block findable, unless another one already has this name."""
        if self.links[block] is None and link.digest not in self.index:
            self.links[block] = link
            self.index[link.digest] = block

    def unpublish(self, block: int) -> None:
        """Make a block unfindable, because its content goes."""
        link = self.links[block]
        if link is not None:
            self.parking.spill(block)
            self.links[block] = None
            del self.index[link.digest]
