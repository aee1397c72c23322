"""How many prompt tokens a step takes, on machines of any speed."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from starai.engines.scheduling.pacing import PAUSE_MOST_S, PAUSE_S, Pace


def seconds_of(rows: int, row_s: float, fixed_s: float) -> float:
    """What a step takes on a machine."""
    return fixed_s + rows * row_s


def paced(row_s: float, fixed_s: float, answering: int, steps: int = 20) -> tuple[Pace, int]:
    """A pace that has read a long prompt beside answers, and what its last step had for it."""
    pace, tokens = Pace(), 0
    for _ in range(steps):
        tokens = pace.prompt_tokens(answering, 1)
        pace.learn(tokens + answering, seconds_of(tokens + answering, row_s, fixed_s))
    return pace, tokens


@given(st.floats(3e-4, 6e-3), st.floats(0.0, 0.05), st.integers(1, 16))
def test_steps_take_the_time_that_an_answer_may_pause(
    row_s: float, fixed_s: float, answering: int
) -> None:
    """On any machine that reads a few tiles in a pause, steps fill it but for a tile."""
    pace, tokens = paced(row_s, fixed_s, answering)
    took = seconds_of(tokens + answering, row_s, fixed_s)
    assert took <= PAUSE_S * 1.01
    assert took >= min(PAUSE_S - 33 * row_s, seconds_of(4096, row_s, fixed_s)) * 0.95
    assert (tokens + answering) % 32 == 0 or tokens + answering < 128
    assert pace.prompt_tokens(0, 1) >= tokens


def test_the_slowest_machine_goes_on() -> None:
    """However long rows take, a step has some of a prompt."""
    assert paced(1.0, 5.0, 40)[1] == 32


def test_a_step_is_not_foreseen_from_much_shorter_ones() -> None:
    """Seventeen rows at a time say little of a thousand: steps grow with what was tried."""
    pace = Pace()
    for _ in range(50):
        pace.learn(17, 1e-3)
    assert pace.prompt_tokens(1, 1) < 100
    sizes = []
    for _ in range(12):
        sizes.append(pace.prompt_tokens(1, 1))
        pace.learn(sizes[-1] + 1, 1e-4 * sizes[-1])
    assert sizes == sorted(sizes)
    assert sizes[-1] > 3000


@pytest.mark.parametrize(("before", "after"), [(1e-3, 4e-3), (4e-3, 1e-3)])
def test_a_machine_that_changes_its_speed_is_noticed(before: float, after: float) -> None:
    """Others begin or end to work on it: a few steps later steps take as long as they should."""
    pace = paced(before, 0.01, 4)[0]
    for _ in range(14):
        tokens = pace.prompt_tokens(4, 1)
        pace.learn(tokens + 4, seconds_of(tokens + 4, after, 0.01))
    assert seconds_of(pace.prompt_tokens(4, 1) + 4, after, 0.01) == pytest.approx(PAUSE_S, rel=0.3)


def test_answers_give_way_to_a_long_line_and_not_without_bounds() -> None:
    """A step grows with what waits: from one pause to the longest, which it also has alone."""
    pace = paced(1e-3, 0.0, 4, steps=60)[0]
    lengths = [pace.prompt_tokens(4, waiting) for waiting in (0, 4_000, 7_000, 12_000, 10**6)]
    assert lengths[0] == lengths[1]
    assert lengths == sorted(lengths)
    assert lengths[-2:] == [PAUSE_MOST_S * 1000 // 32 * 32 - 4] * 2
    assert lengths[2] == pytest.approx(700, abs=36)
    assert pace.prompt_tokens(0, 0) == lengths[-1] + 4
