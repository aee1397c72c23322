"""Small products whose results are known: a library that gets them wrong is not used.

A compiler or a CPU may be broken in ways that only wrong numbers show. Costs a few milliseconds
when the library is loaded. Knows nothing about who builds or loads it.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

#: No multiple of what any kernel does at a time; and rows for each way of doing them.
_COLUMNS: Final = 544
_OUTPUTS: Final = 13
_ROWS: Final = (1, 3, 16)
_NAMES: Final = ("float32", "bfloat16", "int8", "int4")
#: Largest difference relative to the largest result: rounding of float32, and of bfloat16.
_TOLERANCE: Final = (1e-5, 1e-2, 1e-5, 1e-5)


def complaint(library: ctypes.CDLL) -> str:
    """What the library gets wrong; empty when nothing.

    Args:
        library: with the symbol ``starai_linear`` of linear.cpp.

    Raises:
        AttributeError: it has no such symbol.
    """
    call = library.starai_linear
    call.argtypes = (
        *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),
        *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64),
        *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64),
    )
    call.restype = None
    for rows in _ROWS:
        for kind, name in enumerate(_NAMES):
            found, expected = _product(call, kind, rows)
            off = float(np.abs(found - expected).max() / np.abs(expected).max())
            if not off <= _TOLERANCE[kind]:
                return f"the compiled library computes wrongly ({name}, {rows} rows: {off:.1g})"
    return ""


def _product(call: Any, kind: int, rows: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The library's product of some numbers by weights of a kind, and the right one."""
    scale: NDArray[Any] | None = None
    x: NDArray[Any] = _some((rows, _COLUMNS))
    weights: NDArray[Any] = _some((_OUTPUTS, _COLUMNS))
    operand, stored, codes = x, weights, np.round(weights * 100)
    if kind == 1:
        x, weights = _truncated(x), _truncated(weights)
        operand, stored = _upper_half(x), _upper_half(weights)
    elif kind == 2:
        stored, scale = codes.astype(np.int8), _some((_OUTPUTS,)) + np.float32(2)
        x, weights = _rounded(x), codes * scale[:, None]
    elif kind == 3:
        nibbles = codes.astype(np.int64) % 16
        stored, scale = _packed(nibbles), (_some((_OUTPUTS, _COLUMNS // 32)) + 2).astype(np.float16)
        x, weights = _rounded(x), (nibbles - 8) * np.repeat(scale.astype(np.float64), 32, axis=1)
    expected = x.astype(np.float64) @ weights.astype(np.float64).T
    found = np.zeros((rows, _OUTPUTS), np.uint16 if kind == 1 else np.float32)
    scale_at = None if scale is None else scale.ctypes.data
    call(
        *(operand.ctypes.data, int(kind == 1), rows, _COLUMNS),
        *(stored.ctypes.data, kind, scale_at, _OUTPUTS),
        *(None, 0, found.ctypes.data, 1),
    )
    if kind == 1:
        return (found.astype(np.uint32) << 16).view(np.float32), expected
    return found, expected


def _some(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Numbers between -1 and 1 without a pattern that a wrong order would keep."""
    return np.sin(np.arange(1, np.prod(shape) + 1) ** 2 % 8191).astype(np.float32).reshape(shape)


def _truncated(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _upper_half(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _rounded(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """What becomes of activations: whole multiples of a row's largest, divided by 127."""
    most = np.abs(x).max(axis=1, keepdims=True)
    whole = np.rint(x * (np.float32(127) / most))
    rounded: NDArray[np.float64] = whole * (most / np.float32(127)).astype(np.float64)
    return rounded


def _packed(nibbles: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The order that `starai.engines.native.linear.pack_int4` documents."""
    parts = []
    for first in range(0, nibbles.shape[1], 512):
        part = nibbles[:, first : first + 512]
        low, high = part.reshape(len(part), -1, 2, 4, 4).transpose(2, 0, 3, 1, 4)
        parts.append((low | high << 4).reshape(len(part), -1))
    return np.concatenate(parts, axis=1).astype(np.uint8)
