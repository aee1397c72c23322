"""Amounts as people type them."""

import click
import pytest

from starai.cli.options import Dollars, DollarsPerMillion, PriceOption


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0", 0),
        ("1", 10**9),
        ("$12.50", 12_500_000_000),
        ("0.000000001", 1),
        ("7.1000000000", 71 * 10**8),
    ],
)
def test_dollars(text, nano):
    """Exact to the billionth of a dollar; a float would not be."""
    assert Dollars().convert(text, None, None) == nano


@pytest.mark.parametrize("text", ["", "-1", "1,5", "1e9", "0.0000000001", "ten", "1.", ".5"])
def test_what_is_no_amount(text):
    """Neither a guess nor a rounding: what is not understood is refused."""
    with pytest.raises(click.BadParameter):
        Dollars().convert(text, None, None)


def test_prices_are_per_million():
    """$0.10 for a million tokens is 100 nano-USD for one; finer than $0.001 cannot be kept."""
    assert DollarsPerMillion().convert("0.10", None, None) == 100
    assert PriceOption().convert("org/name=0.02/1", None, None) == ("org/name", 20, 1000)
    assert PriceOption().convert("*=0/0", None, None) == ("*", 0, 0)
    for wrong in ("0.0001", "x=1", "=1/2", "m=1/x", "1/2"):
        with pytest.raises(click.BadParameter):
            PriceOption().convert(wrong, None, None)
