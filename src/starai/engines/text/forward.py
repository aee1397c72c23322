"""A forward pass of a transformers model over packed sequences.

Knows how to call the model, and nothing about requests, schedules or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from starai.engines.text.attention import CURRENT, Pass


def forward(model: Any, run: Pass, packed: Sequence[int], keep: Sequence[int]) -> Tensor:
    """One packed forward pass.

    Args:
        model: a causal language model with the packed attention.
        run: the spans of ``packed``.
        packed: the token ids of all spans, one after another.
        keep: rows of ``packed`` whose logits are wanted, maybe none.

    Returns:
        Logits [rows, vocabulary].
    """
    at = model.device
    token = CURRENT.set(run)
    try:
        logits: Tensor = model(
            input_ids=torch.tensor([packed], device=at),
            position_ids=torch.tensor([run.positions], device=at),
            use_cache=False,
            logits_to_keep=torch.tensor(keep, dtype=torch.int64, device=at),
        ).logits[0]
    finally:
        CURRENT.reset(token)
    return logits
