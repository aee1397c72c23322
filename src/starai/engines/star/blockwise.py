"""The first phase on tensors: runs a context's blocks into paged KV memory.

A block is an ordinary piece of a sequence whose table begins with the anchor's pages::

    table of block i    [ anchor pages | pages of block i ]      rotary positions: 0..a-1, i*b...

so the anchor's keys are read, never copied, and dropping it means dropping its pages from the
table. Behind one another, the blocks' own pages are the table of the whole context, at which any
decoding goes on as usual. Knows nothing about hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from torch import Tensor

from starai.engines.star.planning import ModelShape, StarPlan
from starai.engines.text.attention import Pass, Span
from starai.engines.text.pool import KeyValuePool

#: (pass, packed ids, rows whose logits are wanted) -> logits.
Forward = Callable[[Pass, list[int], list[int]], Tensor]
#: Tokens of one forward pass: bounds the activations' memory, and how long a step takes.
CHUNK_TOKENS: Final = 1024


class Adopting(Protocol):
    """What is needed of `starai.engines.paging.memory.PagedMemory`."""

    def adopt(self, key: bytes, num_tokens: int) -> None:
        """Start a sequence whose blocks nobody else can find."""
        ...

    def table(self, key: bytes) -> Sequence[int]:
        """The pages of a sequence, in order."""
        ...


def prefill(
    forward: Forward,
    pool: KeyValuePool,
    memory: Adopting,
    key: bytes,
    ids: Sequence[int],
    plan: StarPlan,
) -> None:
    """Fill a new sequence's KV memory with a context, block by block, all on this machine.

    Afterwards the sequence is like any other with ``len(ids)`` computed tokens; go on with the
    query as a piece at that place. Its blocks are approximations and are shared with nobody.

    Args:
        forward: `starai.engines.text.probe.forward` bound to a model.
        pool: the KV memory, of pages as the plan has them.
        memory: gives the sequence its pages.
        key: the sequence's name, not in use.
        ids: the context, as long as the plan's.
        plan: for one host.

    Raises:
        OutOfBlocks: the context does not fit; nothing has changed.
    """
    if pool.block_tokens != plan.page or len(ids) != plan.context or len(plan.groups) != 1:
        raise ValueError("the plan is not of this context, memory and one host")
    memory.adopt(key, plan.context)
    table = list(memory.table(key))
    for span, tokens in pieces(plan, 0, table, table):
        forward(Pass(pool, [span]), list(ids[tokens.start : tokens.stop]), [0])


def pieces(
    plan: StarPlan,
    host: int,
    anchor_table: Sequence[int],
    table: Sequence[int],
    chunk: int = CHUNK_TOKENS,
) -> Iterator[tuple[Span, range]]:
    """The pieces of a host's first phase in an order in which each finds what it reads.

    Args:
        plan: of the context.
        host: number of the host.
        anchor_table: pages for the anchor; for host 0 those of its first block serve.
        table: pages for the host's shard.
        chunk: most tokens of a piece.

    Yields:
        A piece, and the context positions of its tokens.
    """
    group = plan.groups[host]
    pages = plan.block // plan.page
    anchor = list(anchor_table[: plan.anchor // plan.page])
    if group.start:
        yield from _chunks(anchor, 0, range(plan.anchor), chunk)
    for number in group:
        first = (number - group.start) * pages
        own = list(table[first : first + pages])
        before = anchor if number else []
        yield from _chunks(before + own, len(before) * plan.page, plan.positions(number), chunk)


def _chunks(
    table: Sequence[int], start: int, positions: range, chunk: int
) -> Iterator[tuple[Span, range]]:
    for begin in range(positions.start, positions.stop, chunk):
        tokens = range(begin, min(begin + chunk, positions.stop))
        place = start + begin - positions.start
        yield Span(table, place, len(tokens), position=begin), tokens


def shape_of(model: Any, kv_bytes_per_token: int) -> ModelShape:
    """What the planner needs to know of a transformers model.

    Experts count by the share of them that a token goes through.
    """
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelShape(
        layers=int(config.num_hidden_layers),
        heads=heads,
        head_width=int(width),
        linear_parameters=_linear_parameters(model, config),
        kv_bytes_per_token=kv_bytes_per_token,
        kv_element_bytes=model.dtype.itemsize,
    )


def _linear_parameters(model: Any, config: Any) -> int:
    """Weights of matrices between embedding and head; both are paid once, not a token."""
    active = getattr(config, "num_experts_per_tok", None) or 1
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    share = active / experts if experts else 1.0
    ends = {id(module.weight) for module in _ends(model) if module is not None}
    total = 0.0
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or id(weight) in ends:
            continue
        total += weight.numel() * (share if ".experts." in name else 1.0)
    return int(total)


def _ends(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()
