"""Attention through the compiled kernel, which reads blocks where they lie.

A step is one call per layer here, whatever pieces of prompts and answers it has; without the
kernel each sequence's keys are gathered first. In bfloat16 a prompt's piece takes about half of
what torch's own CPU kernel takes (measured on AVX-512 without AMX).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from starai.engines.native import library
from starai.engines.native.attention import BLOCK_TOKENS, paged_attention
from starai.engines.text.merging import Partial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starai.engines.text.attention import Rule, Span
    from starai.engines.text.pool import States

_DTYPES: Final = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Tables:
    """Spans as the kernel takes them, int32: see `starai.engines.native.attention`."""

    tables: Tensor
    starts: Tensor
    counts: Tensor
    limits: Tensor | None

    @classmethod
    def of(cls, spans: Sequence[Span], block_tokens: int) -> Tables:
        """The tables of ``spans``; shorter ones are filled with their last block."""
        needed = [-(-(s.end if s.write else s.start) // block_tokens) for s in spans]
        tables = np.zeros((len(spans), max(1, *needed, 1)), np.int32)
        for row, span, blocks in zip(tables, spans, needed, strict=True):
            row[:blocks] = span.table[:blocks]
        limits = None
        if not all(span.write for span in spans):
            seen = [
                span.start + (n + 1 if span.write else 0)
                for span in spans
                for n in range(span.count)
            ]
            limits = torch.tensor(seen, dtype=torch.int32)
        return cls(
            torch.from_numpy(tables),
            torch.tensor([span.start for span in spans], dtype=torch.int32),
            torch.tensor([span.count for span in spans], dtype=torch.int32),
            limits,
        )


def usable(query: Tensor, keys: States, values: States) -> bool:
    """Whether the kernel is there and takes these: floats on the CPU, in its block size."""
    return (
        query.device.type == "cpu"
        and query.dtype in _DTYPES
        and keys.scales is None
        and values.scales is None
        and keys.data.dtype in _DTYPES
        and keys.data.shape[2] == BLOCK_TOKENS
        and library.load() is not None
    )


def attend_paged(
    tables: Tables, rule: Rule, query: Tensor, keys: States, values: States
) -> Partial:
    """Attention of the spans' rows [1, heads, rows, width] to what their tables hold."""
    q = query[0].transpose(0, 1)
    if q.stride(2) != 1 or q.stride(1) != q.shape[2]:
        q = q.contiguous()
    lse = torch.empty(q.shape[:2], dtype=torch.float32)
    scaling = q.shape[2] ** -0.5 if rule.scaling is None else rule.scaling
    out = paged_attention(
        q,
        keys.data,
        values.data,
        tables.tables,
        tables.starts,
        tables.counts,
        scaling,
        rule.window or 0,
        rule.softcap or 0.0,
        lse=lse,
        limits=tables.limits,
    )
    return Partial(out.transpose(0, 1).unsqueeze(0), lse.t().unsqueeze(0))
