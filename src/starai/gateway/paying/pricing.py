"""What tokens cost, as the registry told: looked up for every request, in memory.

A table without entries is that of a free network. Knows nothing of who pays.
"""

from __future__ import annotations

from typing import Final

from starai.ledger.prices import ANY_MODEL
from starai.protocol.registry import PriceEntry, Prices
from starai.protocol.tasks import FREE, TokenPrice

_FOREVER_MS: Final = 1 << 62


class PriceBook:
    """The prices that hold now, and those that will."""

    def __init__(self) -> None:
        """Start empty: until the first table nobody knows what is free."""
        self._entries: dict[str, list[PriceEntry]] = {}
        #: A model's price, and until when it holds.
        self._found: dict[str, tuple[TokenPrice, int]] = {}
        self.version = -1
        #: Whether nothing costs anything, now and as far as is known.
        self.is_free = True
        #: Whether a table has come.
        self.loaded = False

    def apply(self, table: Prices) -> bool:
        """Take over a table; always true: each is complete."""
        self._entries = {}
        for entry in sorted(table.entries, key=lambda one: (one.valid_from_ms, one.price_id)):
            self._entries.setdefault(entry.model, []).append(entry)
        self._found = {}
        self.is_free = not any(one.input_nano_usd or one.output_nano_usd for one in table.entries)
        self.version = table.version
        self.loaded = True
        return True

    def at(self, model: str, now_ms: int) -> TokenPrice:
        """What a token of ``model`` costs at ``now_ms``."""
        if self.is_free:
            return FREE
        found = self._found.get(model)
        if found is None or now_ms >= found[1]:
            found = self._found[model] = self._look_up(model, now_ms)
        return found[0]

    def dearest(self, prompt_tokens: int, answer_tokens: int) -> int:
        """What so many tokens cost at most, whatever the model, in nano-USD."""
        return max(
            (
                _price(entry).charge(prompt_tokens, answer_tokens)
                for entries in self._entries.values()
                for entry in entries
            ),
            default=0,
        )

    def _look_up(self, model: str, now_ms: int) -> tuple[TokenPrice, int]:
        until_ms = _FOREVER_MS
        for name in (model, ANY_MODEL):  # its own price goes before that of any model
            price = None
            for entry in self._entries.get(name, ()):
                if entry.valid_from_ms > now_ms:
                    until_ms = min(until_ms, entry.valid_from_ms)
                else:
                    price = _price(entry)
            if price is not None:
                return price, until_ms
        return FREE, until_ms


def _price(entry: PriceEntry) -> TokenPrice:
    return TokenPrice(entry.price_id, entry.input_nano_usd, entry.output_nano_usd)
