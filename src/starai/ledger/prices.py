"""What a task costs: prices per token in whole nano-USD, so that nothing is ever rounded.

A price, once given a number, never changes: a new price is a new row. Node and distributor compute
the same charge from the two numbers in a task's header; the registry checks it against the row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from starai.core.errors import InvalidRequest
from starai.ledger.accounts import natural

#: The price number of a task that costs nothing.
FREE: Final = 0
#: A price for every model that has none of its own.
ANY_MODEL: Final = "*"
#: A USD for a token, far beyond any price: the largest record stays far below `MONEY_MAX`.
PRICE_NANO_MAX: Final = 1_000_000_000
#: Shares are in basis points: 10,000 is everything.
BPS: Final = 10_000


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of the price table. Amounts are nano-USD for each token.

    ``node_share_bps`` of what is charged goes to the node, the rest is the operator's fee.
    """

    price_id: int
    model: str
    input_nano_usd: int
    output_nano_usd: int
    node_share_bps: int
    valid_from_ms: int

    def __post_init__(self) -> None:
        """Refuse what is no price.

        Raises:
            InvalidRequest: a number has another type or is out of range, or no model is named.
        """
        natural(self.price_id, "price_id", least=1)
        natural(self.valid_from_ms, "valid_from_ms")
        most = {"input_nano_usd": PRICE_NANO_MAX, "output_nano_usd": PRICE_NANO_MAX}
        for name, limit in {**most, "node_share_bps": BPS}.items():
            if natural(getattr(self, name), name) > limit:
                raise InvalidRequest(f"{name} must be at most {limit}", param=name)
        if not self.model:
            raise InvalidRequest("a price names a model, or '*' for every other", param="model")

    def charge(self, prompt_tokens: int, answer_tokens: int) -> int:
        """What a whole task costs."""
        return charge(self.input_nano_usd, self.output_nano_usd, prompt_tokens, answer_tokens)


def charge(
    input_nano_usd: int, output_nano_usd: int, prompt_tokens: int, answer_tokens: int
) -> int:
    """What so many tokens cost, in nano-USD: exact, in any order, on any machine."""
    return prompt_tokens * input_nano_usd + answer_tokens * output_nano_usd


def node_share(charged: int, node_share_bps: int) -> int:
    """The node's part of a charge, rounded down; the rest is the fee."""
    return charged * node_share_bps // BPS


class PriceTable:
    """All prices there ever were."""

    def __init__(self, prices: Iterable[Price] = ()) -> None:
        """Take the rows, in any order."""
        self._by_id = {price.price_id: price for price in prices}
        newest_last = sorted(self._by_id.values(), key=lambda p: (p.valid_from_ms, p.price_id))
        self._by_model: dict[str, list[Price]] = {}
        for price in newest_last:
            self._by_model.setdefault(price.model, []).append(price)

    def get(self, price_id: int) -> Price | None:
        """The row with this number."""
        return self._by_id.get(price_id)

    def current(self, model: str, now_ms: int) -> Price | None:
        """The newest price valid at ``now_ms``: the model's own, else every model's, else none."""
        for named in (model, ANY_MODEL):
            for price in reversed(self._by_model.get(named, ())):
                if price.valid_from_ms <= now_ms:
                    return price
        return None
