"""Linear layers on row-major weights: float32, bfloat16, int8 and int4, by C++ or else by torch.

Weights are the very tensors torch uses: no second copy. int8 and int4 quantise each row of the
activations to int8 while running (symmetric, one scale a row) and add up in integers, so a row's
result does not depend on the rows beside it. Knows nothing about models.

``pack_int4`` orders the nibbles so that one 64-byte load holds four weights of each of 16 groups,
and a lane sums one group: within a chunk of 512 columns (fewer at the end of a row) of G groups,
byte ``t * 4G + 4g + i`` holds weights ``32g + 4t + i`` (low) and ``32g + 16 + 4t + i`` (high).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from starai.core.errors import InternalFault
from starai.engines.native import library
from starai.engines.native.library import COUNT, POINTER, set_threads

__all__ = ["linear", "linear_int4", "linear_int8", "pack_int4", "set_threads", "unpack_int4"]

#: Columns of one int4 scale, and columns of a full chunk of the packed order.
GROUP: Final = 32
_CHUNK: Final = 512
#: Numbers of `Dtype` and `Kind` in common.h.
DTYPES: Final = {torch.float32: 0, torch.bfloat16: 1}
FLOAT32, BFLOAT16, INT8, INT4 = range(4)
_STORED: Final = (torch.float32, torch.bfloat16, torch.int8, torch.uint8)
_SCALES: Final = {INT8: torch.float32, INT4: torch.float16}
#: Columns whose products of int8 by int8 add up within 32 bits: 127 * 128 * 2^17 < 2^31.
INT8_COLUMNS_MAX: Final = 1 << 17

#: Rows from which torch multiplies floats faster than our kernels do. On AVX-512 it never does
#: (Zen 4, 256 rows, one thread: bfloat16 218 against 207 GFLOP/s, float32 102 against 88); it does
#: where there are plain loops only, and where only oneDNN uses the matrix unit.
_NEVER: Final = 1 << 62
_TORCH_ROWS_PLAIN: Final = 4
_TORCH_ROWS_AMX: Final = 32


class Weight(ctypes.Structure):
    """A weight matrix as C++ sees it; `starai::Weight` in common.h, field for field."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("bias_dtype", ctypes.c_int32),
    )


class _Kernel:
    """The C function once it was looked up, and from how many rows torch is faster."""

    call: Callable[..., Any] | None = None
    looked_up: bool = False
    torch_rows: tuple[int, int] = (_NEVER, _NEVER)


def _look_up() -> Callable[..., Any] | None:
    _Kernel.call = library.function(
        "starai_linear",
        *(POINTER, COUNT, COUNT, COUNT),
        *(POINTER, COUNT, POINTER, COUNT),
        *(POINTER, COUNT, POINTER, COUNT),
    )
    abilities = library.function("starai_abilities", returns=ctypes.c_int64)
    if abilities is not None:
        wide, amx = abilities() & 1, abilities() & 2
        rows = _NEVER if wide else _TORCH_ROWS_PLAIN
        _Kernel.torch_rows = (rows, _TORCH_ROWS_AMX if amx else rows)
    _Kernel.looked_up = True
    return _Kernel.call


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """``x @ weight.T + bias`` in float32 or bfloat16, summed in float32.

    Args:
        x: [M, K].
        weight: [N, K] of the same type.
        bias: [N], float32 or bfloat16.
        out: [M, N] of x's type, to be overwritten.

    Returns:
        [M, N] of x's type.
    """
    call = _Kernel.call if _Kernel.looked_up else _look_up()
    kind = DTYPES[weight.dtype]
    if call is None or len(x) >= _Kernel.torch_rows[kind]:
        y = functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
        return y if out is None else out.copy_(y)
    return _run(call, x, weight, kind, None, bias, out)


