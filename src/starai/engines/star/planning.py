"""Plans Star Attention's first phase: blocks, anchor, and which host computes what.

::

    context   [ c1 ........ | c2 ........ | c3 ........ | c4 .. ]      positions 0 ... L-1
    host 0      c1            anchor+c2
    host 1                                 anchor+c3     anchor+c4     one anchor a host

Block i >= 2 attends to itself, causally, and to the anchor, the first tokens of c1. The anchor has
its own positions and the block its true ones, so that both look to the model as they do in the
whole text; see Acharya, Jia, Ginsburg: Star Attention (arXiv 2411.17116). Two differences to the
reference save work and change no number: the last block is shorter instead of padded, and a host
computes the anchor once for all of its blocks, because an anchor sees nothing but itself.

Knows shapes and counts only: no tensors, no tokens, no network.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from starai.core.errors import ConfigurationRefused

#: The paper's rule: a block is a quarter of the context. Larger blocks are more accurate, and it
#: reports 97 to 100 % of dense accuracy at a quarter.
BLOCKS: Final = 4
#: Shorter contexts are computed densely: there is little to gain and accuracy to lose.
CONTEXT_TOKENS_MIN: Final = 2048
#: An approximation must be worth it: the predicted speed-up below which dense is chosen.
GAIN_MIN: Final = 1.2


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides the work; see `flops`.

    Attributes:
        layers: number of layers.
        heads: query heads of a layer.
        head_width: of keys and values.
        linear_parameters: weights that each token is multiplied with, all layers.
        kv_bytes_per_token: keys and values of one token, all layers, as they are stored.
        kv_element_bytes: of one stored number of them.
    """

    layers: int
    heads: int
    head_width: int
    linear_parameters: int
    kv_bytes_per_token: int
    kv_element_bytes: int = 2


@dataclass(frozen=True, slots=True)
class Work:
    """What a host has to do: tokens through the linear layers, and (query, key) pairs."""

    tokens: int
    pairs: int

    def flops(self, shape: ModelShape) -> int:
        """Floating point operations: 2 a weight and token, 4 a head, channel and pair."""
        attention = 4 * shape.layers * shape.heads * shape.head_width * self.pairs
        return 2 * shape.linear_parameters * self.tokens + attention


@dataclass(frozen=True, slots=True)
class StarPlan:
    """The first phase of one context; made by `plan_blocks`.

    Attributes:
        context: L, tokens of the context; the query follows at position L.
        block: tokens of a block, whole pages; the last block may be shorter.
        anchor: first tokens of the first block that the others see, whole pages; 0 for none.
        page: tokens of a block of the KV memory.
        groups: for each host the numbers of its blocks, contiguous and in order.
    """

    context: int
    block: int
    anchor: int
    page: int
    groups: tuple[range, ...]

    @property
    def num_blocks(self) -> int:
        """How many blocks the context is cut into."""
        return -(-self.context // self.block)

    def positions(self, block: int) -> range:
        """Where block number ``block`` (from 0) is in the context."""
        begin = block * self.block
        return range(begin, min(begin + self.block, self.context))

    def shard(self, host: int) -> range:
        """The positions whose keys and values ``host`` keeps."""
        group = self.groups[host]
        return range(group.start * self.block, min(group.stop * self.block, self.context))

    def work(self, host: int) -> Work:
        """What ``host`` computes, the anchor included; host 0 has it within its first block."""
        group = self.groups[host]
        alone = self.anchor if group.start else 0
        tokens, pairs = alone, _triangle(alone)
        for number in group:
            count = len(self.positions(number))
            tokens += count
            pairs += _triangle(count) + (self.anchor * count if number else 0)
        return Work(tokens, pairs)

    def critical_path(self, shape: ModelShape) -> int:
        """Floating point operations of the host that has most to do."""
        return max(self.work(host).flops(shape) for host in range(len(self.groups)))


def plan_blocks(
    context: int,
    *,
    hosts: int = 1,
    page: int = 16,
    blocks: int = BLOCKS,
    block: int | None = None,
    anchor: int | None = None,
) -> StarPlan:
    """The plan for a context.

    Args:
        context: its tokens, L.
        hosts: how many compute at the same time; there are never more than blocks.
        page: tokens of a KV block; block and anchor are rounded up to whole pages, so that the
            anchor's keys and values end where a page ends.
        blocks: into how many blocks to cut; more are faster and less accurate.
        block: tokens of a block, in place of ``blocks``.
        anchor: tokens of the anchor; by default as many as a block, at most as many.

    Raises:
        ConfigurationRefused: a number makes no sense.
    """
    if min(context, hosts, page, blocks) < 1 or (block is not None and block < 1):
        raise ConfigurationRefused("context, hosts, page, blocks and block are at least 1")
    if anchor is not None and anchor < 0:
        raise ConfigurationRefused("an anchor has 0 tokens or more")
    size = _whole(block or -(-context // blocks), page)
    anchored = size if anchor is None else min(_whole(anchor, page), size)
    count = -(-context // size)
    return StarPlan(context, size, anchored if count > 1 else 0, page, _groups(count, hosts))


def dense_work(context: int) -> Work:
    """What one host computes without Star Attention."""
    return Work(context, _triangle(context))


def gain(plan: StarPlan, shape: ModelShape) -> float:
    """The predicted speed-up of the first phase against dense prefill on one host."""
    return dense_work(plan.context).flops(shape) / plan.critical_path(shape)


def plan_if_worth(
    context: int,
    shape: ModelShape,
    *,
    hosts: int = 1,
    page: int = 16,
    blocks: int = BLOCKS,
    context_min: int = CONTEXT_TOKENS_MIN,
) -> StarPlan | None:
    """The plan by rule, or None where dense prefill is the better choice: the threshold."""
    if context < context_min:
        return None
    plan = plan_blocks(context, hosts=hosts, page=page, blocks=blocks)
    return plan if gain(plan, shape) >= GAIN_MIN else None


def _groups(blocks: int, hosts: int) -> tuple[range, ...]:
    """Contiguous and even; the first ones get what is left over, as host 0 has a free anchor."""
    hosts = min(hosts, blocks)
    each, more = divmod(blocks, hosts)
    starts = [host * each + min(host, more) for host in range(hosts + 1)]
    return tuple(range(a, b) for a, b in pairwise(starts))


def _triangle(tokens: int) -> int:
    return tokens * (tokens + 1) // 2


def _whole(tokens: int, page: int) -> int:
    return -(-tokens // page) * page
