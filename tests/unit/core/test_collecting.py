"""Garbage in circles is looked for rarely, and still found."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from starai.core.collecting import YOUNG_MAX, collect_rarely, lasting


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


def test_what_is_made_to_last_is_not_searched_and_the_rest_is_again() -> None:
    """A circle of the inside stays, one that is made afterwards goes."""
    with lasting():
        inside = weakref.ref(Circle())
        assert not gc.isenabled()
    assert gc.isenabled()
    outside = weakref.ref(Circle())
    gc.collect()
    assert inside() is not None
    assert outside() is None
