"""What makes a finish time longer, and by how much."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from starai.matching import Candidate, Demand
from starai.matching.base import TYPICAL_ANSWER_TOKENS
from starai.matching.finish_time import (
    ASSUMED_DECODE_TPS,
    ASSUMED_PREFILL_TPS,
    BATCH_SLOWDOWN,
    LONGEST_MS,
    SLOW_START_S,
    SLOW_START_SHARE,
    finish_ms,
    reading_s,
    share_at,
)

DEMAND = Demand(prompt_tokens=1000, max_tokens=100)
IDLE = Candidate("a", 4, 0, 4096, prefill_tps=500.0, decode_tps=50.0)


def ms(demand: Demand = DEMAND, cached: float = 0.0, **changes: object) -> float:
    fields = {name: getattr(IDLE, name) for name in IDLE.__struct_fields__}
    return finish_ms(demand, Candidate(**{**fields, **changes}), 10.0, cached)


def test_the_time_is_what_reading_and_writing_take() -> None:
    """1,000 tokens at 500 a second and 100 at 50 a second are four seconds."""
    assert ms() == pytest.approx(2000 + 2000)
    assert ms(rtt_ms=80.0, cold_ms=500.0) == pytest.approx(4000 + 80 + 500)


def test_a_cached_beginning_is_not_read_again_but_one_token_always_is() -> None:
    """A hit shortens reading only, and the last token of a prompt is computed in any case."""
    assert ms(cached=500.0) == pytest.approx(1000 + 2000)
    assert ms(cached=5000.0) == pytest.approx(2 + 2000)
    assert reading_s(DEMAND, IDLE, 500.0) == pytest.approx(1.0)


def test_what_it_has_to_read_first_is_waited_for() -> None:
    """A node that will have read its prompts in three seconds begins then; the past is past."""
    assert ms(free_at_s=13.0) == pytest.approx(4000 + 3000)
    assert ms(free_at_s=9.0) == pytest.approx(4000)


def test_a_full_batch_slows_everyone_in_it() -> None:
    """The slowdown grows with the share of the slots in use."""
    assert ms(running=2) == pytest.approx(4000 * (1 + BATCH_SLOWDOWN / 2))
    assert ms(running=3) > ms(running=2)
    assert ms(running=1, unseen=1) == ms(running=2)


def test_failures_multiply() -> None:
    """Two failures make a node look three times as slow, the way to it included."""
    assert ms(failures=2.0, rtt_ms=1000.0) == pytest.approx(3 * 5000)


def test_an_answer_is_expected_to_be_usual_whatever_it_may_be() -> None:
    """A bound of 100,000 tokens does not make every node look equally hopeless."""
    assert Demand(1, 100_000).answer_tokens == TYPICAL_ANSWER_TOKENS
    assert Demand(1, 5).answer_tokens == 5


def test_a_node_that_was_never_measured_is_taken_for_a_modest_one() -> None:
    """Assumed speeds stand in for the missing ones."""
    known = ms(prefill_tps=ASSUMED_PREFILL_TPS, decode_tps=ASSUMED_DECODE_TPS)
    assert ms(prefill_tps=0.0, decode_tps=0.0) == known


def test_a_newcomer_fills_up_slowly() -> None:
    """Idle it is as good as any; a second task weighs more on it until it has settled in."""
    assert ms(share=SLOW_START_SHARE) == ms()
    assert ms(share=SLOW_START_SHARE, running=1) > ms(running=1)
    assert share_at(0.0) == SLOW_START_SHARE
    assert share_at(SLOW_START_S / 2) == 0.5
    assert share_at(10 * SLOW_START_S) == 1.0


@given(
    *(st.floats(0.01, 1e6), st.floats(0.01, 1e5), st.integers(0, 64)),
    *(st.floats(0, 60), st.floats(0, 10)),
)
def test_more_of_anything_bad_never_looks_better(
    prefill: float, decode: float, running: int, wait_s: float, failures: float
) -> None:
    """The estimate grows with load, backlog, distance and failures, and is always finite."""
    base = {"slots": 64, "running": running, "prefill_tps": prefill, "decode_tps": decode}
    before = ms(**base)
    assert 0 < before < float("inf")
    assert ms(**{**base, "running": running + 1}) > before
    assert ms(**base, rtt_ms=1.0) > before
    assert ms(**base, free_at_s=10.0 + wait_s) >= before
    assert ms(**base, failures=failures) >= before


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 1e300), st.floats(0, 1e300))
def test_no_claim_makes_an_estimate_that_is_no_number(
    prefill: float, decode: float, rtt_ms: float, failures: float
) -> None:
    """Whatever a beat claims, 5e-324 tokens a second too, the estimate has an end."""
    claimed = {"prefill_tps": prefill, "decode_tps": decode, "rtt_ms": rtt_ms}
    assert 0 < ms(**claimed, failures=failures, running=3) <= LONGEST_MS
