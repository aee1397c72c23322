"""The planner of the first phase: every token once, even groups, an honest cost."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from starai.core.errors import ConfigurationRefused
from starai.engines.star.planning import (
    GAIN_MIN,
    ModelShape,
    Work,
    dense_work,
    gain,
    plan_blocks,
    plan_if_worth,
)

QWEN = ModelShape(28, 16, 128, 440_000_000, 114_688)
contexts = st.integers(1, 5000)
hosts = st.integers(1, 12)
pages = st.sampled_from([1, 4, 16])


@given(contexts, hosts, pages, st.integers(1, 12), st.none() | st.integers(0, 3000))
def test_every_token_is_computed_once_by_one_host(context, hosts, page, blocks, anchor):
    """Blocks and shards are contiguous, in order, whole pages long, and cover the context."""
    plan = plan_blocks(context, hosts=hosts, page=page, blocks=blocks, anchor=anchor)
    assert plan.block % page == plan.anchor % page == 0
    assert 0 <= plan.anchor <= plan.block
    assert [p for n in range(plan.num_blocks) for p in plan.positions(n)] == list(range(context))
    shards = [plan.shard(host) for host in range(len(plan.groups))]
    assert [p for shard in shards for p in shard] == list(range(context))
    assert len(plan.groups) == min(hosts, plan.num_blocks)
    sizes = [len(group) for group in plan.groups]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@given(contexts, hosts, pages, st.integers(1, 8))
def test_work_counts_what_is_run(context, hosts, page, blocks):
    """Tokens and pairs of a host are those of its blocks and one anchor, counted one by one."""
    plan = plan_blocks(context, hosts=hosts, page=page, blocks=blocks)
    for host, group in enumerate(plan.groups):
        anchor = plan.anchor if group.start else 0
        pairs = sum(range(1, anchor + 1))
        for number in group:
            before = plan.anchor if number else 0
            pairs += sum(before + n + 1 for n in range(len(plan.positions(number))))
        assert plan.work(host) == Work(anchor + len(plan.shard(host)), pairs)


def test_the_rule_is_the_papers():
    """Without further wishes a block and the anchor are a quarter of the context."""
    plan = plan_blocks(16384, hosts=4)
    assert (plan.block, plan.anchor, plan.num_blocks) == (4096, 4096, 4)
    assert plan.groups == (range(1), range(1, 2), range(2, 3), range(3, 4))


def test_one_block_is_dense():
    """A plan of one block has no anchor and the work of dense prefill."""
    plan = plan_blocks(1000, blocks=1)
    assert plan.anchor == 0
    assert plan.work(0) == dense_work(1000)
    assert gain(plan, QWEN) == 1.0


def test_many_blocks_on_one_host_pay_for_one_anchor():
    """The anchor is part of the first block there: no token goes through the model twice."""
    assert plan_blocks(4096, hosts=1, blocks=8).work(0).tokens == 4096


def test_several_hosts_gain_what_the_formula_says():
    """With block = L / H the linear part shrinks by H/2 and the attention by about H^2 / 4."""
    for hosts in (2, 4, 8):
        plan = plan_blocks(1 << 16, hosts=hosts, blocks=hosts)
        slowest = plan.work(hosts - 1)
        dense = dense_work(1 << 16)
        assert dense.tokens / slowest.tokens == pytest.approx(hosts / 2)
        assert dense.pairs / slowest.pairs == pytest.approx(hosts**2 / 4, rel=1e-3)


def test_short_contexts_are_dense():
    """Below the threshold, and where the gain is small, the planner says dense."""
    assert plan_if_worth(2047, QWEN, hosts=4) is None
    assert plan_if_worth(2048, QWEN, hosts=4) is not None
    assert plan_if_worth(2048, QWEN, hosts=1) is None
    long = plan_if_worth(65536, QWEN, hosts=1)
    assert long is not None
    assert gain(long, QWEN) >= GAIN_MIN


@pytest.mark.parametrize(
    "wrong", [{"hosts": 0}, {"page": 0}, {"blocks": 0}, {"block": 0}, {"anchor": -1}]
)
def test_impossible_numbers_are_refused(wrong):
    """Zero hosts, pages or blocks and negative anchors are refused."""
    with pytest.raises(ConfigurationRefused):
        plan_blocks(100, **wrong)
    with pytest.raises(ConfigurationRefused):
        plan_blocks(0)
