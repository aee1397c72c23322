"""Where Star Attention is exact, it is: one block, and a densely computed context in shards."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from functools import partial  # noqa: E402

from starai.core.errors import ConfigurationRefused  # noqa: E402
from starai.engines.paging.memory import PagedMemory  # noqa: E402
from starai.engines.star.blockwise import prefill  # noqa: E402
from starai.engines.star.hosts import ThreadHosts  # noqa: E402
from starai.engines.star.phase_two import PhaseTwo  # noqa: E402
from starai.engines.star.planning import plan_blocks  # noqa: E402
from starai.engines.star.session import StarSession  # noqa: E402
from starai.engines.text.attention import Pass, Span  # noqa: E402
from starai.engines.text.forward import forward  # noqa: E402
from starai.engines.text.merging import Partial, merge  # noqa: E402
from starai.engines.text.pool import KeyValuePool  # noqa: E402
from starai.protocol.generation import Sampling  # noqa: E402

FAMILIES = [
    "llama", "qwen3", "qwen3_moe", "gemma2", "gemma3", "mistral", "phi3", "granite", "olmo2",
    "gpt_oss",
]  # fmt: skip
CONTEXT = [int(n) for n in np.random.default_rng(3).integers(3, 200, 61)]
QUERY = [17, 150, 33, 90, 4]
PAGE = 4
SAMPLING = Sampling(b"k" * 32, temperature=0.0)


def dense(model, ids, keep, page=PAGE):
    """Logits of ``ids`` by one ordinary pass."""
    pages = -(-len(ids) // page)
    with torch.inference_mode():
        run = Pass(KeyValuePool(pages, page), [Span(range(pages), 0, len(ids))])
        return forward(model, run, list(ids), keep)


def off(found, expected):
    """The largest difference, relative to the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


def star_in_process(model, plan):
    """Logits of the query's last token behind a context computed block by block."""
    memory = PagedMemory(64, block_tokens=PAGE)
    pool = KeyValuePool(64, PAGE)
    with torch.inference_mode():
        prefill(partial(forward, model), pool, memory, b"s", CONTEXT, plan)
        memory.reach(b"s", len(CONTEXT) + len(QUERY))
        span = Span(memory.table(b"s"), len(CONTEXT), len(QUERY))
        return forward(model, Pass(pool, [span]), QUERY, [len(QUERY) - 1])


