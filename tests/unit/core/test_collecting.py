"""Garbage in circles is looked for rarely, and still found."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from starai.core.collecting import YOUNG_MAX, collect_rarely


class Circle:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave the process as it was found."""
    threshold = gc.get_threshold()
    gc.collect()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


def test_circles_are_found_after_as_many_objects_as_it_says() -> None:
    """A circle outlives a thousand new objects, and is gone after `YOUNG_MAX`."""
    collect_rarely()
    circle = weakref.ref(Circle())
    held: list[list[int]] = [[] for _ in range(1_000)]
    assert circle() is not None
    held += [[] for _ in range(YOUNG_MAX)]
    assert circle() is None


def test_what_was_there_before_is_never_looked_at() -> None:
    """What was imported is out of every later search."""
    collect_rarely()
    assert gc.get_freeze_count() > 10_000
