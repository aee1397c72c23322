"""The price book: whose price holds, and when."""

import pytest

from starai.gateway.paying.pricing import PriceBook
from starai.protocol.registry import PriceEntry, Prices
from starai.protocol.tasks import FREE, TokenPrice


def _book(*entries):
    book = PriceBook()
    assert book.apply(Prices(len(entries), tuple(entries)))
    return book


def test_without_prices_everything_is_free():
    """A book without entries, or with nothing but zeros, charges nothing."""
    assert not PriceBook().loaded
    assert _book().at("a", 0) is FREE
    assert _book(PriceEntry(1, "*", 0, 0, 0)).is_free


@pytest.mark.parametrize(
    ("model", "now_ms", "price_id"),
    [("a", 5, 3), ("a", 15, 4), ("b", 5, 1), ("b", 9, 1), ("b", 10, 2), ("c", 99, 2), ("b", 20, 5)],
)
def test_a_models_own_price_goes_first(model, now_ms, price_id):
    """The newest of its own that holds, else the newest of any model's, each from its time on."""
    book = _book(
        PriceEntry(2, "*", 3, 4, 10),
        PriceEntry(1, "*", 1, 2, 0),
        PriceEntry(4, "a", 7, 8, 15),
        PriceEntry(3, "a", 5, 6, 0),
        PriceEntry(5, "b", 9, 9, 20),
    )
    for at_ms in (0, now_ms, now_ms):
        found = book.at(model, at_ms)
    assert found.price_id == price_id


def test_the_dearest_of_all():
    """What an opening allotment is measured by."""
    book = _book(PriceEntry(1, "a", 10, 1, 0), PriceEntry(2, "b", 1, 20, 0))
    assert book.dearest(100, 10) == 1010
    assert book.at("a", 0) == TokenPrice(1, 10, 1)
    assert book.at("c", 0) is FREE
