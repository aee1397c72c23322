"""What a task costs, and what is no price."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from starai.core.errors import InvalidRequest
from starai.ledger.prices import BPS, PRICE_NANO_MAX, Price, node_share


def _price(number: int, model: str = "m", **changes: object) -> Price:
    fields = {
        "price_id": number,
        "model": model,
        "input_nano_usd": 20,
        "output_nano_usd": 60,
        "node_share_bps": 9_000,
        "valid_from_ms": 0,
    }
    return Price(**{**fields, **changes})


def test_two_cents_for_a_million_tokens_is_exact() -> None:
    """20 nano-USD a token, with nothing rounded on the way."""
    assert _price(1).charge(1_000_000, 0) == 20_000_000
    assert _price(1).charge(3, 2) == 180


@given(st.integers(0, 1 << 63), st.integers(0, BPS))
def test_shares_add_up(charge: int, bps: int) -> None:
    """The node never gets more than its part, and less only by less than one nano-USD."""
    share = node_share(charge, bps)
    assert 0 <= share <= charge
    assert share * BPS <= charge * bps < (share + 1) * BPS


@pytest.mark.parametrize(
    "change",
    [
        {"price_id": 0},
        {"model": ""},
        {"input_nano_usd": True},
        {"input_nano_usd": -1},
        {"output_nano_usd": PRICE_NANO_MAX + 1},
        {"output_nano_usd": "7"},
        {"node_share_bps": BPS + 1},
        {"valid_from_ms": -1},
    ],
)
def test_what_is_no_price_is_refused(change: dict[str, object]) -> None:
    """Numbers are whole and in range; a price is for something."""
    with pytest.raises(InvalidRequest):
        _price(
            **{"number": 1, **{("number" if k == "price_id" else k): v for k, v in change.items()}}
        )
