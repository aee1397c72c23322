"""How GGUF keeps numbers: plain, or in blocks of small integers with a scale.

Layouts: github.com/ggml-org/ggml, ggml-common.h. Everything is decoded to float32; what StarAI
writes is encoded too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Block:
    """A type of tensors.

    Attributes:
        number: its number in the format.
        name: what llama.cpp calls it.
        elements: numbers in a block.
        num_bytes: bytes of a block.
        decode: bytes [blocks, num_bytes] to float32 [blocks, elements].
        encode: float32 [blocks, elements] to bytes; None for what is only read.
    """

    number: int
    name: str
    elements: int
    num_bytes: int
    decode: Callable[[Bytes], Floats]
    encode: Callable[[Floats], Bytes] | None = None


def scales(blocks: Bytes, at: int = 0) -> Floats:
    """The float16 at byte ``at`` of each block, as float32 [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def nibbles(blocks: Bytes, at: int, count: int) -> Bytes:
    """``count`` bytes from ``at`` as 4-bit codes: the low halves, then the high ones."""
    both = blocks[:, at : at + count]
    return np.concatenate([both & 15, both >> 4], axis=1)


def _plain(dtype: str) -> Callable[[Bytes], Floats]:
    return lambda blocks: blocks.view(dtype).astype(np.float32)


def _decode_bf16(blocks: Bytes) -> Floats:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _encode_bf16(values: Floats) -> Bytes:
    bits = values.astype(np.float32).view(np.uint32)
    # Round to nearest, ties to even.
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").view(np.uint8)


def _decode_q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * scales(blocks)


def _encode_q8_0(values: Floats) -> Bytes:
    step = (np.abs(values).max(axis=1, keepdims=True) / 127).astype("<f2")
    inverse = _inverse(step.astype(np.float32))
    codes = np.clip(np.rint(values * inverse), -127, 127).astype(np.int8)
    return np.concatenate([step.view(np.uint8), codes.view(np.uint8)], axis=1)


def _decode_q4_0(blocks: Bytes) -> Floats:
    return (nibbles(blocks, 2, 16).astype(np.float32) - 8) * scales(blocks)


def _encode_q4_0(values: Floats) -> Bytes:
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)
    step = (largest / -8).astype("<f2")
    inverse = _inverse(step.astype(np.float32))
    codes = np.clip(np.rint(values * inverse) + 8, 0, 15).astype(np.uint8)
    return packed_q4_0(codes, step)


def packed_q4_0(codes: Bytes, step: NDArray[np.float16]) -> Bytes:
    """Blocks of codes [blocks, 32] from 0 to 15 and their scales [blocks, 1]."""
    halves = codes[:, :16] | codes[:, 16:] << 4
    return np.concatenate([step.astype("<f2").view(np.uint8), halves], axis=1)


def _decode_q4_1(blocks: Bytes) -> Floats:
    return nibbles(blocks, 4, 16).astype(np.float32) * scales(blocks) + scales(blocks, 2)


def _decode_q6_k(blocks: Bytes) -> Floats:
    """256 numbers: low halves, high pairs of bits, 16 int8 scales, one float16."""
    low = blocks[:, :128].reshape(-1, 2, 2, 32)
    pairs = blocks[:, 128:192].reshape(-1, 2, 32)
    fine = blocks[:, 192:208].view(np.int8).astype(np.float32)
    quarters = [
        (low[:, :, quarter % 2] >> (4 * (quarter // 2)) & 15) | ((pairs >> (2 * quarter) & 3) << 4)
        for quarter in range(4)
    ]
    codes = np.stack(quarters, axis=2).reshape(-1, 16, 16).astype(np.float32) - 32
    values = codes * (scales(blocks, 208) * fine)[:, :, None]
    return values.reshape(-1, 256)


def _inverse(step: Floats) -> Floats:
    return np.divide(1.0, step, out=np.zeros_like(step), where=step != 0)


F32: Final = Block(0, "F32", 1, 4, _plain("<f4"), lambda v: v.astype("<f4").view(np.uint8))
F16: Final = Block(1, "F16", 1, 2, _plain("<f2"), lambda v: v.astype("<f2").view(np.uint8))
BF16: Final = Block(30, "BF16", 1, 2, _decode_bf16, _encode_bf16)
Q4_0: Final = Block(2, "Q4_0", 32, 18, _decode_q4_0, _encode_q4_0)
Q4_1: Final = Block(3, "Q4_1", 32, 20, _decode_q4_1)
Q6_K: Final = Block(14, "Q6_K", 256, 210, _decode_q6_k)
Q8_0: Final = Block(8, "Q8_0", 32, 34, _decode_q8_0, _encode_q8_0)

BLOCK_OF: Final = {b.number: b for b in (F32, F16, BF16, Q4_0, Q4_1, Q6_K, Q8_0)}
#: Names of what cannot be read, for a message.
NAME_OF: Final = dict(
    zip(
        (6, 7, 10, 11, 12, 13, 15, 20, 23, 34, 35, 39),
        "Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q8_K IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4".split(),  # noqa: SIM905
        strict=True,
    )
)
