"""Who has already computed the beginning of a prompt: hashes of token blocks to parties.

A prompt is cut into blocks; the hash of each covers all tokens before it too, so equal hashes are
equal beginnings. Prompts are kept only as hashes under a secret key that lives as long as the
process: from them no prompt can be found, nor tried out. The index has a fixed size; what was
least recently used makes room. What a party really keeps it does not know: it guesses.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

#: Tokens of a block: few enough to find a shared system prompt, enough to keep a prompt short.
BLOCK_TOKENS: Final = 128
#: Blocks of one prompt that are kept: the first 16,384 tokens, so that hashing has an end.
BLOCKS_MAX: Final = 128
#: Parties kept for one block, the latest: more would only be choices between equals.
PARTIES_MAX: Final = 4
#: Blocks in all: with about 250 bytes each, 8 MB.
ENTRIES_MAX: Final = 32_768
#: How much of a hit is believed: the party may have needed the memory for something else.
BELIEVED: Final = 0.9
_TOKEN_BYTES: Final = 4


def block_hashes(key: bytes, scope: bytes, packed: bytes) -> list[int]:
    """The chained hashes of a prompt's full blocks.

    ``key`` (up to 64 bytes) is the secret; ``scope`` is all that parts memories from each other:
    the model, the tenant, an adapter. ``packed`` are token ids of four bytes.
    """
    width = BLOCK_TOKENS * _TOKEN_BYTES
    digest = hashlib.blake2b(scope, key=key, digest_size=16).digest()
    found = []
    for start in range(0, min(len(packed), BLOCKS_MAX * width) - width + 1, width):
        block = packed[start : start + width]
        digest = hashlib.blake2b(digest + block, key=key, digest_size=16).digest()
        found.append(int.from_bytes(digest[:8], "little"))
    return found


class PrefixIndex:
    """Which parties computed which beginnings lately."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        """Keep up to ``entries_max`` blocks."""
        self._entries_max = entries_max
        self._blocks: OrderedDict[int, tuple[int, ...]] = OrderedDict()
        # Blocks hold numbers, so that a party that is gone is forgotten at once, everywhere.
        self._numbers: dict[str, int] = {}
        self._parties: dict[int, str] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def num_parties(self) -> int:
        """Parties that are remembered."""
        return len(self._numbers)

    def find(self, hashes: Sequence[int]) -> dict[str, float]:
        """How many of a prompt's tokens each party has, as far as that is believed."""
        numbers: dict[int, int] = {}
        for length, block in enumerate(hashes, 1):
            holders = self._blocks.get(block)
            if holders is None:
                break
            for number in holders:
                # A gap in the middle is worthless: what comes behind it must be computed anew.
                if numbers.get(number, 0) == length - 1:
                    numbers[number] = length
        return {
            self._parties[number]: BELIEVED * BLOCK_TOKENS * length
            for number, length in numbers.items()
            if number in self._parties
        }

    def add(self, hashes: Iterable[int], party: str) -> None:
        """The party has computed, or is about to compute, a prompt of these blocks."""
        number = self._numbers.get(party)
        if number is None:
            number = self._numbers[party] = self._next
            self._parties[number] = party
            self._next += 1
        blocks = self._blocks
        # From the end, so that a beginning is always younger than what hangs on it.
        for block in reversed([*hashes]):
            holders = blocks.get(block, ())
            if not holders or holders[0] != number:
                others = [one for one in holders if one != number and one in self._parties]
                blocks[block] = (number, *others[: PARTIES_MAX - 1])
            blocks.move_to_end(block)
        while len(blocks) > self._entries_max:
            blocks.popitem(last=False)

    def forget(self, party: str) -> None:
        """The party is gone, or began anew with an empty memory."""
        number = self._numbers.pop(party, None)
        if number is not None:
            del self._parties[number]
