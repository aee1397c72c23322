"""Attention over a part of the keys, and the exact sum of several parts.

Softmax attention over a split set of keys is a weighted mean of the parts' attentions, with weights
from their log-sum-exps (Milakov and Gimelshein: Online normalizer calculation for softmax, 2018;
Dao et al.: FlashAttention, 2022). The past and the present of a prompt chunk, the shards of Star
Attention and a sink all come together here. Knows nothing about blocks or sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Partial:
    """Attention [1, heads, rows, width] over some keys, with its log-sum-exp [1, heads, rows].

    ``lse`` is float32, the natural logarithm of the sum of exp(scores); -inf where a row saw none.
    """

    out: Tensor
    lse: Tensor


def merge(parts: Sequence[Partial]) -> Partial:
    """The attention over the union of the parts' keys.

    `torch.logaddexp` shifts by the maximum, so that no difference of the parts overflows.
    """
    merged = parts[0]
    for part in parts[1:]:
        lse = torch.logaddexp(merged.lse, part.lse)
        # A row that saw nothing in either part has -inf - -inf; it stays zero.
        left = torch.exp(merged.lse - lse).nan_to_num_(0.0).unsqueeze(-1)
        right = torch.exp(part.lse - lse).nan_to_num_(0.0).unsqueeze(-1)
        merged = Partial(merged.out.float() * left + part.out.float() * right, lse)
    return merged


def with_sinks(part: Partial, sinks: Tensor) -> Partial:
    """The same rows with a sink column [heads] in the softmax, which takes weight and gives none.

    The log-sum-exp stays that of the keys: parts must be merged before a sink is added.
    """
    kept = torch.sigmoid(part.lse - sinks.float().reshape(1, -1, 1)).unsqueeze(-1)
    return Partial(part.out.float() * kept, part.lse)


def attend_part(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    softcap: float | None = None,
) -> Partial:
    """Attention of queries [1, heads, rows, width] to keys and values [1, kv heads, keys, width].

    Args:
        q: queries; the number of heads is a multiple of the number of kv heads.
        k: keys.
        v: values; their width may differ from the keys' (multi-head latent attention).
        scaling: factor of the scores; None for width ** -0.5.
        causal: row i sees keys 0 to i; rows and keys are equally many.
        mask: added to the scores [rows, keys], in the queries' dtype.
        softcap: scores become ``softcap * tanh(scores / softcap)`` (Gemma 2).
    """
    if softcap is None and q.device.type == "cpu" and k.shape[2]:
        return _flash(q, k, v, scaling, causal=causal, mask=mask)
    return _written_out(q, k, v, scaling, causal=causal, mask=mask, softcap=softcap)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, *, causal: bool, mask: Tensor | None
) -> Partial:
    """The CPU's flash kernel: it wants equal widths, and says its log-sum-exp."""
    width = v.shape[3]
    if width != k.shape[3]:
        v = F.pad(v, (0, k.shape[3] - width))
    if mask is not None:
        mask = mask.expand(1, q.shape[1], *mask.shape[-2:])
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=mask, scale=scaling
    )
    return Partial(out[..., :width], lse)


def _written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    *,
    causal: bool,
    mask: Tensor | None,
    softcap: float | None,
) -> Partial:
    """For what no fused kernel offers: soft-capped scores, and a log-sum-exp on other devices."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q @ k.transpose(2, 3)).float()
    scores = scores * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if causal:
        rows, keys = scores.shape[-2:]
        later = torch.ones(rows, keys, dtype=torch.bool, device=q.device).triu_(1)
        scores = scores.masked_fill(later, -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1)).nan_to_num_(0.0)
    return Partial(weights.to(v.dtype) @ v, lse)