def _eager(model, ids, sees):
    """The last logits by transformers' own attention, where row i sees column j if ``sees[i, j]``.

    A model with kinds of layers takes a mask for each kind.
    """
    mask = torch.zeros(1, 1, *sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    kinds = dict.fromkeys(("full_attention", "sliding_attention"), mask)
    by_kind = model.config.model_type in ("qwen3", "gemma2", "gemma3_text", "gpt_oss")
    name = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        given = kinds if by_kind else mask
        inputs = torch.tensor([ids])
        return model(inputs, attention_mask=given, use_cache=False).logits[0, -1:]
    finally:
        model.set_attn_implementation(name)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_block_is_dense(model_of, family):
    """A single block gives the logits of dense attention, in every architecture."""
    model = model_of(family)
    expected = dense(model, CONTEXT + QUERY, [len(CONTEXT + QUERY) - 1])
    found = star_in_process(model, plan_blocks(len(CONTEXT), blocks=1, page=PAGE))
    assert off(found, expected) < 2e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_equal_attention_with_a_mask(model_of, family):
    """Anchor and blocks give what dense attention gives under Star's mask, token by token.

    The yardstick is transformers' eager attention with a written-out mask: a context token sees
    its own block and the anchor, a query token everything.
    """
    model = model_of(family)
    plan = plan_blocks(len(CONTEXT), blocks=4, anchor=8, page=PAGE)
    found = star_in_process(model, plan)
    total = len(CONTEXT) + len(QUERY)
    sees = torch.ones(total, total).tril().bool()
    for number in range(1, plan.num_blocks):
        own = plan.positions(number)
        sees[own.start : own.stop, plan.anchor : own.start] = False
    with torch.inference_mode():
        expected = _eager(model, CONTEXT + QUERY, sees)
    assert off(found, expected) < 5e-6


def spread(model, num_hosts, page=PAGE):
    """A session whose hosts hold the parts of a context that was computed densely."""
    plan = plan_blocks(len(CONTEXT), hosts=num_hosts, blocks=num_hosts, anchor=0, page=page)
    hosts = ThreadHosts([model] * num_hosts)
    session = StarSession(model, hosts, answer_tokens_max=64)
    session.prefill(CONTEXT, plan)
    pool = KeyValuePool(32, page)
    with torch.inference_mode():
        forward(model, Pass(pool, [Span(range(32), 0, len(CONTEXT))]), CONTEXT, [0])
    for number, host in enumerate(hosts.hosts):
        shard = plan.shard(number)
        host.hold(pool, range(shard.start // page, 32), len(shard))
    return session


@pytest.mark.parametrize("mode", PhaseTwo)
@pytest.mark.parametrize("family", FAMILIES)
def test_shards_of_a_dense_context_are_dense(model_of, family, mode):
    """Dense keys and values on three hosts give dense logits, for a query and the tokens after."""
    model = model_of(family)
    session = spread(model, 3)
    try:
        if mode is PhaseTwo.GATHERED:
            session.gather()
        ids = CONTEXT + QUERY
        found = session.advance(QUERY, 0, mode)
        assert off(found, dense(model, ids, [len(ids) - 1])) < 3e-6
        for step, token in enumerate((9, 120, 55)):
            ids = [*ids, token]
            found = session.advance([token], len(QUERY) + step, mode)
            assert off(found, dense(model, ids, [len(ids) - 1])) < 3e-6
    finally:
        session.close()


@pytest.mark.parametrize("mode", PhaseTwo)
def test_every_query_token_sees_the_end_of_every_shard(model_of, mode):
    """The first of many query tokens depends on each shard's last context token.

    A causal mask aligned to a shard's end would hide the shard's last tokens from all but the last
    query token; then the keys and values of early query tokens, and later logits, would be wrong.
    """
    model = model_of("llama")
    query = [(37 * n) % 200 for n in range(24)]
    expected = dense(model, CONTEXT + query, [len(CONTEXT) + 23])
    session = spread(model, 3)
    try:
        if mode is PhaseTwo.GATHERED:
            session.gather()
        assert off(session.advance(query, 0, mode), expected) < 3e-6
    finally:
        session.close()


def test_the_references_mask_would_be_seen(model_of):
    """The test above can fail: with the reference's causal shards the logits are far off."""
    model = model_of("llama")
    query = [(37 * n) % 200 for n in range(24)]
    total, end = len(CONTEXT) + 24, len(CONTEXT)
    sees = torch.ones(total, total).tril().bool()
    for shard_end in (20, 40):  # the last host is the query host, and right in the reference
        for row in range(24):
            sees[end + row, max(0, shard_end - (23 - row)) : shard_end] = False
    with torch.inference_mode():
        wrong = _eager(model, CONTEXT + query, sees)
    assert off(wrong, dense(model, CONTEXT + query, [total - 1])) > 1e-3


def test_merging_survives_large_differences():
    """Log-sum-exps that differ by more than 88 merge without overflow, in float32."""
    small, large = torch.full((1, 1, 1), -60.0), torch.full((1, 1, 1), 60.0)
    a = Partial(torch.full((1, 1, 1, 2), 5.0), small)
    b = Partial(torch.full((1, 1, 1, 2), 7.0), large)
    naive = small + torch.log1p(torch.exp(large - small))
    assert torch.isinf(naive).all()
    for parts in ([a, b], [b, a]):
        merged = merge(parts)
        assert merged.out.flatten().tolist() == [7.0, 7.0]
        assert merged.lse.item() == 60.0


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_hosts_equal_one_process(model_of, num_hosts):
    """Blocks on several hosts, gathered or asked, give what one process computes block by block."""
    model = model_of("llama")
    expected = star_in_process(model, plan_blocks(len(CONTEXT), blocks=4, anchor=8, page=PAGE))
    session = StarSession(model, ThreadHosts([model] * num_hosts), answer_tokens_max=64)
    try:
        plan = plan_blocks(len(CONTEXT), hosts=num_hosts, blocks=4, anchor=8, page=PAGE)
        done = session.prefill(CONTEXT, plan)
        tokens = [plan.work(host).tokens for host in range(num_hosts)]
        assert [one.tokens for one in done] == tokens
        assert off(session.advance(QUERY, 0, PhaseTwo.DISTRIBUTED), expected) < 2e-6
        session.gather()
        assert off(session.advance(QUERY, 0, PhaseTwo.GATHERED), expected) < 2e-6
    finally:
        session.close()


@pytest.mark.parametrize("mode", PhaseTwo)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_oss"])
def test_compiled_attention_is_exact_too(model_of, family, mode):
    """With pages of 16 tokens short queries go through the compiled kernel, if there is one."""
    model = model_of(family)
    session = spread(model, 2, page=16)
    try:
        if mode is PhaseTwo.GATHERED:
            session.gather()
        found = session.advance(QUERY, 0, mode)
        expected = dense(model, CONTEXT + QUERY, [len(CONTEXT + QUERY) - 1], page=16)
        assert off(found, expected) < 5e-6
    finally:
        session.close()


def test_int8_is_close(model_of):
    """Keys and values gathered as int8 change logits by under two percent, and do change them."""
    model = model_of("qwen3")
    session = spread(model, 3)
    try:
        session.gather(int8=True)
        expected = dense(model, CONTEXT + QUERY, [len(CONTEXT + QUERY) - 1])
        assert 1e-5 < off(session.advance(QUERY, 0, PhaseTwo.GATHERED), expected) < 2e-2
    finally:
        session.close()


def test_narrow_windows_are_gathered(model_of):
    """A window shorter than the context is right when gathered, and refused when distributed."""
    model = model_of("narrow")
    session = spread(model, 3)
    try:
        session.gather()
        ids = CONTEXT + QUERY
        found = session.advance(QUERY, 0, PhaseTwo.GATHERED)
        assert off(found, dense(model, ids, [len(ids) - 1])) < 3e-6
        with pytest.raises(ConfigurationRefused, match="sliding window"):
            session.generate(QUERY, SAMPLING, max_tokens=1, mode=PhaseTwo.DISTRIBUTED)
    finally:
        session.close()
