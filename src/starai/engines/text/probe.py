"""Finds out whether a model is computed rightly by the packed attention, before it serves anyone.

Some architectures never call a registered attention function (bloom, falcon), keep state outside
of it (Mamba, linear attention) or hide masks from it (llama4's chunks). transformers then answers
wrongly without a word, so every model is compared with transformers' own eager attention once.
Knows nothing about requests.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from starai.core.errors import ModelFileRefused
from starai.engines.text.attention import NAME, Pass, Span
from starai.engines.text.forward import forward
from starai.engines.text.pool import KeyValuePool

#: Two sequences in two passes: prompts side by side, then a piece with a past beside one token;
#: in small blocks, out of order.
_LENGTHS: Final = (7, 4)
_FIRST_PASS: Final = (5, 3)
_BLOCK_TOKENS: Final = 2
_TABLES: Final = ((4, 1, 0, 5), (3, 2))
#: Largest difference of logits, relative to the largest logit. A wrong mask is off by 0.1 to 1.
_TOLERANCE: Final = {torch.float32: 1e-3, torch.bfloat16: 6e-2}
_ATTENTION_KINDS: Final = frozenset({"full_attention", "sliding_attention"})


@torch.inference_mode()
def probe(model: Any, present: range | None = None) -> dict[int, int | None]:
    """Check that packed and eager attention agree; returns each layer's sliding window.

    Only the layers ``present`` are looked at, where a model is there in part.

    Raises:
        ModelFileRefused: they differ, or the model cannot run here at all; says why.
    """
    name = type(model).__name__
    config = model.config.get_text_config()
    layers = range(config.num_hidden_layers) if present is None else present
    kinds = list(getattr(config, "layer_types", None) or ())
    strange = set(kinds) - _ATTENTION_KINDS
    if strange:
        raise ModelFileRefused(f"{name}: layers of kind {min(strange)!r} are not supported")
    sequences = [_some_ids(length, config.vocab_size) for length in _LENGTHS]
    pool = KeyValuePool(sum(map(len, _TABLES)), _BLOCK_TOKENS)
    try:
        expected = _eager(model, sequences)
        found, run = _packed(model, sequences, pool)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelFileRefused(f"{name} does not run here: {str(error)[:200]}") from error
    if sorted(run.windows) != list(layers):
        raise ModelFileRefused(
            f"{name}: {len(run.windows)} of {len(layers)} layers use the attention interface; the "
            "others would be wrong"
        )
    windowless = [i for i in run.windows if kinds and "sliding" in kinds[i] and not run.windows[i]]
    if windowless:
        raise ModelFileRefused(f"{name}: layer {windowless[0]} does not tell its sliding window")
    if not bool(torch.isfinite(expected).all()):
        raise ModelFileRefused(f"{name}: its logits are not numbers; the weights are damaged")
    off = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not off <= _TOLERANCE.get(model.dtype, 1e-3):
        raise ModelFileRefused(
            f"{name}: packed attention is off by {off:.2g}; it keeps state that cannot be packed"
        )
    return run.windows


@torch.inference_mode()
def agrees(model: Any) -> bool:
    """Whether the model's logits are the same when whole layers run natively."""
    sequences = [
        _some_ids(length, model.config.get_text_config().vocab_size) for length in _LENGTHS
    ]
    pool = KeyValuePool(sum(map(len, _TABLES)))
    expected, _ = _packed(model, sequences, pool, native=False)
    found, _ = _packed(model, sequences, pool, native=True)
    off = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    return off <= _TOLERANCE.get(model.dtype, 1e-3)


def _some_ids(count: int, vocab_size: int) -> list[int]:
    return [(7919 * n + 13 * count) % vocab_size for n in range(count)]


def _eager(model: Any, sequences: list[list[int]]) -> Tensor:
    model.set_attn_implementation("eager")
    try:
        rows = [
            model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
            for ids in sequences
        ]
    finally:
        model.set_attn_implementation(NAME)
    return torch.cat([row[first:] for row, first in zip(rows, _FIRST_PASS, strict=True)]).float()


def _packed(
    model: Any, sequences: list[list[int]], pool: KeyValuePool, *, native: bool = False
) -> tuple[Tensor, Pass]:
    heads = [id_ for ids, n in zip(sequences, _FIRST_PASS, strict=True) for id_ in ids[:n]]
    spans = [Span(table, 0, first) for table, first in zip(_TABLES, _FIRST_PASS, strict=True)]
    begun = Pass(pool, spans, native=native)
    forward(model, begun, heads, [0])
    tails = [id_ for ids, n in zip(sequences, _FIRST_PASS, strict=True) for id_ in ids[n:]]
    spans = [
        Span(table, first, len(ids) - first)
        for table, ids, first in zip(_TABLES, sequences, _FIRST_PASS, strict=True)
    ]
    run = Pass(pool, spans, native=native)
    return forward(model, run, tails, list(range(len(tails)))).float(), run
