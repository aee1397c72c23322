"""Whole decoder layers in one C++ call: what a step costs besides reading weights is kept small.

A layer here is what most open models are made of: a norm, attention with rotary positions over
paged keys and values, a norm, a gated feed-forward part, each added to the hidden states. Norms of
heads (Qwen3) and of each part's result (Gemma 2 and 3), biases, windows, caps and sinks are
options. Which module is such a layer is for others to find out.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from starai.core.errors import InternalFault
from starai.engines.native import library
from starai.engines.native.attention import DTYPES, SPANS, pool_of, spans_of
from starai.engines.native.library import COUNT, POINTER
from starai.engines.native.linear import GROUP, INT4, INT8, INT8_COLUMNS_MAX, Weight
from starai.engines.native.rows import ACTIVATIONS, Activation

#: Keys and values of a layer; see `attention.write_kv`.
Pool = tuple[Tensor, Tensor]

_KINDS: Final = {torch.float32: 0, torch.bfloat16: 1, torch.int8: INT8, torch.uint8: INT4}
#: Fields of `_Layer` and `LayerWeights`, in the order of layer.cpp.
_NORMS: Final = (
    "input_norm",
    "query_norm",
    "key_norm",
    "attention_norm",
    "inner_norm",
    "output_norm",
)


class _Layer(ctypes.Structure):
    """`starai::Layer` in layer.cpp, field for field."""

    _fields_ = (
        *((name, Weight) for name in ("qkv", "out", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in (*_NORMS, "sinks")),
        *((name, COUNT) for name in ("heads", "kv_heads", "head_dim", "window", "activation")),
        ("rope", COUNT),
        *((name, ctypes.c_float) for name in ("eps", "scale", "softcap", "norm_offset")),
    )


class _Pool(ctypes.Structure):
    """`starai::Pool` in attention.h, field for field."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        *((name, COUNT) for name in ("blocks", "heads", "key_dim", "value_dim", "dtype")),
    )


@dataclass(frozen=True, eq=False)
class Matrix:
    """A linear layer's weight: float32, bfloat16, int8, or int4 packed by `linear.pack_int4`.

    Attributes:
        weight: [N, K], or uint8 [N, K // 2] for int4.
        scale: float32 [N] for int8, float16 [N, K // 32] for int4, else None.
        bias: [N] float32 or bfloat16, or None.
    """

    weight: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs N and inputs K."""
        rows, columns = self.weight.shape
        return rows, columns * 2 if self.weight.dtype == torch.uint8 else columns

    def described(self) -> Weight:
        """As C++ sees it.

        Raises:
            InternalFault: the tensors do not belong together.
        """
        kind = _KINDS.get(self.weight.dtype)
        n, k = self.shape
        wanted = {
            INT8: (torch.float32, (n,)),
            INT4: (torch.float16, (n, k // GROUP)),
        }.get(-1 if kind is None else kind)
        scaled = None if self.scale is None else (self.scale.dtype, tuple(self.scale.shape))
        bias = self.bias
        biased = bias is None or (bias.shape == (n,) and bias.dtype in DTYPES)
        dense = all(t.is_contiguous() for t in (self.weight, self.scale, bias) if t is not None)
        small = 0 < k <= (INT8_COLUMNS_MAX if kind == INT8 else k)
        if kind is None or scaled != wanted or not (biased and dense and small):
            raise InternalFault(f"no matrix: {self.weight.dtype} {n} x {k}, scale {scaled}")
        return Weight(
            data=self.weight.data_ptr(),
            scale=_pointer(self.scale),
            bias=_pointer(bias),
            n=n,
            k=k,
            kind=kind,
            bias_dtype=0 if bias is None else DTYPES[bias.dtype],
        )


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One layer: its tensors and numbers. Norms are [width] floats, or None where there is none.

    Attributes:
        qkv: queries, keys and values of all heads, one behind the other, by hidden width.
        out: from all heads' results back to the hidden width.
        gate_up: gate, then up, by hidden width.
        down: from the inner width back to the hidden width.
        heads: query heads.
        kv_heads: key/value heads; divides heads.
        head_dim: width of a head.
        eps: of every norm.
        scale: factor of the scores; usually ``head_dim ** -0.5``.
        input_norm: before attention.
        inner_norm: before the feed-forward part.
        query_norm: [head_dim], of each query head before its rotation.
        key_norm: [head_dim], of each key head.
        attention_norm: of attention's result before it is added.
        output_norm: of the feed-forward part's result before it is added.
        norm_offset: added to norms' weights: 1 for Gemma.
        sinks: [heads], scores of a token without value (GPT-OSS).
        window: how many tokens a row sees, itself included; 0 is all.
        softcap: c of ``c * tanh(score / c)``; 0 is none.
        activation: of the gate.
        rope: which of the cosines and sines that `NativeLayers.run` gets; negative: no rotation.
    """

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scale: float
    input_norm: Tensor | None = None
    inner_norm: Tensor | None = None
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    attention_norm: Tensor | None = None
    output_norm: Tensor | None = None
    norm_offset: float = 0.0
    sinks: Tensor | None = None
    window: int = 0
    softcap: float = 0.0
    activation: Activation = "silu"
    rope: int = 0

    @property
    def width(self) -> int:
        """The hidden width."""
        return self.qkv.shape[1]

    def check(self) -> None:
        """Raise InternalFault unless all shapes fit each other."""
        inner = self.down.shape[1]
        shapes = {
            "qkv": ((self.heads + 2 * self.kv_heads) * self.head_dim, self.width),
            "out": (self.width, self.heads * self.head_dim),
            "gate_up": (2 * inner, self.width),
            "down": (self.width, inner),
        }
        wrong = [name for name, shape in shapes.items() if getattr(self, name).shape != shape]
        for name in (*_NORMS, "sinks"):
            tensor = getattr(self, name)
            wide = {"query_norm": self.head_dim, "key_norm": self.head_dim, "sinks": self.heads}
            if tensor is not None and tensor.shape != (wide.get(name, self.width),):
                wrong.append(name)
        if wrong or self.heads % self.kv_heads:
            raise InternalFault(f"a layer's tensors do not fit: {', '.join(wrong) or 'heads'}")


