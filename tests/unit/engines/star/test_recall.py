"""The recall task asks what its documents answer."""

from __future__ import annotations

import numpy as np
import pytest
from training.recall import task


@pytest.mark.parametrize("coded", [False, True])
def test_answers_follow_from_the_document(coded):
    """Each key stands once; its answer is what stands behind it, by the legend if coded."""
    rng = np.random.default_rng(1)
    for length, pairs in ((32, 4), (512, 64)):
        found = task.document(rng, length, pairs, coded=coded)
        assert len(found.ids) == length
        legend = (found.ids[1] - task.LEGEND) // task.LEGEND_TOKENS
        for key, value in zip(found.keys, found.values, strict=True):
            (place,) = np.flatnonzero(found.ids == key)
            written = found.ids[place + 1] - task.VALUE
            expected = task.TRANSLATION[legend][written] if coded else written
            assert value == task.VALUE + expected
        assert found.hidden.all()


def test_rows_end_in_questions_with_their_answers():
    """Every third token behind the document is an answer, and its target stands at the key."""
    rng = np.random.default_rng(2)
    ids, targets = task.row(rng, 64, 8, 16, coded=True)
    assert len(ids) == len(targets) == 64 + 48
    assert (ids[64::3] == task.ASK).all()
    assert (targets[65::3] == ids[66::3]).all()
    assert targets[-1] == task.IGNORED


def test_translated_pairs_are_spelled_out():
    """About half of a coded training document's answers stand behind their pairs."""
    rng = np.random.default_rng(3)
    found = task.document(rng, 512, 64, coded=True, translated=0.5)
    assert 16 < (~found.hidden).sum() < 48
    for key, value, hidden in zip(found.keys, found.values, found.hidden, strict=True):
        (place,) = np.flatnonzero(found.ids == key)
        if not hidden:
            assert found.ids[place + 2] == value
