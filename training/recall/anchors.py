"""Reads a document as Star Attention does, with anchors that are made differently.

What must an anchor be: is it the words of the first block, or their places, or only that something
stands there? The paper asks by replacing one at a time (Acharya, Jia, Ginsburg: Star Attention,
arXiv 2411.17116, ablations), and so does this::

    block 2 of 4, dense     [ opening ... c1 | c2 ]      positions  0 .. b-1 | b .. 2b-1
    no anchor                               [ c2 ]                             b .. 2b-1
    any other               [ content  | c2 ]            places              | b .. 2b-1

Questions are asked of the keys and values of all blocks, anchors dropped. Knows nothing about how
the models were trained, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from starai.engines.star.planning import StarPlan
from starai.engines.text.attention import Pass, Span
from starai.engines.text.pool import KeyValuePool
from training.recall import task

Ids = NDArray[np.int64]
#: (pass, packed ids, rows whose logits are wanted) -> logits.
Forward = Callable[..., Any]


@dataclass(frozen=True)
class Words:
    """What anchors are made of that are not made of the text.

    Attributes:
        constant: the one token that a constant anchor repeats.
        tokens: the ids that a random one is drawn from.
    """

    constant: int
    tokens: range


class Content(StrEnum):
    """Which tokens stand before a block."""

    FIRST = "first block"
    NONE = "none"
    CONSTANT = "constant token"
    RANDOM = "random tokens"
    SHUFFLED = "first block, shuffled"
    PREVIOUS = "previous block"


class Places(StrEnum):
    """At which positions they stand, for the rotary embedding."""

    FIRST = "of the first block"
    PREVIOUS = "of the previous block"
    SCATTERED = "random, before the block"


@dataclass(frozen=True)
class Anchor:
    """An anchor to try; the default is Star Attention's own."""

    content: Content = Content.FIRST
    places: Places = Places.FIRST

    def tokens(
        self, rng: np.random.Generator, ids: Ids, plan: StarPlan, block: int, words: Words
    ) -> Ids:
        """The tokens before block number ``block`` (from 1) of the context ``ids``."""
        first = ids[: plan.anchor]
        match self.content:
            case Content.NONE:
                return first[:0]
            case Content.CONSTANT:
                return np.full(plan.anchor, words.constant)
            case Content.RANDOM:
                return rng.integers(words.tokens.start, words.tokens.stop, plan.anchor)
            case Content.SHUFFLED:
                return rng.permutation(first)
            case Content.PREVIOUS:
                return ids[(block - 1) * plan.block :][: plan.anchor]
            case Content.FIRST:
                return first

    def positions(self, rng: np.random.Generator, plan: StarPlan, block: int) -> Ids:
        """The rotary positions of an anchor of full length before block number ``block``."""
        match self.places:
            case Places.FIRST:
                return np.arange(plan.anchor)
            case Places.PREVIOUS:
                return (block - 1) * plan.block + np.arange(plan.anchor)
            case Places.SCATTERED:
                return np.sort(rng.choice(block * plan.block, size=plan.anchor, replace=False))


def read(
    run: Forward,
    ids: Ids,
    plan: StarPlan,
    anchor: Anchor,
    rng: np.random.Generator,
    words: Words,
    pages: int = 0,
) -> KeyValuePool:
    """The first phase over a context, in one pass: blocks do not see each other.

    Args:
        run: `starai.engines.text.forward.forward` bound to a model.
        ids: the context.
        plan: blocks, and the anchor's length.
        anchor: what stands before each block but the first.
        rng: decides what is random of it.
        words: what an anchor may be made of.
        pages: free ones to have behind the context.

    Returns:
        The memory; the context's pages are its first, in order, and the free ones its next.
    """
    each, own = plan.block // plan.page, -(-plan.context // plan.page)
    free = own + pages
    spans, packed = [], []
    for number in range(plan.num_blocks):
        places = plan.positions(number)
        table = list(range(own))[number * each : (number + 1) * each]
        tokens = anchor.tokens(rng, ids, plan, number, words) if number else ids[:0]
        if len(tokens):
            before = list(range(free, free + plan.anchor // plan.page))
            free += len(before)
            spans += _spans(before, anchor.positions(rng, plan, number))
            table = before + table
        spans.append(Span(table, len(tokens), len(places), position=places.start))
        packed += [*tokens.tolist(), *ids[places.start : places.stop].tolist()]
    pool = KeyValuePool(free, plan.page)
    run(Pass(pool, spans), packed, [0])
    return pool


def _spans(table: Sequence[int], positions: Ids) -> Iterator[Span]:
    """One sequence in as many pieces as its positions have gaps."""
    starts = np.flatnonzero(np.diff(positions, prepend=-2) != 1)
    for start, stop in zip(starts, [*starts[1:], len(positions)], strict=True):
        yield Span(table, int(start), int(stop - start), position=int(positions[start]))


def right(
    run: Forward,
    documents: Sequence[task.Document],
    asked: Sequence[Ids],
    plan: StarPlan,
    anchor: Anchor,
    words: Words,
) -> NDArray[np.bool_]:
    """Which questions about documents are answered rightly [documents, questions].

    ``asked`` has the numbers of each document's pairs that are asked for, equally many of each.
    """
    rng = np.random.default_rng(7)
    pages = _whole_pages(plan)
    found = []
    for document, pairs in zip(documents, asked, strict=True):
        pool = read(run, document.ids, plan, anchor, rng, words, pages=len(pairs))
        spans = [
            Span([*range(pages), pages + number], plan.context, 2) for number in range(len(pairs))
        ]
        query = np.stack([np.full(len(pairs), task.ASK), document.keys[pairs]], axis=1)
        logits = run(Pass(pool, spans), query.flatten().tolist(), list(range(1, query.size, 2)))
        found.append(logits.argmax(-1).numpy() == document.values[pairs])
    return np.stack(found)


def surprise(
    run: Forward, texts: Ids, plan: StarPlan, anchor: Anchor, words: Words
) -> NDArray[np.float64]:
    """How unexpected texts are that go on behind a context read by ``plan``.

    Returns:
        Mean cross entropy in nats of each text's tokens [texts], but for the first behind the
        context, which nothing has been asked for.
    """
    rng = np.random.default_rng(7)
    pages = _whole_pages(plan)
    found = []
    for ids in texts:
        rest = ids[plan.context :]
        pool = read(
            run, ids[: plan.context], plan, anchor, rng, words, pages=-(-len(rest) // plan.page)
        )
        table = range(pages + -(-len(rest) // plan.page))
        span = Span(table, plan.context, len(rest))
        logits = run(Pass(pool, [span]), rest.tolist(), list(range(len(rest) - 1)))
        found.append(float(functional.cross_entropy(logits, torch.from_numpy(rest[1:]))))
    return np.array(found)


def _whole_pages(plan: StarPlan) -> int:
    """The context's pages; what follows gets pages of its own, so the last must be full."""
    if plan.context % plan.page:
        raise ValueError(f"a context of whole pages of {plan.page} tokens, not of {plan.context}")
    return plan.context // plan.page
