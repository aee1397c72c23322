"""The embedding of a model whose output layer has the same weight: looked up in that one copy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from starai.engines.linear.base import Linear


class TiedEmbedding(nn.Module):
    """Rows of the output layer, dequantised as they are looked up."""

    def __init__(self, head: Linear, dtype: torch.dtype, multiplier: float) -> None:
        """Look up in ``head``; results have ``dtype`` and are multiplied (Gemma's habit)."""
        super().__init__()
        # In a list: the layer is a submodule where it stands, and must not be counted twice.
        self._head = [head]
        self._dtype = dtype
        self._multiplier = multiplier
        self.num_embeddings = head.out_features
        self.embedding_dim = head.in_features

    @property
    def head(self) -> Linear:
        """The one copy of the weight."""
        return self._head[0]

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [...] to vectors [..., width]."""
        found = self.head.rows(ids.reshape(-1)).to(self._dtype)
        if self._multiplier != 1.0:
            found = found * self._multiplier
        return found.view(*ids.shape, self.embedding_dim)


def multiplier_of(embedding: nn.Module) -> float:
    """What an embedding multiplies its rows by."""
    scale = getattr(embedding, "embed_scale", 1.0)
    return float(scale)
