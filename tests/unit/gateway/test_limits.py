"""Token buckets and the headers that tell of them."""

import pytest
from hypothesis import given, strategies as st

from starai.gateway.errors import LimitReached
from starai.gateway.paying.limits import Bucket, KeyLimits, duration


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 300)), max_size=40),
)
def test_no_minute_takes_more_than_its_share(capacity, steps):
    """In any stretch of time at most the capacity and its refill are taken."""
    bucket, now, taken = Bucket(capacity), 0.0, 0
    for pause, amount in steps:
        now += pause
        if bucket.wait_s(amount, now) == 0:
            bucket.move(-amount, now)
            taken += amount
        assert taken <= capacity + now * capacity / 60 + 1e-6


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_waiting_as_told_is_enough(capacity, amount):
    """Whoever waits as long as told gets what was asked for."""
    bucket = Bucket(capacity)
    bucket.move(-capacity, 0.0)
    if amount <= capacity:
        wait_s = bucket.wait_s(amount, 0.0)
        assert bucket.level(wait_s + 1e-6) >= amount


def test_what_was_not_used_comes_back():
    """A reservation is corrected when the answer is known."""
    limits = KeyLimits(0, 100)
    limits.take_tokens(90, 0.0)
    with pytest.raises(LimitReached) as caught:
        limits.take_tokens(20, 0.0)
    assert caught.value.kind == "tokens"
    assert caught.value.retry_after_s == pytest.approx(6.0)
    limits.settle_tokens(90, 10, 0.0)
    limits.take_tokens(90, 0.0)


def test_a_request_larger_than_the_limit():
    """What can never fit is refused without a time to wait."""
    with pytest.raises(LimitReached) as caught:
        KeyLimits(0, 100).take_tokens(101, 0.0)
    assert caught.value.retry_after_s is None
    assert "Request too large" in caught.value.message


def test_no_limits_no_headers():
    """A key without limits has no headers and is never refused."""
    limits = KeyLimits(0, 0)
    limits.take_request(0.0)
    limits.take_tokens(1 << 40, 0.0)
    assert limits.headers(0.0) == []


def test_headers():
    """The headers give limit, rest and time until all is there again."""
    limits = KeyLimits(60, 600)
    limits.take_request(0.0)
    limits.take_tokens(300, 0.0)
    headers = {name.decode(): value.decode() for name, value in limits.headers(0.0)}
    assert headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "300",
        "x-ratelimit-reset-tokens": "30s",
    }


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.12, "120ms"), (7.5, "7.5s"), (360, "6m0s"), (61.4, "1m1s")]
)
def test_durations(seconds, text):
    """Times are written as OpenAI writes them."""
    assert duration(seconds) == text
