"""What a sequence holds of paged memory, and what has happened to all of them: plain records."""

from __future__ import annotations

from dataclasses import dataclass, field

from starai.engines.paging.chain import Link


@dataclass(slots=True)
class Held:
    """What one sequence holds.

    ``table`` has a block in order of position, or ``~slot`` for what is in the tier. ``chain``
    names the full computed blocks; it stays empty where ``findable`` is false. Up to ``writable``
    tokens, `PagedMemory.reach` has nothing to do. ``lost`` is what `PagedMemory.drop` forgot.
    """

    root: bytes
    findable: bool
    table: list[int] = field(default_factory=list)
    chain: list[Link] = field(default_factory=list)
    computed: int = 0
    writable: int = 0
    swapped: bool = False
    lost: int = 0


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
