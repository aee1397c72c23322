"""The auditor finds every way in which books can be wrong, and nothing in books that are right."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from starai.simulation.oracle import Oracle


def sound() -> Oracle:
    """Two tasks: one carried over two nodes, one refused."""
    oracle = Oracle(2)
    for task in (0, 1):
        oracle.came(task)
    oracle.offered(0, 0, 7)
    oracle.booked(0, 0, 7, 0, 5)
    oracle.confirmed(0, 0, 7, 0, 5)
    oracle.ended(0, 0)
    oracle.offered(0, 1, 8)
    oracle.booked(0, 1, 8, 5, 9)
    oracle.unconfirmed(0, 1)
    oracle.ended(0, 1)
    oracle.answered(0, 9)
    oracle.refused(1)
    return oracle


def test_sound_books_are_found_sound() -> None:
    """An answer over two nodes, one of which is gone, and a refusal: nothing is wrong."""
    verdict = sound().verdict()
    assert verdict.is_sound
    assert (verdict.answered, verdict.refused, verdict.lost) == (1, 1, 0)
    assert (verdict.tokens_paid, verdict.tokens_confirmed) == (9, 5)


def paid_twice(oracle: Oracle) -> None:
    oracle.offered(0, 2, 8)
    oracle.booked(0, 2, 8, 5, 9)
    oracle.confirmed(0, 2, 8, 5, 9)
    oracle.ended(0, 2)


def booked_twice(oracle: Oracle) -> None:
    oracle.offered(1, 0, 3)
    oracle.booked(1, 0, 3, 0, 2)
    oracle.booked(1, 0, 3, 2, 4)
    oracle.confirmed(1, 0, 3, 2, 4)
    oracle.ended(1, 0)


def told_otherwise(oracle: Oracle) -> None:
    oracle.offered(1, 0, 3)
    oracle.booked(1, 0, 3, 0, 2)
    oracle.confirmed(1, 0, 3, 0, 3)
    oracle.ended(1, 0)


def never_told(oracle: Oracle) -> None:
    oracle.offered(1, 0, 3)
    oracle.booked(1, 0, 3, 0, 2)
    oracle.ended(1, 0)


def another_node(oracle: Oracle) -> None:
    oracle.offered(1, 0, 3)
    oracle.booked(1, 0, 4, 0, 2)
    oracle.confirmed(1, 0, 4, 0, 2)
    oracle.ended(1, 0)


def never_ended(oracle: Oracle) -> None:
    oracle.offered(1, 0, 3)


def answered_after_the_end(oracle: Oracle) -> None:
    oracle.answered(0, 9)


@pytest.mark.parametrize(
    "wrong",
    [
        *(paid_twice, booked_twice, told_otherwise, never_told, another_node, never_ended),
        answered_after_the_end,
    ],
)
def test_whatever_does_not_add_up_is_found(wrong: Callable[[Oracle], None]) -> None:
    """One wrong entry is one fault or more, in words."""
    oracle = sound()
    wrong(oracle)
    verdict = oracle.verdict()
    assert not verdict.is_sound
    assert verdict.num_faults >= 1
    assert verdict.faults


def test_an_answer_that_is_not_paid_to_its_end_is_found() -> None:
    """Ten tokens were answered and nine are paid."""
    oracle = Oracle(1)
    oracle.came(0)
    oracle.offered(0, 0, 1)
    oracle.booked(0, 0, 1, 0, 9)
    oracle.confirmed(0, 0, 1, 0, 9)
    oracle.ended(0, 0)
    oracle.answered(0, 10)
    assert oracle.verdict().num_faults == 1


def test_a_task_without_an_end_is_lost() -> None:
    """It came, and nobody was told anything."""
    oracle = Oracle(2)
    oracle.came(1)
    verdict = oracle.verdict()
    assert verdict.lost == 1
    assert not verdict.is_sound
