"""Attention over packed sequences, reading and writing our own KV memory.

One forward pass carries pieces of many sequences side by side in one row of tokens: the linear
layers see one batch without padding, and this function cuts it into its sequences again::

    tokens   [ a5 | b0 b1 b2 b3 | c9 ]        a, c decode; b's prompt begins
    spans      a: start 5, count 1   b: start 0, count 4   c: start 9, count 1

It is registered with transformers as an attention implementation; transformers then builds no
masks, so causality and sliding windows are made here. Knows nothing about sampling or requests.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor
from transformers import AttentionInterface

NAME: Final = "starai_packed"


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of one sequence: ``count`` tokens from position ``start``, KV memory ``slot``."""

    slot: int
    start: int
    count: int

    @property
    def end(self) -> int:
        """The position behind the piece."""
        return self.start + self.count


class KeyValueStore:
    """Keys and values of all slots: per layer [slots, kv heads, capacity, width].

    Layers are allocated when they are first written. On CPU the operating system commits pages
    only as they are touched, so a large unused capacity costs nothing.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        """Room for ``slots`` sequences of up to ``capacity`` tokens."""
        self._slots = slots
        self._capacity = capacity
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The memory of a layer, shaped after its first keys and values [1, heads, T, width]."""
        memory = self._layers.get(index)
        if memory is None:
            memory = (self._like(key), self._like(value))
            self._layers[index] = memory
        return memory

    def _like(self, states: Tensor) -> Tensor:
        _, heads, _, width = states.shape
        return states.new_empty((self._slots, heads, self._capacity, width))

    @property
    def bytes_per_token(self) -> int:
        """Memory of one position of one sequence, all layers; known after the first pass."""
        return sum(
            states.element_size() * states.shape[1] * states.shape[3]
            for pair in self._layers.values()
            for states in pair
        )


@dataclass(slots=True)
class Pass:
    """One forward pass: its spans in the order of the packed tokens, and what the layers did."""

    store: KeyValueStore
    spans: list[Span]
    windows: dict[int, int | None] = field(default_factory=dict)
    masks: dict[tuple[int, int, int, int | None], Tensor] = field(default_factory=dict)


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
    window = options.get("sliding_window")
    run.windows[layer] = window
    keys, values = run.store.layer(layer, key, value)
    special = {"softcap": options.get("softcap"), "sinks": options.get("s_aux")}
    fused = all(value is None for value in special.values())
    outputs: list[Tensor] = []
    begin = 0
    for span in run.spans:
        rows = slice(begin, begin + span.count)
        begin += span.count
        keys[span.slot, :, span.start : span.end] = key[0, :, rows]
        values[span.slot, :, span.start : span.end] = value[0, :, rows]
        low = max(0, span.start + 1 - window) if window else 0
        k = keys[span.slot : span.slot + 1, :, low : span.end]
        v = values[span.slot : span.slot + 1, :, low : span.end]
        q = query[:, :, rows]
        if not fused:
            mask = None if span.count == 1 else _mask(run, span, low, window, q)
            outputs.append(_attend_written_out(q, k, v, mask, scaling, **special))
        elif span.count > 1 and (span.start or (window and span.count > window)):
            mask = _mask(run, span, low, window, q)
            outputs.append(_attend_fused(q, k, v, mask, scaling, causal=False))
        else:
            outputs.append(_attend_fused(q, k, v, None, scaling, causal=span.count > 1))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return joined.transpose(1, 2), None


def _attend_fused(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, *, causal: bool
) -> Tensor:
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=True
    )


def _attend_written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    *,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """For what no fused kernel offers: soft-capped scores (Gemma 2) and sinks (gpt-oss)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q @ k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        column = sinks.reshape(1, -1, 1, 1).expand(1, q.shape[1], q.shape[2], 1)
        scores = torch.cat([scores, column.to(scores.dtype)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return weights[..., : k.shape[2]] @ v


def _mask(run: Pass, span: Span, low: int, window: int | None, like: Tensor) -> Tensor:
    """Added to scores [count, end - low]: 0 where a query may look, -inf elsewhere."""
    name = (span.start, span.count, low, window)
    mask = run.masks.get(name)
    if mask is None:
        queries = torch.arange(span.start, span.end, device=like.device)[:, None]
        keys = torch.arange(low, span.end, device=like.device)[None, :]
        hidden = keys > queries
        if window:
            hidden |= keys <= queries - window
        mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        mask.masked_fill_(hidden, -torch.inf)
        run.masks[name] = mask
    return mask


AttentionInterface.register(NAME, attend)
