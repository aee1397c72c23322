"""What a sequence holds of paged memory, and what has happened to all of them: plain records."""

from __future__ import annotations

from dataclasses import dataclass, field

from starai.engines.paging.chain import Link


@dataclass(frozen=True, slots=True)
class Copy:
    """A block, or a tier slot, to copy onto another one, in every layer."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Return:
    """A sequence comes back: ``reads`` are copies from tier slots to blocks, some time later.

    What of it is to be computed until then is not said here, see `PagedMemory.runnable`.
    """

    key: bytes
    reads: tuple[Copy, ...]


@dataclass(slots=True)
class Held:
    """What one sequence holds.

    ``table`` has a block in order of position, or ``~slot`` for what is in the tier. ``chain``
    names the full computed blocks; it stays empty where ``findable`` is false. Up to ``writable``
    tokens, `PagedMemory.reach` has nothing to do. ``lost`` is what `PagedMemory.drop` forgot.

    Of a sequence that comes back in parts, ``back`` tokens were computed before; of others it is 0.
    Meanwhile ``computed`` counts what is there without a gap, ``slots`` has the tier slot of each
    block that is not there yet, by its place in the table, and ``reading`` are the places whose
    content is being read; the other ones are to be computed.
    """

    root: bytes
    findable: bool
    table: list[int] = field(default_factory=list)
    chain: list[Link] = field(default_factory=list)
    computed: int = 0
    writable: int = 0
    swapped: bool = False
    lost: int = 0
    back: int = 0
    slots: dict[int, int] = field(default_factory=dict)
    reading: set[int] = field(default_factory=set)

    @property
    def extent(self) -> int:
        """How many tokens it has computed, there or not."""
        return max(self.computed, self.back)


@dataclass(slots=True)
class Tally:
    """What has happened so far, in tokens or blocks."""

    looked_up_tokens: int = 0
    hit_tokens: int = 0
    copies: int = 0
    swapped_out_blocks: int = 0
    swapped_in_blocks: int = 0
    dropped_tokens: int = 0
    recomputed_tokens: int = 0
    head_tokens: int = 0
