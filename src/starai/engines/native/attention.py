"""Attention over paged keys and values on the CPU: what is new is written, then rows attend.

The KV pool of a layer is two tensors, keys and values, [kv heads, blocks, 16, head size], float32
or bfloat16. A pass packs rows of many sequences side by side; a *span* is some rows of one
sequence, whose row of the table names the blocks that hold it in order. Knows nothing of who owns
a block. There is no fallback here: whoever calls has asked `library.load` first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from starai.core.errors import InternalFault
from starai.engines.native import library
from starai.engines.native.library import COUNT, POINTER
from starai.engines.native.linear import room

#: Tokens of a block; the kernels are written for it.
BLOCK_TOKENS: Final = 16
#: Numbers of `Dtype` in common.h.
DTYPES: Final = {torch.float32: 0, torch.bfloat16: 1}
#: ctypes of a pool and of spans, as the kernels take them.
POOL: Final = (POINTER, POINTER, COUNT, COUNT, COUNT, COUNT, COUNT)
SPANS: Final = (POINTER, POINTER, POINTER, POINTER, COUNT, COUNT, COUNT)

_Numbers = tuple[int | None, ...]


def write_kv(  # noqa: PLR0917 - the order of the kernel's interface
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    starts: Tensor,
    counts: Tensor,
) -> None:
    """Put the new rows' keys and values into their places in the pool, in the pool's type.

    Args:
        k: [T, kv heads, D], rows may lie apart (a slice of a fused projection).
        v: [T, kv heads, Dv] of k's type.
        keys: [kv heads, blocks, 16, D], float32 or bfloat16.
        values: [kv heads, blocks, 16, Dv] of the same type.
        tables: int32 [S, blocks of the longest]; row s belongs to span s.
        starts: int32 [S], the place in its sequence of a span's first row.
        counts: int32 [S], rows of each span; they add up to T.

    Raises:
        InternalFault: shapes or types do not fit, or a table leads outside the pool.
    """
    fits = k.shape[1:] == (keys.shape[0], keys.shape[3]) and k.dtype == v.dtype
    if not (fits and v.shape[1:] == (values.shape[0], values.shape[3])):
        raise InternalFault(f"write_kv: {tuple(k.shape)} into {tuple(keys.shape)}")
    reason = _kernels()[0](
        *rows_of(k),
        *rows_of(v),
        DTYPES[k.dtype],
        *pool_of(keys, values),
        *spans_of(tables, starts, counts, None, len(k)),
    )
    _refuse("write_kv", reason)


def paged_attention(  # noqa: PLR0913, PLR0917 - the order of the kernel's interface
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    starts: Tensor,
    counts: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    limits: Tensor | None = None,
) -> Tensor:
    """Attention of every row to the tokens of its sequence up to and including its own.

    A row's result, [T, heads, Dv], is the same for any threads, neighbours and cuts of a prompt.

    Args:
        q: [T, heads, D], float32 or bfloat16, rows may lie apart; heads a multiple of kv heads.
        keys: [kv heads, blocks, 16, D]; see `write_kv` for this and the next four.
        values: [kv heads, blocks, 16, Dv].
        tables: int32 [S, ...].
        starts: int32 [S].
        counts: int32 [S].
        scale: factor of the scores.
        window: how many tokens a row sees, itself included; 0 is all. No block that none sees is
            looked at, nor its entry of the table.
        softcap: c of ``c * tanh(score / c)``; 0 is none.
        sinks: float32 [heads], scores of a token without value (GPT-OSS).
        out: [T, heads, Dv] of q's type, to be overwritten.
        lse: float32 [T, heads], receives the logarithm of the softmax's denominator, sinks
            included; minus infinity for a row that sees nothing (whose result is zero).
        limits: int32 [T], how many tokens each row sees, in place of causality.

    Raises:
        InternalFault: shapes or types do not fit, or a table leads outside the pool.
    """
    rows, heads, dim = q.shape
    if dim != keys.shape[3] or heads % keys.shape[0]:
        raise InternalFault(f"paged_attention: {tuple(q.shape)} on {tuple(keys.shape)}")
    out = room(out, (rows, heads, values.shape[3]), q)
    reason = _kernels()[1](
        *rows_of(q),
        heads,
        DTYPES[q.dtype],
        *pool_of(keys, values),
        *spans_of(tables, starts, counts, limits, rows),
        scale,
        window,
        softcap,
        _address(sinks, (heads,)),
        out.data_ptr(),
        _address(lse, (rows, heads)),
        library.threads(),
    )
    _refuse("paged_attention", reason)
    return out


def rows_of(x: Tensor) -> tuple[int, int]:
    """Address and distance of rows [T, heads, D] whose heads lie side by side."""
    stride, across, along = x.stride()
    if along != 1 or across != x.shape[2]:
        raise InternalFault(f"rows of heads must lie side by side, strides are {x.stride()}")
    return x.data_ptr(), stride


def pool_of(keys: Tensor, values: Tensor) -> _Numbers:
    """A layer's pool as the kernels take it.

    Raises:
        InternalFault: it is none.
    """
    heads, blocks, tokens, dim = keys.shape
    if (
        values.shape[:3] != (heads, blocks, tokens)
        or tokens != BLOCK_TOKENS
        or keys.dtype != values.dtype
        or not (keys.is_contiguous() and values.is_contiguous())
    ):
        raise InternalFault(f"no pool: keys {tuple(keys.shape)}, values {tuple(values.shape)}")
    addresses = keys.data_ptr(), values.data_ptr()
    return *addresses, blocks, heads, dim, values.shape[3], DTYPES[keys.dtype]


def spans_of(
    tables: Tensor, starts: Tensor, counts: Tensor, limits: Tensor | None, rows: int
) -> _Numbers:
    """Spans as the kernels take them.

    Raises:
        InternalFault: a shape or type is not what it must be.
    """
    spans, blocks = tables.shape
    if tables.dtype != torch.int32 or not tables.is_contiguous():
        raise InternalFault("tables must be int32 without gaps")
    return (
        tables.data_ptr(),
        _address(starts, (spans,), torch.int32),
        _address(counts, (spans,), torch.int32),
        _address(limits, (rows,), torch.int32),
        spans,
        blocks,
        rows,
    )


def _refuse(kernel: str, reason: bytes | None) -> None:
    if reason:
        raise InternalFault(f"{kernel}: {reason.decode()}")


def _address(
    x: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> int | None:
    if x is None:
        return None
    if x.shape != shape or x.dtype != dtype or not x.is_contiguous():
        raise InternalFault(f"need {dtype} {shape} without gaps, got {x.dtype} {tuple(x.shape)}")
    return x.data_ptr()


@cache
def _kernels() -> tuple[Callable[..., Any], Callable[..., Any]]:
    write = library.function(
        "starai_write_kv",
        *(POINTER, COUNT, POINTER, COUNT, COUNT),
        *POOL,
        *SPANS,
        returns=ctypes.c_char_p,
    )
    attend = library.function(
        "starai_paged_attention",
        *(POINTER, COUNT, COUNT, COUNT),
        *POOL,
        *SPANS,
        *(ctypes.c_double, COUNT, ctypes.c_double, POINTER, POINTER, POINTER, COUNT),
        returns=ctypes.c_char_p,
    )
    if write is None or attend is None:
        raise InternalFault(f"there are no native kernels: {library.why_not()}")
    return write, attend
