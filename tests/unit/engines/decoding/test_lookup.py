"""Drafts are what followed last time, and are only as long as they pay."""

from __future__ import annotations

import time

from hypothesis import given, strategies as st

from starai.engines.decoding.lookup import DRAFT_MAX, PromptLookup

TOKENS = st.lists(st.integers(0, 3), max_size=40)


def searched(ids, room):
    """The definition: the latest earlier occurrence of the longest context of 4, 3 or 2 tokens."""
    for length in (4, 3, 2):
        for end in range(len(ids) - 1, length - 1, -1):
            if ids[end - length : end] == ids[-length:]:
                return ids[end : end + room]
    return []


def eager():
    """A lookup that makes the longest drafts."""
    lookup = PromptLookup(draft_cost=0.0)
    lookup.learn(DRAFT_MAX * 20, DRAFT_MAX * 20)
    return lookup


@given(TOKENS, st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=12))
def test_drafts_follow_the_latest_longest_match(prompt, pieces):
    """However a text grows, the incremental index finds what a search through all of it finds."""
    lookup, ids = eager(), list(prompt)
    for piece in ([], *pieces):
        ids += piece
        assert lookup.propose(ids, DRAFT_MAX) == searched(ids, DRAFT_MAX)


@given(TOKENS, st.integers(0, 5))
def test_drafts_keep_to_their_room(prompt, room):
    """Never more guesses than are of use; none where there is no room."""
    assert len(eager().propose(prompt, room)) <= room


def test_drafts_that_never_come_true_stop_and_are_tried_again():
    """After some failures there are none, but for one guess now and then."""
    lookup, ids, rows = PromptLookup(), [1, 2] * 20, 0
    for _ in range(1000):
        drafts = lookup.propose(ids, 8)
        lookup.learn(len(drafts), 0)
        rows += len(drafts)
        ids += [1, 2]
    assert 5 < rows < 60


def test_drafts_that_come_true_grow():
    """A text that repeats itself is drafted to the end."""
    lookup, ids = PromptLookup(), [5, 6, 7, 8] * 5
    lengths = []
    for _ in range(30):
        drafts = lookup.propose(ids, 8)
        lookup.learn(len(drafts), len(drafts))
        lengths.append(len(drafts))
    assert lengths[0] < lengths[-1]
    assert lengths[-1] >= 4


def test_a_dear_row_makes_short_drafts():
    """What a guess costs decides how many there are."""
    ids = list(range(20)) * 2
    lengths = [len(PromptLookup(draft_cost=cost).propose(ids, 8)) for cost in (0.01, 0.1, 0.3, 0.6)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] >= 4
    assert lengths[-1] == 0


def test_a_proposal_costs_the_same_however_long_the_text_is():
    """A token costs microseconds, at the first thousand tokens as at the last of ten thousand."""
    lookup, ids, spent = PromptLookup(), [0, 1], []
    for turn in range(10):
        began = time.process_time()
        for number in range(1000):
            ids.append((number * 7919 + turn) % 997)
            lookup.propose(ids, 4)
        spent.append(time.process_time() - began)
    assert spent[-1] < 5 * min(spent) + 0.01
    assert spent[-1] < 0.1
