"""What a task costs: prices per token in whole nano-USD, so that nothing is ever rounded.

A price, once given a number, never changes: a new price is a new row. What a record asks for is
held against the row that it names. Number 0 is no row: it stands for what is free.
"""

from __future__ import annotations

from typing import Final

import msgspec

from starai.core.errors import InvalidRequest
from starai.ledger.accounts import natural

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
        """What so many tokens cost, in nano-USD: exact, in any order, on any machine."""
        return prompt_tokens * self.input_nano_usd + answer_tokens * self.output_nano_usd


def node_share(charged: int, node_share_bps: int) -> int:
    """The node's part of a charge, rounded down; the rest is the fee."""
    return charged * node_share_bps // BPS
