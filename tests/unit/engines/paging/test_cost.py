"""Swap or recompute, from measured rates."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from starai.engines.paging.cost import (
    FORGETTING,
    OBSERVED_TOKENS_MIN,
    SMOOTHING,
    WORTH,
    Action,
    Gap,
    PrefillFit,
    Rates,
    choose,
)

RATES = Rates(1e9, 2e9, 1000.0)
KV_BYTES = 114_688


def chosen(private: int, cached: int, rates: Rates) -> Action:
    """What the rule says of a model of `KV_BYTES`."""
    return choose(Gap(private, cached, KV_BYTES), rates)


def took(tokens: int, start: int, a: float, b: float) -> float:
    """What a pass takes on a machine with these coefficients."""
    return a * tokens + b * ((start + tokens) ** 2 - start**2)


@given(st.floats(1e-5, 1e-2), st.floats(1e-9, 1e-6))
def test_both_coefficients_are_found(a: float, b: float) -> None:
    """From exact passes of several lengths the fit predicts any other pass."""
    fit = PrefillFit()
    for tokens, start in ((64, 0), (512, 0), (512, 512), (2048, 0), (512, 3584)):
        fit = fit.observe(tokens, took(tokens, start, a, b), start)
    for tokens, start in ((256, 0), (4096, 0), (1000, 9000)):
        assert fit.seconds(tokens, start) == pytest.approx(took(tokens, start, a, b), rel=1e-3)


@given(
    st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 8192), st.floats(1e-3, 10)), min_size=1)
)
def test_no_prediction_is_negative(passes: list[tuple[int, int, float]]) -> None:
    """However odd the measurements, both coefficients stay at zero or above."""
    fit = PrefillFit()
    for tokens, start, seconds in passes:
        fit = fit.observe(tokens, seconds, start)
    a, b = fit.coefficients
    assert a >= 0
    assert b >= 0
    assert a + b > 0


def test_passes_of_one_length_are_taken_as_linear() -> None:
    """They cannot tell the terms apart."""
    fit = PrefillFit().observe(500, 1.0).observe(500, 1.0)
    assert fit.seconds(1000) == pytest.approx(2.0)


def test_a_machine_that_became_slow_is_noticed() -> None:
    """Old passes are forgotten: after some hundred new ones the prediction is the new time."""
    fit = PrefillFit()
    for seconds in (1.0, 3.0):
        for _ in range(500):
            fit = fit.observe(1000, seconds).observe(100, seconds / 10)
    assert FORGETTING < 1
    assert fit.seconds(1000) == pytest.approx(3.0, rel=0.02)


def test_rates_follow_measurements_smoothly() -> None:
    """One slow transfer moves a rate by its share of the seconds, many take it all the way."""
    rates = RATES.observe_write(10**9, 2.0)
    assert 1e9 / rates.tier_write_bytes_per_s == pytest.approx(1 + SMOOTHING)
    assert rates.tier_read_bytes_per_s == RATES.tier_read_bytes_per_s
    for _ in range(60):
        rates = rates.observe_write(10**9, 2.0).observe_read(10**9, 4.0)
        rates = rates.observe_prefill(500, 1.0)
    assert rates.tier_write_bytes_per_s == pytest.approx(5e8, rel=1e-3)
    assert rates.tier_read_bytes_per_s == pytest.approx(2.5e8, rel=1e-3)
    assert rates.prefill_tokens_per_s == pytest.approx(500, rel=1e-3)
    assert rates.swap_seconds(10**9) == pytest.approx(6.0, rel=1e-3)
    assert rates.recompute_seconds(1000) == pytest.approx(2.0, rel=1e-3)


def test_what_says_nothing_is_not_observed() -> None:
    """Empty transfers and passes of a few tokens leave the rates alone."""
    assert RATES.observe_write(0, 1.0) == RATES
    assert RATES.observe_read(10, 0.0) == RATES
    assert RATES.observe_prefill(OBSERVED_TOKENS_MIN - 1, 1.0) == RATES
    assert RATES.observe_prefill(OBSERVED_TOKENS_MIN, 1.0) != RATES


def test_a_guess_predicts_until_the_first_pass() -> None:
    """Without a pass observed, recomputing is linear in the given rate."""
    assert RATES.recompute_seconds(2000, 5000) == pytest.approx(2.0)


@given(
    st.integers(1, 3000),
    st.integers(0, 9000),
    st.floats(1e6, 1e10),
    st.floats(10, 1e4),
    st.integers(0, 10**8),
    st.integers(0, 20),
    st.integers(1, 33),
)
def test_doing_both_costs_no_more_than_either(
    tokens: int, start: int, read: float, tokens_per_s: float, queued: int, others: int, block: int
) -> None:
    """The head is whole blocks or everything, and no other such head is predicted to cost less."""
    rates = Rates(0.0, read, tokens_per_s)
    for length in (128, 2048):
        rates = rates.observe_prefill(length, took(length, 0, 1 / tokens_per_s, 1e-8))
    gap = Gap(tokens, start, KV_BYTES, others, queued, block)
    head = gap.head(rates)
    assert head == tokens or (0 <= head < tokens and head % block == 0)
    least = min(gap.cost(other, rates) for other in (*range(0, tokens, block), tokens))
    assert gap.cost(head, rates) == pytest.approx(least)
    assert gap.seconds(0, rates) == rates.read_seconds(tokens * KV_BYTES + queued)
    assert gap.seconds(tokens, rates) == rates.recompute_seconds(tokens, start)


def test_alone_both_ways_end_together() -> None:
    """Where either takes as long as the other, both at once take half."""
    rates = Rates(1e8, 1000.0 * KV_BYTES, 1000.0)
    gap = Gap(1000, 0, KV_BYTES, block_tokens=10)
    assert gap.head(rates) == 500
    assert gap.seconds(500, rates) == pytest.approx(0.5)
    busy = Gap(1000, 0, KV_BYTES, queued_bytes=500 * KV_BYTES, block_tokens=10)
    assert busy.head(rates) == 750


def test_the_more_others_run_the_more_is_read() -> None:
    """Three others lose three seconds with each that is computed: a tier may be thrice as slow."""
    for others, factor in ((3, 2.9), (3, 3.1), (8, 7.9)):
        rates = Rates(1e8, 1000.0 * KV_BYTES / factor, 1000.0)
        head = Gap(1000, 0, KV_BYTES, others, block_tokens=10).head(rates)
        assert (head == 0) == (factor < others)


def test_nothing_is_written_where_that_saves_little() -> None:
    """Fast tiers and slow ones help; those that save less than `WORTH` do not, nor unknown ones."""
    assert chosen(1000, 0, RATES) is Action.SWAP
    for share, action in ((1.5 * WORTH, Action.SWAP), (0.5 * WORTH, Action.RECOMPUTE)):
        # Of n tokens, so many are read while the others are computed.
        rates = Rates(1e8, share / (1 - share) * 1000 * KV_BYTES, 1000.0)
        assert chosen(10_000, 0, rates) is action
    assert chosen(0, 1000, RATES) is Action.RECOMPUTE
    assert Gap(100, 0, KV_BYTES).head(Rates(0.0, 0.0, 1000.0)) == 100


def test_the_same_tokens_cost_more_behind_a_long_beginning() -> None:
    """cached_tokens makes recomputing dearer, because attention looks back at them."""
    rates = RATES
    for tokens in (256, 4096):
        rates = rates.observe_prefill(tokens, took(tokens, 0, 1e-3, 1e-7))
    assert rates.recompute_seconds(512, 8192) > 1.5 * rates.recompute_seconds(512)


def test_a_tier_is_as_fast_as_its_first_transfer_was() -> None:
    """No guess outlives a measurement: the first preemption on a slow disk is decided rightly."""
    unknown = Rates(0.0, 0.0, 500.0)
    assert chosen(1, 0, unknown) is Action.RECOMPUTE
    slow = unknown.observe_write(10_000_000, 1.0).observe_read(10_000_000, 20.0)
    assert slow.swap_seconds(10_000_000) == pytest.approx(21.0)
    assert chosen(500, 0, slow) is Action.RECOMPUTE