class NativeLayers:
    """Decoder layers that run in C++. Keeps the weights alive, and looks at their memory.

    Hidden states are float32 or bfloat16; float weights must have the same type. A pass may have
    any number of rows: one row reads every weight once, and so do up to 128 together.

    Attributes:
        layers: what it was made from.
    """

    def __init__(self, layers: Sequence[LayerWeights]) -> None:
        """Take all layers, in order.

        Raises:
            InternalFault: there are no kernels here, or a layer's tensors do not fit.
        """
        self._call = _kernel()
        self._kept: list[Tensor] = []
        for layer in layers:
            layer.check()
        self.layers = tuple(layers)
        self._described = (_Layer * len(layers))(*map(self._describe, layers))
        floats = {m.weight.dtype for lay in layers for m in _matrices(lay)} & DTYPES.keys()
        if len(floats) > 1:
            raise InternalFault("float weights of several types in one set of layers")
        self._dtype = floats.pop() if floats else None
        self._width = layers[0].width if layers else 0
        self._narrowest = min((layer.head_dim for layer in layers), default=0)
        self._most_rope = max((layer.rope for layer in layers), default=-1)
        if any(layer.width != self._width for layer in layers):
            raise InternalFault("layers of several widths in one set")
        self._pools: tuple[Pool, ...] | None = None
        self._described_pools: Any = None

    def __len__(self) -> int:
        return len(self.layers)

    def run(  # noqa: PLR0913, PLR0917 - the order of the kernel's interface
        self,
        hidden: Tensor,
        cosine: Tensor,
        sine: Tensor,
        pools: Sequence[Pool],
        tables: Tensor,
        starts: Tensor,
        counts: Tensor,
        first: int = 0,
        last: int | None = None,
        limits: Tensor | None = None,
        *,
        keys_only: bool = False,
    ) -> None:
        """Run layers [first, last) on packed rows, in place; their keys and values are kept.

        Args:
            hidden: [T, width], overwritten.
            cosine: float32 [T, R] for rotary positions of the first R components of each head,
                both halves as transformers gives them; or [ropes, T, R], see `LayerWeights.rope`.
            sine: likewise.
            pools: keys and values of every layer; see `attention.write_kv`.
            tables: int32 [S, blocks of the longest].
            starts: int32 [S]; with limits, a negative start says that a span's rows only look.
            counts: int32 [S].
            first: the first layer to run.
            last: the layer behind the last one to run; None is all.
            limits: int32 [T], how many tokens each row sees, in place of causality.
            keys_only: of one layer only keep what it would; hidden states stay as they are.

        Raises:
            InternalFault: shapes or types do not fit, or a table leads outside a pool.
        """
        rows = len(hidden)
        last = len(self.layers) if last is None else last
        if self._dtype not in {None, hidden.dtype} or not hidden.is_contiguous():
            raise InternalFault(f"hidden states are {hidden.dtype}, weights {self._dtype}")
        self._check(hidden, cosine, sine, first, last)
        if keys_only and last != first + 1:
            raise InternalFault("the keys of one layer are kept at a time")
        reason = self._call(
            self._described,
            self._pools_of(pools),
            first,
            last,
            hidden.data_ptr(),
            DTYPES[hidden.dtype],
            cosine.data_ptr(),
            sine.data_ptr(),
            cosine.shape[-1],
            *spans_of(tables, starts, counts, limits, rows),
            library.threads(),
            int(keys_only),
        )
        if reason:
            raise InternalFault(f"decoder layers: {reason.decode()}")

    def _check(self, hidden: Tensor, cosine: Tensor, sine: Tensor, first: int, last: int) -> None:
        if not 0 <= first <= last <= len(self.layers):
            raise InternalFault(f"no layers {first} to {last} of {len(self.layers)}")
        ropes = cosine.shape[0] if cosine.dim() == 3 else 1
        turned = cosine.shape[-1]
        fits = (
            hidden.shape == (len(hidden), self._width)
            and cosine.shape == sine.shape
            and cosine.shape[-2] == len(hidden)
            and cosine.dtype == sine.dtype == torch.float32
            and cosine.is_contiguous()
            and sine.is_contiguous()
        )
        if not fits or turned % 2 or turned > self._narrowest or ropes <= self._most_rope:
            raise InternalFault(
                f"layers: hidden {tuple(hidden.shape)}, {cosine.dtype} {tuple(cosine.shape)}"
            )

    def _pools_of(self, pools: Sequence[Pool]) -> Any:
        known = self._pools
        if known and len(known) == len(pools) and all(map(operator.is_, known, pools)):
            return self._described_pools
        if len(pools) != len(self.layers):
            raise InternalFault(f"{len(pools)} pools for {len(self.layers)} layers")
        described = (_Pool * len(pools))()
        for i, (layer, (keys, values)) in enumerate(zip(self.layers, pools, strict=True)):
            shape = (layer.kv_heads, layer.head_dim)
            if not (keys.shape == values.shape and (keys.shape[0], keys.shape[3]) == shape):
                raise InternalFault(f"layer {i}: pool {tuple(keys.shape)} for heads {shape}")
            described[i] = _Pool(*pool_of(keys, values))
        self._pools, self._described_pools = tuple(pools), described
        return described

    def _describe(self, layer: LayerWeights) -> _Layer:
        norms = {name: self._float(getattr(layer, name)) for name in (*_NORMS, "sinks")}
        names = ("heads", "kv_heads", "head_dim", "window", "rope", "eps", "scale", "softcap")
        return _Layer(
            *(matrix.described() for matrix in _matrices(layer)),
            **norms,
            **{name: getattr(layer, name) for name in names},
            norm_offset=layer.norm_offset,
            activation=ACTIVATIONS[layer.activation],
        )

    def _float(self, x: Tensor | None) -> int | None:
        if x is None:
            return None
        self._kept.append(x.detach().to(torch.float32).contiguous())
        return self._kept[-1].data_ptr()


def _matrices(layer: LayerWeights) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    return layer.qkv, layer.out, layer.gate_up, layer.down


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


@cache
def _kernel() -> Callable[..., Any]:
    size = library.function("starai_layer_bytes", returns=COUNT)
    call = library.function(
        "starai_decoder_layers",
        *(POINTER, POINTER, COUNT, COUNT, POINTER, COUNT, POINTER, POINTER, COUNT),
        *SPANS,
        *(COUNT, COUNT),
        returns=ctypes.c_char_p,
    )
    if size is None or call is None:
        raise InternalFault(f"there are no native kernels: {library.why_not()}")
    if size() != ctypes.sizeof(_Layer):
        raise InternalFault("layer.py and layer.cpp disagree about a layer")
    return call
