"""Context and query are cut apart in token ids."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from starai.core.errors import InvalidRequest
from starai.engines.star.splitting import QUERY_TOKENS_MAX, split_prompt


@given(st.integers(1, 3000))
def test_a_query_always_remains(num_tokens):
    """The automatic split leaves 1 to QUERY_TOKENS_MAX tokens of query."""
    context = split_prompt(num_tokens)
    assert 1 <= num_tokens - context <= QUERY_TOKENS_MAX


def test_the_end_is_the_query():
    """Of a long prompt the last tokens are the query, of a short one all."""
    assert split_prompt(5000) == 5000 - QUERY_TOKENS_MAX
    assert split_prompt(100) == 0


def test_an_explicit_split_overrides():
    """The caller's split is taken as it is, if a query remains."""
    assert split_prompt(5000, explicit=100) == 100
    assert split_prompt(5000, explicit=0) == 0
    for wrong in (-1, 5000, 6000):
        with pytest.raises(InvalidRequest, match="query needs at least one"):
            split_prompt(5000, explicit=wrong)
    with pytest.raises(InvalidRequest):
        split_prompt(0)