def linear_int8(
    x: Tensor,
    weight_q: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``x @ (weight_q * scale).T + bias`` with x quantised to int8 row by row.

    Args:
        x: [M, K] float32 or bfloat16.
        weight_q: [N, K] int8.
        scale: [N] float32.
        bias: [N], float32 or bfloat16.
        out: [M, N] of x's type, to be overwritten.

    Returns:
        [M, N] of x's type; each row the same, bit for bit, whatever M.
    """
    call = _Kernel.call if _Kernel.looked_up else _look_up()
    if call is None:
        return _by_torch(x, weight_q.float() * scale[:, None], bias, out)
    return _run(call, x, weight_q, INT8, scale, bias, out)


def linear_int4(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``x @ ((q - 8) * scale).T + bias`` with x quantised to int8 row by row.

    Args:
        x: [M, K] float32 or bfloat16, K a multiple of 32.
        packed: [N, K // 2] uint8, from `pack_int4`.
        scale: [N, K // 32] float16.
        bias: [N], float32 or bfloat16.
        out: [M, N] of x's type, to be overwritten.

    Returns:
        [M, N] of x's type; each row the same, bit for bit, whatever M.
    """
    call = _Kernel.call if _Kernel.looked_up else _look_up()
    if call is None:
        weight = (unpack_int4(packed).float() - 8) * scale.float().repeat_interleave(GROUP, 1)
        return _by_torch(x, weight, bias, out)
    return _run(call, x, packed, INT4, scale, bias, out)


def _run(  # noqa: PLR0917 - on the path of every layer; keywords cost time
    call: Callable[..., Any],
    x: Tensor,
    weight: Tensor,
    kind: int,
    scale: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    m, k = x.shape
    n, columns = weight.shape
    dtype = DTYPES[x.dtype]
    if (
        (columns != k if kind != INT4 else 2 * columns != k or k % GROUP)
        or not 0 < k <= (INT8_COLUMNS_MAX if kind == INT8 else k)
        or weight.dtype is not _STORED[kind]
        or (kind < INT8 and dtype != kind)
        or (scale is not None and not _scales(scale, kind, n, k))
        or (bias is not None and not (bias.numel() == n and bias.is_contiguous()))
        or not (x.is_contiguous() and weight.is_contiguous())
    ):
        raise InternalFault(f"linear: {x.dtype} {tuple(x.shape)} by {tuple(weight.shape)}")
    y = room(out, (m, n), x)
    call(
        x.data_ptr(),
        dtype,
        m,
        k,
        weight.data_ptr(),
        kind,
        None if scale is None else scale.data_ptr(),
        n,
        None if bias is None else bias.data_ptr(),
        0 if bias is None else DTYPES[bias.dtype],
        y.data_ptr(),
        library.threads(),
    )
    return y


def room(out: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Where a kernel writes its result: new memory, or ``out`` if it fits.

    Raises:
        InternalFault: it does not; kernels do not ask how large memory is.
    """
    if out is None:
        return like.new_empty(shape)
    if out.shape != shape or out.dtype is not like.dtype or not out.is_contiguous():
        raise InternalFault(f"{like.dtype} {shape} do not go into {out.dtype} {tuple(out.shape)}")
    return out


def _scales(scale: Tensor, kind: int, n: int, k: int) -> bool:
    count = n if kind == INT8 else n * (k // GROUP)
    return scale.numel() == count and scale.dtype is _SCALES[kind] and scale.is_contiguous()


def _by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    """What the integer kernels compute, without them; slow."""
    rows = x.float()
    step = rows.abs().amax(1, keepdim=True) / 127
    rounded = torch.where(step > 0, rows / step, 0).round()
    y = functional.linear(rounded, weight) * step
    y = (y if bias is None else y + bias.float()).to(x.dtype)
    return y if out is None else out.copy_(y)


def pack_int4(q: Tensor) -> Tensor:
    """Two weights a byte, in the order that the module's docstring gives.

    Args:
        q: [N, K] uint8 of 0 to 15, K a multiple of 32.

    Returns:
        [N, K // 2] uint8.
    """
    parts = []
    for first in range(0, q.shape[1], _CHUNK):
        part = q[:, first : first + _CHUNK]
        low, high = part.reshape(len(q), -1, 2, 4, 4).permute(2, 0, 3, 1, 4).unbind()
        parts.append((low | high << 4).reshape(len(q), -1))
    return torch.cat(parts, 1)


def unpack_int4(packed: Tensor) -> Tensor:
    """The [N, K] weights of 0 to 15 that `pack_int4` made into [N, K // 2] bytes."""
    parts = []
    for first in range(0, packed.shape[1], _CHUNK // 2):
        part = packed[:, first : first + _CHUNK // 2]
        both = torch.stack((part & 15, part >> 4)).reshape(2, len(packed), 4, -1, 4)
        parts.append(both.permute(1, 3, 0, 2, 4).reshape(len(packed), -1))
    return torch.cat(parts, 1)
