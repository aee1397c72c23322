"""A ranking is a pure function of what is known of the candidates."""

from __future__ import annotations

from hypothesis import given, strategies as st

from starai.matching import Candidate, Demand, FinishTime

DEMAND = Demand(prompt_tokens=100, max_tokens=100)
CANDIDATES = st.builds(
    Candidate,
    party=st.text("ABCDEF", min_size=1, max_size=4),
    slots=st.integers(0, 4),
    running=st.integers(0, 4),
    context_length=st.integers(0, 400),
    prefill_tps=st.floats(0, 1e4),
    decode_tps=st.floats(0, 1e3),
    rtt_ms=st.floats(0, 500),
    failures=st.floats(0, 5),
)


def names(*candidates: Candidate) -> list[str]:
    return [one.party for one in FinishTime().rank(DEMAND, candidates)]


def test_the_faster_node_comes_first() -> None:
    """Measured speed decides between idle nodes."""
    slow = Candidate("slow", 4, 0, 4096, prefill_tps=100, decode_tps=10)
    fast = Candidate("fast", 4, 0, 4096, prefill_tps=100, decode_tps=90)
    assert names(slow, fast) == ["fast", "slow"]


def test_of_two_equal_nodes_the_idle_one_comes_first() -> None:
    """Load decides between equal nodes."""
    assert names(Candidate("a", 4, 3, 4096), Candidate("b", 4, 0, 4096)) == ["b", "a"]


def test_of_two_equal_nodes_the_nearer_one_comes_first() -> None:
    """Distance decides when all else is equal."""
    far, near = Candidate("a", 4, 0, 4096, rtt_ms=80), Candidate("b", 4, 0, 4096, rtt_ms=5)
    assert names(far, near) == ["b", "a"]


def test_failures_lower_a_nodes_priority_without_shutting_it_out() -> None:
    """A node that failed lately comes after one that did not, and is still there."""
    assert names(Candidate("a", 4, 0, 4096, failures=1.0), Candidate("b", 4, 0, 4096)) == ["b", "a"]


@given(st.lists(CANDIDATES, max_size=8))
def test_only_those_who_can_take_the_task_are_ranked_whatever_the_order(
    candidates: list[Candidate],
) -> None:
    """Full nodes and short contexts are left out; input order does not matter among names."""
    ranked = FinishTime().rank(DEMAND, candidates)
    assert all(one.running < one.slots and one.context_length > 100 for one in ranked)
    able = sum(one.running < one.slots and one.context_length > 100 for one in candidates)
    assert len(ranked) == able
    if len({one.party for one in candidates}) == len(candidates):
        assert FinishTime().rank(DEMAND, reversed(candidates)) == ranked
