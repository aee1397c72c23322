"""Rows of token ids for training: whole documents one after another, each row begun afresh.

Knows nothing about the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from tokenizers import Tokenizer

from training.embedded import corpus
from training.embedded.tokenizer import encode

#: What cross entropy leaves out.
IGNORED: Final = -100
#: Every fourth batch has rows of the full context, so that far positions are learnt as well;
#: the others are shorter because attention over a long row costs more for the same tokens.
LONG_EVERY: Final = 4


def rows(tokenizer: Tokenizer, seed: int, tokens: int, length: int) -> Iterator[torch.Tensor]:
    """Batches without end, each int64 [2, B, T]: inputs and targets, with B * T = ``tokens``.

    Args:
        tokenizer: of the corpus.
        seed: of the corpus.
        tokens: in each batch; a multiple of ``length``.
        length: of the longest rows; most rows are half as long.
    """
    documents = (encode(tokenizer, document) for document in corpus.documents(seed))
    step = 0
    while True:
        width = length if step % LONG_EVERY == 0 else length // 2
        batch = [_row(documents, width) for _ in range(tokens // width)]
        yield torch.tensor(batch).transpose(0, 1).contiguous()
        step += 1


def _row(
    documents: Iterator[tuple[list[int], list[bool]]], width: int
) -> tuple[list[int], list[int]]:
    """One row of inputs and targets; the last document is cut where the row ends."""
    ids: list[int] = []
    learnt: list[bool] = []
    while len(ids) <= width:
        more_ids, more_learnt = next(documents)
        ids += more_ids
        learnt += more_learnt
    pairs = zip(ids[1 : width + 1], learnt[1 : width + 1], strict=True)
    return ids[:width], [token if keep else IGNORED for token, keep in pairs]
