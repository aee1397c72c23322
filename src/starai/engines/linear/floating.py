"""Weights as floats: bfloat16, or float32 in small models."""

from __future__ import annotations

from typing import ClassVar, Self

from torch import Tensor

from starai.engines.linear.base import Linear
from starai.engines.linear.kernels import linear


class FloatLinear(Linear):
    """The weight in the model's own type; what it computes is what ``nn.Linear`` computes."""

    kind: ClassVar[str] = "bf16"

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Keep ``weight`` itself."""
        return cls(weight.detach().contiguous(), None, bias)

    def multiply(self, rows: Tensor) -> Tensor:
        """See `Linear.multiply`."""
        return linear(rows, self.weight, self.bias)

    def rows(self, ids: Tensor) -> Tensor:
        """See `Linear.rows`."""
        return self.weight[ids].float()
