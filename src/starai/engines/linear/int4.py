"""Weights as 4-bit integers, 32 of them to a scale.

``W[n, k] = (code - 8) * scale[n, k // 32]``, codes 0 to 15: the value grid of GGUF's Q4_0
(github.com/ggml-org/ggml, ggml-quants.c), so that such files are taken as they are.
"""

from __future__ import annotations

from typing import ClassVar, Final, Self

import torch
from torch import Tensor

from starai.engines.linear.base import ROWS_AT_ONCE, Linear
from starai.engines.linear.kernels import GROUP, ZERO, dequantised_int4, linear_int4
from starai.engines.native.linear import pack_int4, unpack_int4

_CODE_MAX: Final = 15
#: Weights that are fitted at once: what is made of them stays in the cache.
_ELEMENTS_AT_ONCE: Final = 1 << 18
#: Steps that are tried, as parts of the one that takes the largest weight to code 0. More of them
#: gain under half a percent of squared error (Gaussian and Laplacian weights).
_STRETCHES: Final = (1.14, 1.1, 1.05, 1.0, 0.95, 0.9, 0.85)


class Int4Linear(Linear):
    """Symmetric int4 in groups; ``weight`` uint8 [N, K/2] packed, ``scale`` float16 [N, K/32]."""

    kind: ClassVar[str] = "int4"
    scale: Tensor

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Find codes and scales of floats [N, K] that lie closest; K is a multiple of 32.

        Raises:
            ValueError: K is not.
        """
        if weight.shape[1] % GROUP:
            raise ValueError(f"int4 keeps groups of {GROUP}; a row of {weight.shape[1]} has none")
        few = max(1, _ELEMENTS_AT_ONCE // weight.shape[1])
        parts = [_quantised(rows.detach().float()) for rows in torch.split(weight, few)]
        return cls.from_codes(
            torch.cat([codes for codes, _ in parts]), torch.cat([scale for _, scale in parts]), bias
        )

    @classmethod
    def from_codes(cls, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Self:
        """Take codes 0 to 15 (uint8 [N, K]) and their scales (float16 [N, K/32])."""
        packed = torch.cat([pack_int4(rows) for rows in torch.split(codes, ROWS_AT_ONCE)])
        return cls(packed, scale, bias)

    def codes(self) -> Tensor:
        """The codes, one a byte: uint8 [N, K]."""
        return unpack_int4(self.weight)

    def multiply(self, rows: Tensor) -> Tensor:
        """See `Linear.multiply`."""
        return linear_int4(rows, self.weight, self.scale, self.bias)

    def rows(self, ids: Tensor) -> Tensor:
        """See `Linear.rows`."""
        return dequantised_int4(self.weight[ids], self.scale[ids])

    def _width(self) -> int:
        return 2 * int(self.weight.shape[1])


def _quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [n, K] and scales float16 [n, K/32] of float32 rows, least squared error tried.

    Each candidate takes a step near the one that maps a group's largest weight to code 0 (which
    reaches one step further than 15), rounds, and fits the scale to the codes by least squares.
    """
    groups = rows.view(-1, GROUP)
    at = groups.abs().argmax(dim=1, keepdim=True)
    full = groups.gather(1, at) / -ZERO
    inverse = torch.where(full == 0, 0.0, 1.0 / full)
    best = torch.zeros_like(full)
    best_scale = torch.zeros_like(full)
    best_gain = torch.full_like(full, -1.0)
    for stretch in _STRETCHES:
        steps = _steps(groups, inverse / stretch)
        energy = steps.square().sum(1, keepdim=True)
        product = (groups * steps).sum(1, keepdim=True)
        scale = (product / energy.clamp_min(1.0)).to(torch.float16).float()
        # How far the squared error lies below that of zeros.
        gain = scale * (2 * product - scale * energy)
        better = gain > best_gain
        best_gain = torch.where(better, gain, best_gain)
        best_scale = torch.where(better, scale, best_scale)
        best = torch.where(better, inverse / stretch, best)
    codes = _steps(groups, best).add_(ZERO).to(torch.uint8)
    return codes.view(rows.shape), best_scale.to(torch.float16).view(rows.shape[0], -1)


def _steps(groups: Tensor, inverse: Tensor) -> Tensor:
    return (groups * inverse).round_().clamp_(-ZERO, _CODE_MAX - ZERO)
