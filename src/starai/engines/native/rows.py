"""What happens to single rows between linear layers, on the CPU: norms, gates and rotations.

All are computed in float32 and rounded once, which is closer to exact than modules that round
between their steps. Rows are independent. There is no fallback here: whoever calls has asked
`library.load` first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Literal

from torch import Tensor, float32

from starai.core.errors import InternalFault
from starai.engines.native import library
from starai.engines.native.attention import DTYPES, rows_of
from starai.engines.native.library import COUNT, POINTER
from starai.engines.native.linear import room

_NUMBER: Final = ctypes.c_double

Activation = Literal["silu", "gelu_tanh"]
#: Numbers of `Activation` in rows.h.
ACTIVATIONS: Final[dict[Activation, int]] = {"silu": 0, "gelu_tanh": 1}


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, out: Tensor | None = None
) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * (weight + offset)`` for each row (Zhang and Sennrich, 2019).

    Args:
        x: [M, K], float32 or bfloat16.
        weight: [K], float32 or bfloat16.
        eps: keeps a row of zeros from dividing by zero.
        offset: 1 where weights are kept as differences from one (Gemma), else 0.
        out: [M, K] of x's type, to be overwritten; may be x.

    Returns:
        [M, K] of x's type.
    """
    return _norm(None, x, weight, eps, offset, out)


def add_rms_norm(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float,
    offset: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """``residual += x`` in place, then the norm of the sum; see `rms_norm`."""
    if residual.shape != x.shape or residual.dtype != x.dtype or not residual.is_contiguous():
        raise InternalFault(f"add_rms_norm: {tuple(residual.shape)} and {tuple(x.shape)}")
    return _norm(residual, x, weight, eps, offset, out)


def qk_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> None:
    """`rms_norm` of each head of rows [T, heads, D] in place; rows may lie apart."""
    rows, heads, dim = x.shape
    if weight.shape != (dim,):
        raise InternalFault(f"qk_norm: {tuple(x.shape)} by {tuple(weight.shape)}")
    address, stride = rows_of(x)
    _kernels()[1](
        *(address, stride, rows, heads, dim, DTYPES[x.dtype]),
        *(weight.data_ptr(), DTYPES[weight.dtype], eps, offset, library.threads()),
    )


def gated(gate_up: Tensor, activation: Activation = "silu", out: Tensor | None = None) -> Tensor:
    """``activation(gate) * up`` of rows that hold gate and up side by side.

    Args:
        gate_up: [M, 2F], float32 or bfloat16.
        activation: "silu", or "gelu_tanh", the approximation of GELU by a hyperbolic tangent.
        out: [M, F] of the same type, to be overwritten.

    Returns:
        [M, F].
    """
    rows, both = gate_up.shape
    if both % 2 or not gate_up.is_contiguous():
        raise InternalFault(f"gated: {tuple(gate_up.shape)}, strides {gate_up.stride()}")
    out = room(out, (rows, both // 2), gate_up)
    _kernels()[2](
        *(gate_up.data_ptr(), rows, both // 2, DTYPES[gate_up.dtype], ACTIVATIONS[activation]),
        *(out.data_ptr(), library.threads()),
    )
    return out


def silu_mul(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """`gated` with SiLU, as in SwiGLU (Shazeer: GLU Variants Improve Transformer, 2020)."""
    return gated(gate_up, "silu", out)


def rotary(x: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """Rotary positions in place: the first components of each head, in halves (GPT-NeoX, Llama).

    Args:
        x: [T, heads, D], float32 or bfloat16; rows may lie apart.
        cosine: float32 [T, R], R <= D even: both halves, as transformers' models give them.
        sine: float32 [T, R].
    """
    rows, heads, dim = x.shape
    turned = cosine.shape[1]
    for angles in (cosine, sine):
        if angles.shape != (rows, turned) or angles.dtype != float32 or not angles.is_contiguous():
            raise InternalFault(f"rotary: angles {angles.dtype} {tuple(angles.shape)}")
    if turned > dim or turned % 2:
        raise InternalFault(f"rotary: {turned} of {dim} components")
    address, stride = rows_of(x)
    _kernels()[3](
        *(address, stride, rows, heads, dim, DTYPES[x.dtype]),
        *(cosine.data_ptr(), sine.data_ptr(), turned, library.threads()),
    )


def _norm(
    residual: Tensor | None,
    x: Tensor,
    weight: Tensor,
    eps: float,
    offset: float,
    out: Tensor | None,
) -> Tensor:
    rows, width = x.shape
    if weight.shape != (width,) or not x.is_contiguous():
        raise InternalFault(f"rms_norm: {tuple(x.shape)} by {tuple(weight.shape)}")
    out = room(out, (rows, width), x)
    _kernels()[0](
        *(None if residual is None else residual.data_ptr(), x.data_ptr(), weight.data_ptr()),
        *(rows, width, DTYPES[x.dtype], DTYPES[weight.dtype], eps, offset),
        *(out.data_ptr(), library.threads()),
    )
    return out


@cache
def _kernels() -> tuple[Callable[..., Any], ...]:
    rows = (COUNT, COUNT, COUNT)
    found = (
        library.function(
            "starai_rms_norm",
            *(POINTER, POINTER, POINTER, *rows, COUNT, _NUMBER, _NUMBER, POINTER, COUNT),
        ),
        library.function(
            "starai_head_norm",
            *(POINTER, COUNT, *rows, COUNT, POINTER, COUNT, _NUMBER, _NUMBER, COUNT),
        ),
        library.function("starai_gated", *(POINTER, *rows, COUNT, POINTER, COUNT)),
        library.function(
            "starai_rotary", *(POINTER, COUNT, *rows, COUNT, POINTER, POINTER, COUNT, COUNT)
        ),
    )
    kernels = tuple(each for each in found if each is not None)
    if len(kernels) < len(found):
        raise InternalFault(f"there are no native kernels: {library.why_not()}")
    return kernels
