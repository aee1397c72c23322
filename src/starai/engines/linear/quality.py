"""How well a model predicts a text: perplexity, to be compared before and after quantising."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit

from starai.core.errors import ConfigurationRefused

#: The Frog-Prince (Grimm; translated by E. Taylor and M. Edwardes, in the public domain): a text
#: that models of any size can follow a little.
SAMPLE: Final = Path(__file__).parent / "sample.txt"
#: Tokens of a piece, which is what a token can look back on at most.
_WINDOW_TOKENS: Final = 512
#: Called with how many tokens are done.
Progress = Callable[[int], None]


def windows_of(ids: Sequence[int], begin: int | None, context: int) -> list[list[int]]:
    """Cut a text's ids into pieces, each behind the model's begin token if it has one.

    Raises:
        ConfigurationRefused: there is nothing to predict.
    """
    head = [] if begin is None else [begin]
    rest = list(ids[1:] if head and list(ids[:1]) == head else ids)
    size = min(_WINDOW_TOKENS, context) - len(head)
    pieces = [head + rest[at : at + size] for at in range(0, len(rest), max(1, size))]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise ConfigurationRefused("the text is too short to measure anything: give a longer one")
    return pieces


@torch.inference_mode()
def perplexity(
    model: Any, windows: Sequence[Sequence[int]], progress: Progress | None = None
) -> float:
    """``exp`` of the mean negative log-likelihood of all tokens but each window's first.

    Sums are made in float64. The model's attention is transformers' plain one while this runs.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    total, count = 0.0, 0
    try:
        for window in windows:
            ids = torch.tensor([list(window)], device=model.device)
            logits = model(ids, use_cache=False).logits[0, :-1].float()
            total += float(F.cross_entropy(logits, ids[0, 1:], reduction="none").double().sum())
            count += len(window) - 1
            if progress is not None:
                progress(len(window))
    finally:
        model.set_attn_implementation(before)
    return math.exp(min(total / count, 700.0))
