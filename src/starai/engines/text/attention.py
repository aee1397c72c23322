"""Attention over packed sequences, reading and writing paged KV memory.

One forward pass carries pieces of many sequences side by side in one row of tokens: the linear
layers see one batch without padding, and this function cuts it into its sequences again::

    tokens   [ a5 | b0 b1 b2 b3 | c9 ]        a, c decode; b's prompt begins
    spans      a: start 5, count 1   b: start 0, count 4   c: start 9, count 1

It is registered with transformers as an attention implementation; transformers then builds no
masks, so causality and sliding windows are made here. Knows nothing about sampling or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from starai.engines.text.merging import Partial, attend_part, merge, with_sinks
from starai.engines.text.paged import Tables, attend_paged, usable
from starai.engines.text.pool import KeyValuePool, States

if TYPE_CHECKING:
    from starai.engines.text.adapters import Adapter

NAME: Final = "starai_packed"

#: Given a layer and the attention of all rows to the keys here, answers with that to all keys
#: everywhere: how the hosts of Star Attention put their shards together.
Exchange = Callable[[int, Partial], Partial]


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of one sequence: ``count`` tokens at ``start`` of the KV memory behind ``table``.

    ``position`` is the first token's rotary position, if it is not ``start``. A piece that does
    not ``write`` only looks at the ``start`` tokens before it: all its rows see all of them.
    """

    table: Sequence[int]
    start: int
    count: int
    position: int | None = None
    write: bool = True

    @property
    def end(self) -> int:
        """The place behind the piece."""
        return self.start + self.count


@dataclass
class Pass:
    """One forward pass: its spans in the order of the packed tokens, and what the layers did.

    ``adapters`` has each span's, or None for the model itself; it is empty where none has one.
    ``wanted`` are the packed tokens whose final states somebody will read, by default all.
    """

    pool: KeyValuePool
    spans: Sequence[Span]
    exchange: Exchange | None = None
    native: bool = True
    adapters: Sequence[Adapter | None] = ()
    wanted: Sequence[int] | None = None
    windows: dict[int, int | None] = field(default_factory=dict)
    masks: dict[tuple[int, int, int, int | None], Tensor] = field(default_factory=dict)

    @cached_property
    def positions(self) -> list[int]:
        """The rotary position of each packed token."""
        return [
            (span.start if span.position is None else span.position) + n
            for span in self.spans
            for n in range(span.count)
        ]

    @cached_property
    def tables(self) -> Tables:
        """The spans as the compiled kernels take them."""
        return Tables.of(self.spans, self.pool.block_tokens)

    @cached_property
    def rows(self) -> Tensor | slice:
        """Which packed tokens are written."""
        if all(span.write for span in self.spans):
            return slice(None)
        written = np.repeat([s.write for s in self.spans], [s.count for s in self.spans])
        return torch.from_numpy(np.flatnonzero(written))

    @cached_property
    def adapter_rows(self) -> list[tuple[Adapter, Tensor]]:
        """Each adapter in this pass, and its packed tokens."""
        rows: dict[Adapter, list[int]] = {}
        begin = 0
        for span, adapter in zip(self.spans, self.adapters, strict=True):
            if adapter is not None:
                rows.setdefault(adapter, []).extend(range(begin, begin + span.count))
            begin += span.count
        return [(adapter, torch.tensor(own)) for adapter, own in rows.items()]

    @cached_property
    def slots(self) -> Tensor:
        """Where each written token goes: block * block tokens + offset, int64."""
        block = self.pool.block_tokens
        parts = [np.zeros(0, np.int64)]
        for span in self.spans:
            if span.write:
                places = np.arange(span.start, span.end)
                first = span.start // block
                table = np.asarray(span.table[first : -(-span.end // block)], np.int64)
                parts.append(table[places // block - first] * block + places % block)
        return torch.from_numpy(np.concatenate(parts))


#: The pass that this thread is in; transformers offers no reliable road for our own arguments.
CURRENT: Final[ContextVar[Pass | None]] = ContextVar("starai_pass", default=None)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of packed queries [1, heads, T, width]; returns [1, T, heads, width]."""
    run = CURRENT.get()
    if run is None:
        raise RuntimeError("the packed attention was called outside a pass")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    rule = Rule(scaling, options.get("sliding_window"), options.get("softcap"))
    run.windows[layer] = rule.window
    keys, values = run.pool.layer(layer, key, value)
    slots = run.slots.to(key.device)
    if len(slots):
        keys.write(slots, key[0, :, run.rows])
        values.write(slots, value[0, :, run.rows])
    part = _attend_all(run, rule, query, keys, values)
    if run.exchange is not None:
        part = run.exchange(layer, part)
    sinks = options.get("s_aux")
    if sinks is not None:
        part = with_sinks(part, sinks)
    return part.out.to(query.dtype).transpose(1, 2), None


@dataclass(frozen=True, slots=True)
class Rule:
    """How a layer scores: factor, sliding window and cap, where it has them."""

    scaling: float | None
    window: int | None
    softcap: float | None


def _attend_all(run: Pass, rule: Rule, query: Tensor, keys: States, values: States) -> Partial:
    """All pieces' attention: in one call where there is a kernel for it."""
    if run.native and usable(query, keys, values):
        return attend_paged(run.tables, rule, query, keys, values)
    parts: list[Partial] = []
    begin = 0
    for span in run.spans:
        rows = slice(begin, begin + span.count)
        begin += span.count
        parts.append(_attend_span(run, span, rule, query[:, :, rows], keys, values))
    return parts[0] if len(parts) == 1 else _joined(parts)


def _attend_span(
    run: Pass, span: Span, rule: Rule, q: Tensor, keys: States, values: States
) -> Partial:
    """A piece's attention to its past and to itself."""

    def part(low: int, high: int, *, causal: bool = False, mask: Tensor | None = None) -> Partial:
        k = keys.read(span.table, low, high, q.dtype)
        v = values.read(span.table, low, high, q.dtype)
        return attend_part(q, k, v, rule.scaling, causal=causal, mask=mask, softcap=rule.softcap)

    if not span.write:
        return part(0, span.start)
    window = rule.window
    if window and span.end > window:
        low = max(0, span.start + 1 - window)
        mask = None if span.count == 1 else _mask(run, span, low, window, q)
        return part(low, span.end, mask=mask)
    if span.count == 1:
        return part(0, span.end)
    own = part(span.start, span.end, causal=True)
    # The kernel's causality is aligned to the top left: the past is a part of its own.
    return merge([part(0, span.start), own]) if span.start else own


def _joined(parts: Sequence[Partial]) -> Partial:
    dtype = torch.promote_types(parts[0].out.dtype, parts[-1].out.dtype)
    for one in parts:
        dtype = torch.promote_types(dtype, one.out.dtype)
    return Partial(
        torch.cat([one.out.to(dtype) for one in parts], dim=2),
        torch.cat([one.lse for one in parts], dim=2),
    )


def _mask(run: Pass, span: Span, low: int, window: int, like: Tensor) -> Tensor:
    """Added to scores [count, end - low]: 0 where a query may look, -inf elsewhere."""
    name = (span.start, span.count, low, window)
    mask = run.masks.get(name)
    if mask is None:
        queries = torch.arange(span.start, span.end, device=like.device)[:, None]
        keys = torch.arange(low, span.end, device=like.device)[None, :]
        hidden = (keys > queries) | (keys <= queries - window)
        mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        mask.masked_fill_(hidden, -torch.inf)
        run.masks[name] = mask
    return mask


AttentionInterface.register(NAME, attend)
