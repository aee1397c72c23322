"""Reads llama2.c version-0 ``.bin`` files as the weights of a Hugging Face Llama model.

The file: seven little-endian int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size,
seq_len; a negative vocab_size means a separate classifier), then float32 tensors (github.com/
karpathy/llama2.c, export.py, legacy_export). Knows nothing about running a model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from starai.core.errors import ModelFileRefused

_HEADER_BYTES: Final = 28
#: Far above any llama2.c model; protects arithmetic from foreign bytes read as a header.
_FIELD_MAX: Final = 1 << 20

Weights = dict[str, NDArray[np.float32]]


class Llama2cHeader(msgspec.Struct, frozen=True):
    """The seven numbers at the head of the file, and whether the classifier is the embedding."""

    dim: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    context_length: int
    tied: bool

    @property
    def head_dim(self) -> int:
        """Numbers in one head."""
        return self.dim // self.num_heads

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """The float32 tensors in file order; names as in the file, not as in Hugging Face's."""
        layers, dim, hidden = self.num_layers, self.dim, self.hidden_dim
        kv_dim = self.num_kv_heads * self.head_dim
        rope = (self.context_length, self.head_dim // 2)
        tensors: list[tuple[str, tuple[int, ...]]] = [
            ("embed_tokens", (self.vocab_size, dim)),
            ("input_layernorm", (layers, dim)),
            ("self_attn.q_proj", (layers, dim, dim)),
            ("self_attn.k_proj", (layers, kv_dim, dim)),
            ("self_attn.v_proj", (layers, kv_dim, dim)),
            ("self_attn.o_proj", (layers, dim, dim)),
            ("post_attention_layernorm", (layers, dim)),
            ("mlp.gate_proj", (layers, hidden, dim)),
            ("mlp.down_proj", (layers, dim, hidden)),
            ("mlp.up_proj", (layers, hidden, dim)),
            ("norm", (dim,)),
            ("rope_real", rope),
            ("rope_imaginary", rope),
        ]
        return tensors if self.tied else [*tensors, ("lm_head", (self.vocab_size, dim))]

    @property
    def num_parameters(self) -> int:
        """Learned numbers: everything but the two unused RoPE tables."""
        return sum(math.prod(s) for name, s in self.tensors() if not name.startswith("rope"))


def read_llama2c_header(path: Path) -> Llama2cHeader:
    """The head of a ``.bin`` file, checked against the file's size.

    Raises:
        ModelFileRefused: not such a file, or truncated, with expected and found bytes.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_HEADER_BYTES)
            size = file.seek(0, 2)
    except OSError as error:
        raise ModelFileRefused(f"{path.name}: cannot be read: {error.strerror}") from error
    if len(raw) < _HEADER_BYTES:
        raise ModelFileRefused(
            f"{path.name}: a llama2.c header has {_HEADER_BYTES} bytes, got {len(raw)}"
        )
    fields = [int(value) for value in np.frombuffer(raw, "<i4")]
    dim, hidden, layers, heads, kv_heads, vocab, context = fields
    sensible = all(0 < abs(value) <= _FIELD_MAX for value in fields) and min(fields[:5]) > 0
    if not sensible or context < 0 or dim % heads or heads % kv_heads or dim // heads % 2:
        raise ModelFileRefused(f"{path.name}: not a llama2.c version-0 file (header {fields})")
    header = Llama2cHeader(dim, hidden, layers, heads, kv_heads, abs(vocab), context, vocab > 0)
    expected = _HEADER_BYTES + 4 * sum(math.prod(shape) for _, shape in header.tensors())
    if size != expected:
        raise ModelFileRefused(
            f"{path.name}: a model of this header has {expected} bytes, the file has {size}"
        )
    return header


def read_llama2c(path: Path) -> tuple[dict[str, Any], Weights]:
    """The arguments of a Hugging Face ``LlamaConfig`` and the weights under its names.

    Raises:
        ModelFileRefused: not such a file, or truncated.
    """
    header = read_llama2c_header(path)
    values = np.fromfile(path, "<f4", offset=_HEADER_BYTES)
    tensors: Weights = {}
    start = 0
    for name, shape in header.tensors():
        count = math.prod(shape)
        tensors[name] = values[start : start + count].reshape(shape)
        start += count
    return _config(header), _renamed(header, tensors)


def _config(header: Llama2cHeader) -> dict[str, Any]:
    return {
        "hidden_size": header.dim,
        "intermediate_size": header.hidden_dim,
        "num_hidden_layers": header.num_layers,
        "num_attention_heads": header.num_heads,
        "num_key_value_heads": header.num_kv_heads,
        "vocab_size": header.vocab_size,
        "max_position_embeddings": header.context_length,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": header.tied,
    }


def _renamed(header: Llama2cHeader, tensors: Weights) -> Weights:
    out: Weights = {}
    for name, tensor in tensors.items():
        if name.startswith("rope"):
            continue
        if tensor.ndim == 1 or name in ("embed_tokens", "lm_head"):
            prefix = "" if name == "lm_head" else "model."
            out[f"{prefix}{name}.weight"] = tensor
            continue
        for layer in range(header.num_layers):
            weight = tensor[layer]
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                weight = _half_split(weight, header.head_dim)
            out[f"model.layers.{layer}.{name}.weight"] = weight
    return out


def _half_split(weight: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Rows of each head from interleaved pairs (llama2.c's RoPE) to two halves (transformers')."""
    rows, columns = weight.shape
    pairs = weight.reshape(rows // head_dim, head_dim // 2, 2, columns)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3)).reshape(rows, columns)
