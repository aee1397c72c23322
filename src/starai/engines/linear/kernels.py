"""The products that the layers are made of: by our compiled kernels, or by torch without them.

Both round the input rows of int8 and int4 to int8 and add up integers, so that machines with and
without a compiler give the same answers but for the last bits of the scaling. Knows nothing about
layers.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor

from starai.engines.native import library, linear as native

#: Weights that share a scale in int4.
GROUP: Final = native.GROUP
#: The int4 code that means zero.
ZERO: Final = 8
_INT8_MAX: Final = 127
#: Keeps rows of zeros from dividing by zero.
_SCALE_MIN: Final = 1e-30
#: Output rows whose floats exist at a time when int4 is multiplied without a kernel.
_PANEL_ROWS: Final = 1024
_NATIVE_TYPES: Final = (torch.float32, torch.bfloat16)


def _runs_native(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in _NATIVE_TYPES and library.load() is not None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x [M, K] @ weight[N, K]^T + bias``, all of one type."""
    if weight.dtype == x.dtype and _runs_native(x):
        return native.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def linear_int8(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """``x [M, K]`` times int8 codes [N, K] with one scale [N] each; result in the type of ``x``."""
    if _runs_native(x):
        return native.linear_int8(x, codes, scale, bias)
    if x.device.type != "cpu":
        product = F.linear(x, codes.to(x.dtype)).float() * scale
    else:
        rounded, step = _rounded(x)
        sums = torch._int_mm(rounded.to(torch.int8), codes.t())
        product = sums.float() * (step * scale)
    return (product if bias is None else product + bias.float()).to(x.dtype)


def linear_int4(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """``x [M, K]`` times packed int4 [N, K/2], scales [N, K/32]; result in the type of ``x``."""
    if _runs_native(x):
        return native.linear_int4(x, packed, scale, bias)
    rows, step = _rounded(x) if x.device.type == "cpu" else (x.float(), None)
    panels = zip(torch.split(packed, _PANEL_ROWS), torch.split(scale, _PANEL_ROWS), strict=True)
    product = torch.cat([rows @ dequantised_int4(*panel).t() for panel in panels], dim=1)
    product = product if step is None else product * step
    return (product if bias is None else product + bias.float()).to(x.dtype)


def dequantised_int4(packed: Tensor, scale: Tensor) -> Tensor:
    """Packed rows [n, K/2] with their scales [n, K/32] as float32 [n, K]."""
    codes = native.unpack_int4(packed)
    groups = codes.view(codes.shape[0], -1, GROUP).float() - ZERO
    return (groups * scale.float().unsqueeze(-1)).view(codes.shape)


def _rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as whole numbers of steps [M, K], and the steps [M, 1]."""
    rows = x.float()
    step = (rows.abs().amax(dim=1, keepdim=True) / _INT8_MAX).clamp_min_(_SCALE_MIN)
    return (rows / step).round_(), step
