"""Attention over paged keys and values, against plain attention in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from starai.core.errors import InternalFault
from starai.engines.native import library
from starai.engines.native.attention import BLOCK_TOKENS, paged_attention, write_kv

if library.load() is None:
    pytest.skip(library.why_not(), allow_module_level=True)

#: How far float32 may be from float64, and bfloat16 (8 bits of mantissa) from its own inputs.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.2e-2}


@dataclass
class Case:
    """A pool with scattered sequences in it, and rows of queries behind them."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor
    starts: torch.Tensor
    counts: torch.Tensor
    scale: float

    def __call__(self, **options) -> torch.Tensor:
        where = (self.keys, self.values, self.tables, self.starts, self.counts)
        return paged_attention(self.q, *where, self.scale, **options)

    def sequence(self, span: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a sequence as float64 [tokens, kv heads, D]."""
        tokens = int(self.starts[span] + self.counts[span])
        table = self.tables[span, : -(-tokens // BLOCK_TOKENS)].long()
        parts = (self.keys, self.values)
        k, v = (p[:, table].flatten(1, 2)[:, :tokens].transpose(0, 1).double() for p in parts)
        return k, v


def make(
    lengths,
    *,
    heads=4,
    kv_heads=2,
    dim=32,
    value_dim=None,
    dtype=torch.float32,
    pool_dtype=None,
    seed=0,
) -> Case:
    """Sequences of (start, count); what is not theirs in the pool is NaN."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    value_dim = value_dim or dim
    needed = [-(-(start + count) // BLOCK_TOKENS) for start, count in lengths]
    blocks = sum(needed) + 3
    order = torch.randperm(blocks, generator=generator).int()
    tables = torch.full((len(lengths), max(needed) + 1), -1, dtype=torch.int32)
    keys = torch.full((kv_heads, blocks, BLOCK_TOKENS, dim), math.nan, dtype=pool_dtype or dtype)
    values = torch.full((kv_heads, blocks, BLOCK_TOKENS, value_dim), math.nan, dtype=keys.dtype)
    for span, count in enumerate(needed):
        tables[span, :count] = order[sum(needed[:span]) :][:count]
    rows = sum(count for _, count in lengths)
    q, k, v = (
        normal(rows, heads, dim),
        normal(rows, kv_heads, dim),
        normal(rows, kv_heads, value_dim),
    )
    past = [(0, start) for start, _ in lengths]
    total = sum(count for _, count in past)
    if total:
        old = (normal(total, kv_heads, dim), normal(total, kv_heads, value_dim))
        write_kv(*old, keys, values, tables, *ints([s for s, _ in past], [c for _, c in past]))
    starts, counts = ints([s for s, _ in lengths], [c for _, c in lengths])
    write_kv(k, v, keys, values, tables, starts, counts)
    return Case(q, k, v, keys, values, tables, starts, counts, dim**-0.5)


def ints(*lists):
    return tuple(torch.tensor(each, dtype=torch.int32) for each in lists)


def reference(case: Case, window=0, softcap=0.0, sinks=None, limits=None):
    """Plain attention, a row at a time, in float64; results and denominators' logarithms."""
    outs, lses = [], []
    row = 0
    for span, count in enumerate(case.counts.tolist()):
        k, v = case.sequence(span)
        group = case.q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        for i in range(count):
            high = int(case.starts[span]) + i + 1 if limits is None else int(limits[row])
            low = max(0, high - window) if window else 0
            scores = torch.einsum("hd,thd->ht", case.q[row].double(), k[low:high]) * case.scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            if sinks is not None:
                scores = torch.cat((scores, sinks.double()[:, None]), 1)
            weights = scores.softmax(1)[:, : high - low]
            outs.append(torch.einsum("ht,thd->hd", weights, v[low:high]))
            lses.append(scores.logsumexp(1))
            row += 1
    return torch.stack(outs), torch.stack(lses)


def check(case: Case, tolerance=None, **options):
    lse = torch.empty(case.q.shape[:2])
    out = case(lse=lse, **options)
    want, want_lse = reference(case, **options)
    tolerance = tolerance or TOLERANCE[case.q.dtype]
    assert (out.double() - want).abs().max() <= tolerance * max(1.0, float(want.abs().max()))
    finite = want_lse.isfinite()
    assert torch.equal(lse.isfinite(), finite)
    assert torch.allclose(lse.double()[finite], want_lse[finite], atol=tolerance, rtol=1e-6)


MIXED = [(0, 1), (37, 1), (0, 45), (16, 3), (300, 2), (15, 1), (127, 5)]
EVERY_KIND = pytest.mark.parametrize(
    ("dtype", "pool_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ],
)


@EVERY_KIND
@pytest.mark.parametrize("dim", [8, 16, 24, 64, 80, 96, 128, 256])
def test_every_width_of_head(dtype, pool_dtype, dim):
    """Heads of 8 to 256, multiples of 16 or not, in each pair of types."""
    check(make(MIXED, dim=dim, dtype=dtype, pool_dtype=pool_dtype))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 1), (8, 8), (14, 2), (16, 2), (71, 1)])
def test_every_grouping_of_heads(dtype, heads, kv_heads):
    """One query head a key head, several, and more than a tile holds rows."""
    check(make(MIXED, heads=heads, kv_heads=kv_heads, dtype=dtype))


@EVERY_KIND
@pytest.mark.parametrize("window", [0, 1, 7, 16, 130])
@pytest.mark.parametrize("softcap", [0.0, 2.5])
@pytest.mark.parametrize("sunk", [False, True])
def test_every_option(dtype, pool_dtype, window, softcap, sunk):
    """Windows, caps and sinks, alone and together."""
    sinks = torch.tensor([0.5, -3.0, 4.0, 0.0]) if sunk else None
    case = make(MIXED, dtype=dtype, pool_dtype=pool_dtype, seed=window)
    check(case, window=window, softcap=softcap, sinks=sinks)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", [0, 20])
def test_limits_take_the_place_of_causality(dtype, window):
    """A row sees as many tokens as it is told, its own sequence's later ones too."""
    case = make([(10, 3), (200, 2)], dtype=dtype)
    check(case, window=window, limits=ints([13, 1, 12, 202, 150])[0])


def test_a_row_that_sees_nothing_gives_zero():
    """Its result is zero and its denominator's logarithm minus infinity: nothing to merge."""
    case = make([(5, 2)])
    lse = torch.empty(case.q.shape[:2])
    out = case(lse=lse, limits=ints([0, 3])[0])
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert torch.equal(lse[0], torch.full_like(lse[0], -math.inf))
    assert bool(lse[1].isfinite().all())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_may_have_another_width_than_keys(dtype):
    """As in multi-head latent attention."""
    check(make(MIXED, dim=24, value_dim=40, dtype=dtype))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", [0, 100, 1500])
def test_long_contexts_are_merged_from_partitions(dtype, window):
    """Several partitions, tasks enough for one thread each or not."""
    check(make([(2600, 1)], heads=2, kv_heads=1, dtype=dtype), window=window)
    check(make([(1020, 9), (2100, 1), (1023, 1)], dtype=dtype), window=window)


def test_scores_far_apart_do_not_overflow():
    """The largest score is taken out before the exponential, in each chunk anew."""
    case = make([(400, 3)])
    case.q *= 300
    check(case, tolerance=1e-3)  # scores in the thousands have an ulp of 1e-4


@EVERY_KIND
@pytest.mark.parametrize("window", [0, 50])
def test_a_row_gives_the_same_bits_in_any_company(dtype, pool_dtype, window):
    """Alone or beside others, one row at a time or as a prompt, on one thread or two."""
    lengths = [(1030, 1), (0, 70), (400, 4), (3, 1), (2100, 2)]
    case = make(lengths, heads=6, kv_heads=2, dim=48, dtype=dtype, pool_dtype=pool_dtype)
    before = torch.get_num_threads()
    sinks = torch.randn(6)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            whole = case(window=window, sinks=sinks)
            row = 0
            for span, (start, count) in enumerate(lengths):
                table = case.tables[span : span + 1].contiguous()
                for i in range(count):
                    alone = paged_attention(
                        case.q[row : row + 1],
                        *(case.keys, case.values, table, *ints([start + i], [1])),
                        case.scale,
                        window,
                        sinks=sinks,
                    )
                    assert torch.equal(alone[0], whole[row])
                    row += 1
        finally:
            torch.set_num_threads(before)


def test_blocks_behind_every_window_may_be_gone():
    """Their entries of the table are not looked at."""
    case = make([(200, 2)])
    before = case(window=20)
    case.tables[0, :11] = -7
    assert torch.equal(case(window=20), before)


def test_rows_may_be_slices_of_a_fused_projection():
    """Queries, keys and values side by side in one row, as one linear layer gives them."""
    case = make([(20, 3)], heads=4, kv_heads=2, dim=16)
    want = case()
    fused = torch.cat([x.flatten(1) for x in (case.q, case.k, case.v)], 1)
    q, k, v = (x.unflatten(1, (-1, 16)) for x in fused.split([64, 32, 32], 1))
    where = (case.keys, case.values, case.tables, case.starts, case.counts)
    case.keys[:, case.tables[0, 1], 4:7] = math.nan
    write_kv(k, v, *where)
    assert torch.equal(paged_attention(q, *where, case.scale), want)


def test_what_is_written_is_what_was_given():
    """Each token at its block and place, nothing else touched."""
    case = make([(30, 7), (0, 2)], dim=24)
    k, _ = case.sequence(0)
    assert torch.equal(k[30:37], case.k[:7].double())
    k, v = case.sequence(1)
    assert torch.equal(k, case.k[7:].double())
    assert torch.equal(v, case.v[7:].double())
    tokens = int((case.starts + case.counts).sum())
    written = ~case.keys.isnan().any(-1)
    assert int(written.sum()) == tokens * case.keys.shape[0]


def test_what_would_leave_the_pool_is_refused():
    """A table that ends too early or names a block that is not there never reaches memory."""
    case = make([(20, 2)])
    good = case.tables.clone()
    for table in (good[:, :1].contiguous(), torch.full_like(good, 999), torch.full_like(good, -1)):
        case.tables = table
        with pytest.raises(InternalFault, match="block"):
            case()
        with pytest.raises(InternalFault, match="block"):
            write_kv(case.k, case.v, case.keys, case.values, table, case.starts, case.counts)
    case.tables = good
    with pytest.raises(InternalFault, match="block"):
        case(limits=ints([1, 999])[0])
    case.counts = ints([3])[0]
    with pytest.raises(InternalFault, match="add up"):
        case()
    case.counts = ints([-1])[0]
    with pytest.raises(InternalFault, match="negative"):
        case()


def test_tensors_that_do_not_fit_are_refused():
    """Shapes and types are checked before an address is taken."""
    case = make([(20, 2)])
    with pytest.raises(InternalFault, match="paged_attention"):
        paged_attention(
            case.q[:, :3], *(case.keys, case.values, case.tables), *ints([20], [2]), 1.0
        )
    case.starts = case.starts.long()
    with pytest.raises(InternalFault, match="int32"):
        case()
    with pytest.raises(InternalFault, match="write_kv"):
        write_kv(case.k[:, :1], case.v, case.keys, case.values, case.tables, *ints([20], [2]))
