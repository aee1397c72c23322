"""All events in any order, in memory: the books are the model's after every step."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from tests.unit.ledger.books_machine import BooksMachine

#: What `make test` tries; STARAI_BOOKS_EXAMPLES asks for more.
EXAMPLES = int(os.environ.get("STARAI_BOOKS_EXAMPLES", "80"))


def test_any_order_of_events() -> None:
    """Books and model agree after every step, whatever happens."""
    run_state_machine_as_test(
        BooksMachine, settings=settings(max_examples=EXAMPLES, stateful_step_count=30)
    )


@pytest.mark.slow
def test_ten_thousand_orders_of_events() -> None:
    """The same, ten thousand times."""
    run_state_machine_as_test(
        BooksMachine, settings=settings(max_examples=10_000, stateful_step_count=30)
    )
