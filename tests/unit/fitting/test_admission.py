"""Challenges and verdicts: no answer can be known before, no claim stands above what was seen."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from starai.fitting.admission import (
    AGREE_TOKENS,
    SLACK,
    Rate,
    Timing,
    agree,
    believed,
    compare,
    measured,
    prompt_of,
)

SEEDS = st.binary(min_size=32, max_size=32)
RATES = st.floats(0.0, 1e6)
ANSWERS = st.lists(st.integers(0, 3), max_size=6)


@given(SEEDS, SEEDS, st.integers(1, 600))
def test_a_prompt_is_its_seed_s(one: bytes, other: bytes, length: int) -> None:
    """The same seed gives the same prompt, another seed another; ids exist in any vocabulary."""
    prompt = prompt_of(one, length)
    assert len(prompt) == length
    assert prompt == prompt_of(one, length)
    assert all(32 <= token < 224 for token in prompt)
    if one != other and length >= 64:
        assert prompt != prompt_of(other, length)


def test_speed_is_what_the_asker_saw() -> None:
    """The journey counts for neither rate, nor tokens that came with the first."""
    timing = Timing(first_s=0.7, last_s=1.7, num_first=2, num_tokens=22)
    seen = measured(timing, 100, journey_s=0.2)
    assert seen.prefill.tps == pytest.approx(200)
    assert seen.decode.tps == pytest.approx(20)
    at_once = measured(Timing(0.5, 0.5, 10, 10), 100)
    assert at_once.decode.tps == pytest.approx(20)


def test_the_better_of_two_measurements_counts() -> None:
    """Rate by rate: a neighbour's work may have slowed one of them down."""
    one, two = measured(Timing(1.0, 2.0, 1, 11), 100), measured(Timing(0.5, 4.5, 1, 11), 100)
    best = one.better(two)
    assert best == two.better(one)
    assert (best.prefill, best.decode) == (two.prefill, one.decode)


def test_dawdling_on_the_way_gains_little() -> None:
    """Whoever answers the small question late doubles its apparent speed at most."""
    timing = Timing(first_s=1.0, last_s=2.0, num_first=1, num_tokens=11)
    assert measured(timing, 100, journey_s=0.99).prefill.tps == pytest.approx(200)


@given(RATES, st.floats(0.1, 1e6), st.floats(1.0, 2.0))
def test_no_claim_stands_above_what_was_seen(claimed: float, tps: float, doubt: float) -> None:
    """At most the slack is gained by lying; modest claims stand; silence gets the measurement."""
    seen = Rate(tps, tps * doubt)
    told = believed(claimed, seen)
    assert told <= SLACK * seen.most_tps
    if 0 < claimed <= tps:
        assert told == claimed
    if claimed == 0 or claimed > SLACK * seen.most_tps:
        assert told == tps


def test_what_is_too_quick_to_time_proves_nothing_against_a_node() -> None:
    """An answer within the wire's own jitter allows any claim."""
    quick = measured(Timing(0.002, 0.004, 1, 32), 256, journey_s=0.001)
    assert believed(1e6, quick.prefill) == 1e6
    slow = measured(Timing(0.5, 3.6, 1, 32), 256)
    assert believed(1e6, slow.decode) == pytest.approx(10)


def test_answers_agree_that_begin_alike() -> None:
    """Kernels that round differently part later; another answer differs at once."""
    assert agree([1, 2, 3, 4, 5], [1, 2, 3, 4, 9])
    assert not agree([1, 2, 3, 9], [1, 2, 3, 4])
    assert not agree([], [])
    assert not agree([1], [])
    assert AGREE_TOKENS == 4


@given(st.dictionaries(st.sampled_from("abcde"), ANSWERS, max_size=5))
def test_a_minority_never_wins(answers: dict[str, list[int]]) -> None:
    """Whoever is right agrees with most; alone, nobody is right or wrong."""
    found = compare(answers)
    assert found.keys() == answers.keys()
    right = [party for party, is_right in found.items() if is_right]
    for party in right:
        alike = sum(agree(answers[party], other) for other in answers.values())
        assert alike >= 2
        assert 2 * alike > len(answers)
    if any(is_right is False for is_right in found.values()):
        assert len(right) >= 2


def test_one_liar_among_three() -> None:
    """Two of three that agree are right; two that differ prove nothing."""
    truth, lie = [5, 6, 7, 8], [1, 1, 1, 1]
    assert compare({"a": truth, "b": truth, "c": lie}) == {"a": True, "b": True, "c": False}
    assert compare({"a": truth, "c": lie}) == {"a": None, "c": None}
    assert compare({"a": truth}) == {"a": None}
    assert compare({"a": truth, "b": truth}) == {"a": True, "b": True}
