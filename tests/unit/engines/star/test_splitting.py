"""Context and query are cut apart in token ids."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from starai.core.errors import InvalidRequest
from starai.engines.star.splitting import QUERY_TOKENS_MAX, split_prompt, turn_begins

ids = st.lists(st.integers(0, 5), max_size=30)


@given(ids, ids, ids)
def test_the_last_turn_begins_where_the_renderings_part(document, question, ending):
    """The split is the longest common beginning of the chat with and without its last turn."""
    whole, without = document + question, document + ending
    at = turn_begins(whole, without)
    assert at >= len(document)
    assert whole[:at] == without[:at]
    assert at in (len(whole), len(without)) or whole[at] != without[at]


@given(st.integers(1, 3000), st.none() | st.integers(0, 3000))
def test_a_query_always_remains(num_tokens, turn):
    """The automatic split leaves 1 to QUERY_TOKENS_MAX tokens of query."""
    context = split_prompt(num_tokens, turn=turn)
    assert 1 <= num_tokens - context <= QUERY_TOKENS_MAX


def test_the_last_turn_is_the_query():
    """A short last turn is the query whole; of a long one only the end is."""
    assert split_prompt(5000, turn=4900) == 4900
    assert split_prompt(5000, turn=10) == 5000 - QUERY_TOKENS_MAX
    assert split_prompt(5000) == 5000 - QUERY_TOKENS_MAX
    assert split_prompt(100, turn=40) == 40


def test_an_explicit_split_overrides():
    """The caller's split is taken as it is, if a query remains."""
    assert split_prompt(5000, turn=4900, explicit=100) == 100
    assert split_prompt(5000, explicit=0) == 0
    for wrong in (-1, 5000, 6000):
        with pytest.raises(InvalidRequest, match="query needs at least one"):
            split_prompt(5000, explicit=wrong)
    with pytest.raises(InvalidRequest):
        split_prompt(0)
