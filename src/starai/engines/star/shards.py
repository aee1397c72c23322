"""Keys and values of a part of a context: read from pages, packed for the road, written back.

int8 keeps one scale a head and token, the largest magnitude over 127: half the bytes of bfloat16
and an error of at most 1/254 of the token's largest channel. Knows pools and arrays, no hosts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from starai.core.errors import MalformedFrame
from starai.engines.star.messages import Array, Shipped
from starai.engines.text.pool import KeyValuePool

_INT8_MAX: Final = 127.0
#: Keeps a token of zeros from dividing by zero.
_SCALE_MIN: Final = 1e-12
_KINDS: Final = {
    torch.float32: "f4",
    torch.float16: "f2",
    torch.bfloat16: "bf16",
    torch.int8: "i1",
}


def to_array(tensor: Tensor) -> Array:
    """A tensor as bytes."""
    plain = tensor.detach().cpu().contiguous()
    kind = _KINDS[plain.dtype]
    if plain.dtype == torch.bfloat16:
        plain = plain.view(torch.int16)
    return Array(kind, tuple(tensor.shape), plain.numpy().tobytes())


def to_tensor(array: Array) -> Tensor:
    """Bytes as a tensor of its own.

    Raises:
        MalformedFrame: they do not fit together.
    """
    tensor = torch.from_numpy(np.array(array.numpy()))
    return tensor.view(torch.bfloat16) if array.kind == "bf16" else tensor


def export(
    pool: KeyValuePool, table: Sequence[int], tokens: int, *, int8: bool
) -> Iterator[Shipped]:
    """The first ``tokens`` tokens behind ``table``, layer by layer."""
    for layer, (keys, values) in sorted(pool.layers.items()):
        dtype = torch.float32 if keys.data.dtype == torch.int8 else keys.data.dtype
        k = keys.read(table, 0, tokens, dtype)[0]
        v = values.read(table, 0, tokens, dtype)[0]
        if int8:
            (k, ks), (v, vs) = quantise(k), quantise(v)
            yield Shipped(layer, to_array(k), to_array(v), to_array(ks), to_array(vs))
        else:
            yield Shipped(layer, to_array(k), to_array(v))


def take(pool: KeyValuePool, table: Sequence[int], start: int, shipped: Shipped) -> None:
    """Write a layer of a shard behind ``start`` tokens of the sequence with that table.

    Raises:
        MalformedFrame: it does not fit the model.
    """
    k = _restored(shipped.keys, shipped.key_scales)
    v = _restored(shipped.values, shipped.value_scales)
    memory = pool.layers.get(shipped.layer)
    if memory is None or k.ndim != 3 or v.ndim != 3 or k.shape[1] != v.shape[1]:
        raise MalformedFrame("a shard of another model")
    places = torch.arange(start, start + k.shape[1])
    block = pool.block_tokens
    if start + k.shape[1] > len(table) * block:
        raise MalformedFrame("a shard that is longer than it should be")
    slots = torch.as_tensor(table)[places // block] * block + places % block
    for states, data in zip(memory, (k, v), strict=True):
        if (data.shape[0], data.shape[2]) != (states.data.shape[0], states.data.shape[3]):
            raise MalformedFrame("a shard of another model")
        at = states.data.device
        states.write(slots.to(at), data.to(at))


def quantise(states: Tensor) -> tuple[Tensor, Tensor]:
    """[heads, tokens, width] as int8, and its scales float32 [heads, tokens]."""
    scales = states.float().abs().amax(dim=-1).clamp_min_(_SCALE_MIN) / _INT8_MAX
    return torch.round(states.float() / scales.unsqueeze(-1)).to(torch.int8), scales


def _restored(data: Array, scales: Array | None) -> Tensor:
    states = to_tensor(data)
    if scales is None:
        return states
    factors = to_tensor(scales)
    if factors.shape != states.shape[:-1]:
        raise MalformedFrame("scales that do not fit their shard")
    return states.float() * factors.unsqueeze(-1)
