"""The hours in which a node may work."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from starai.core.errors import ConfigurationRefused
from starai.node.yielding.hours import Hours


def test_a_night_runs_over_midnight():
    """22:00-07:00 holds at 23:00 and at 06:59, not at 07:00 nor at noon."""
    night = Hours.parse("22:00-07:00")
    assert [night.contain(m) for m in (23 * 60, 0, 6 * 60 + 59, 7 * 60, 720)] == [
        *(True, True, True, False, False)
    ]


def test_several_spans_are_joined():
    """Lunch and night."""
    hours = Hours.parse("12:00-13:00, 22:00-24:00")
    assert [hours.contain(m) for m in (720, 779, 780, 1320, 1439, 0)] == [
        *(True, True, False, True, True, False)
    ]


@pytest.mark.parametrize(
    "text", ["", "22-7", "25:00-07:00", "22:00-07:60", "22:00-22:00", "22:00-07:00,", "24:00-01:00"]
)
def test_nonsense_is_refused(text):
    """What is no hours of a day is refused with an example."""
    with pytest.raises(ConfigurationRefused, match="hours"):
        Hours.parse(text)


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 1439))
def test_a_span_and_the_rest_of_the_day_share_no_minute(begin, end, minute):
    """Each minute lies in a span or in the one that begins where it ends."""
    if begin != end:
        assert Hours(((begin, end),)).contain(minute) != Hours(((end, begin),)).contain(minute)
