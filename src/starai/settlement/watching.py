"""Tells the books what happened at the vault: deposits, claims, withdrawals, vetoes.

Only blocks with enough others on top are read, so that what a short reorganisation takes back was
never booked. The place that was read up to is kept with its block's hash, in one transaction with
what was booked: nothing is missed, and nothing counts twice. If that block is no longer on the
chain, the chain went back further than we thought possible, and a person must look. Knows nothing
of customers and nodes, only of addresses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from starai.core.errors import Conflict, Unavailable
from starai.settlement.rollup.base import Chain, Happening
from starai.settlement.settler import CONFIRMATIONS

#: Blocks of one question: public nodes refuse longer spans.
SPAN_BLOCKS: Final = 1000
#: Reports that are booked together: they travel in one frame of the wire.
AT_ONCE: Final = 1000


class Cursor(NamedTuple):
    """What was read: everything up to this block."""

    block: int
    block_hash: bytes


class Bookkeeper(Protocol):
    """Who is told."""

    def cursor(self) -> Cursor | None:
        """Up to where everything is booked; None before the first time."""
        ...

    def book(self, happenings: Sequence[Happening], cursor: Cursor) -> None:
        """Book these, and move the cursor: both durably, or neither.

        Raises:
            StarAIError: they contradict the books; neither was done.
        """
        ...


class Watcher:
    """Reads one vault's reports, a span of blocks at a step."""

    def __init__(
        self,
        chain: Chain,
        bookkeeper: Bookkeeper,
        first_block: int = 0,
        *,
        confirmations: int = CONFIRMATIONS,
        span_blocks: int = SPAN_BLOCKS,
    ) -> None:
        """Take the chain and who is told; ``first_block`` is where the vault was deployed."""
        self._chain = chain
        self._bookkeeper = bookkeeper
        self._first_block = first_block
        self._confirmations = confirmations
        self._span_blocks = span_blocks

    def step(self) -> int:
        """Book what the next span reports; returns how many blocks are left to read.

        Raises:
            Unavailable: the chain does not answer.
            Conflict: what was booked is no longer on the chain.
        """
        cursor = self._bookkeeper.cursor()
        if cursor is not None and self._chain.block_hash(cursor.block) != cursor.block_hash:
            raise Conflict(
                f"block {cursor.block}, up to which the books follow the chain, is not on it any "
                f"more: it went back by more than {self._confirmations} blocks, or is another chain"
            )
        first = self._first_block if cursor is None else cursor.block + 1
        safe = self._chain.tip().number - self._confirmations
        last = min(safe, first + self._span_blocks - 1)
        if last < first:
            return 0
        found = self._chain.happenings(first, last)
        while len(found) > AT_ONCE and last > first:
            last = (first + last) // 2
            found = [one for one in found if one.block.number <= last]
        block_hash = self._chain.block_hash(last)
        if block_hash is None or any(
            one.block.number == last and one.block.block_hash != block_hash for one in found
        ):
            raise Unavailable(f"the chain changed below block {last} while it was read")
        self._bookkeeper.book(found, Cursor(last, block_hash))
        return safe - last


def happening_id(chain_id: int, contract: bytes, happening: Happening) -> bytes:
    """16 bytes that name one report of one vault for ever: the id of the event that books it.

    It is the same when the transaction gets into another block.
    """
    where = chain_id.to_bytes(32, "big") + contract + happening.tx_hash
    index = happening.ordinal.to_bytes(4, "big")
    return hashlib.sha256(b"starai/v1/happening" + where + index).digest()[:16]
