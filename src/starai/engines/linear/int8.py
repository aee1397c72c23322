"""Weights as 8-bit integers with one scale for each output; inputs are rounded likewise.

``W[n, k] = weight[n, k] * scale[n]``, codes -127 to 127. Each input row gets a scale of its own
when it comes ("dynamic" quantisation), so that the products are sums of integers: exact, and the
same whatever else is in the batch.
"""

from __future__ import annotations

from typing import ClassVar, Final, Self

import torch
from torch import Tensor

from starai.engines.linear.base import ROWS_AT_ONCE, Linear
from starai.engines.linear.kernels import linear_int8

_CODE_MAX: Final = 127
#: Keeps rows of zeros from dividing by zero; far below any weight.
_SCALE_MIN: Final = 1e-30


class Int8Linear(Linear):
    """Symmetric int8 for each output channel; ``weight`` int8 [N, K], ``scale`` float32 [N]."""

    kind: ClassVar[str] = "int8"
    scale: Tensor

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Round floats [N, K] to codes."""
        count, width = weight.shape
        codes = torch.empty((count, width), dtype=torch.int8, device=weight.device)
        scale = torch.empty(count, dtype=torch.float32, device=weight.device)
        for begin in range(0, count, ROWS_AT_ONCE):
            rows = weight[begin : begin + ROWS_AT_ONCE].detach().float()
            step = rows.abs().amax(dim=1).div_(_CODE_MAX).clamp_min_(_SCALE_MIN)
            scale[begin : begin + ROWS_AT_ONCE] = step
            # Out of range only by the division's own rounding.
            rounded = (rows / step[:, None]).round_().clamp_(-_CODE_MAX, _CODE_MAX)
            codes[begin : begin + ROWS_AT_ONCE] = rounded.to(torch.int8)
        return cls(codes, scale, bias)

    def multiply(self, rows: Tensor) -> Tensor:
        """See `Linear.multiply`."""
        return linear_int8(rows, self.weight, self.scale, self.bias)

    def rows(self, ids: Tensor) -> Tensor:
        """See `Linear.rows`."""
        return self.weight[ids].float() * self.scale[ids, None]
