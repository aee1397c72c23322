"""What llama.cpp and transformers call the same tensor, and how its rows lie in each.

For the architectures that are one and the same skeleton: llama (Mistral too), qwen2, qwen3.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

#: GGUF's ``general.architecture`` and transformers' ``model_type`` and class.
ARCHITECTURES: Final = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
#: transformers' types that llama.cpp knows as another.
GGUF_OF_TYPE: Final = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}

_OUTSIDE: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_INSIDE: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE_BACK: Final = {theirs: ours for ours, theirs in _OUTSIDE.items()}
_INSIDE_BACK: Final = {theirs: ours for ours, theirs in _INSIDE.items()}
_GGUF_LAYER: Final = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.(\w+)\.(weight|bias)")
_LAYER: Final = re.compile(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)")
#: llama.cpp turns neighbouring pairs, transformers halves of a head: rows lie in another order.
_TURNED: Final = re.compile(r"\.self_attn\.([qk])_proj\.")


def from_gguf(name: str) -> str | None:
    """Name in transformers of a tensor; None for one that has none."""
    if match := _GGUF_LAYER.fullmatch(name):
        inside = _INSIDE.get(match[2])
        return f"model.layers.{match[1]}.{inside}.{match[3]}" if inside else None
    stem, _, kind = name.rpartition(".")
    return f"{_OUTSIDE[stem]}.{kind}" if stem in _OUTSIDE and kind == "weight" else None


def to_gguf(name: str) -> str | None:
    """Name in llama.cpp of a tensor; None for one that has none."""
    if match := _LAYER.fullmatch(name):
        inside = _INSIDE_BACK.get(match[2])
        return f"blk.{match[1]}.{inside}.{match[3]}" if inside else None
    stem, _, kind = name.rpartition(".")
    return f"{_OUTSIDE_BACK[stem]}.{kind}" if stem in _OUTSIDE_BACK and kind == "weight" else None


def heads_of(name: str, architecture: str, config: dict[str, Any]) -> int:
    """How many heads the rows of a tensor (transformers' name) are turned in; 0 for none."""
    match = _TURNED.search(name) if architecture == "llama" else None
    if match is None:
        return 0
    key = "num_attention_heads" if match[1] == "q" else "num_key_value_heads"
    return int(config[key])


def to_halves(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows from llama.cpp's order (pairs) to transformers' (halves of each head)."""
    split = rows.reshape(heads, len(rows) // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def to_pairs(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """The inverse of `to_halves`."""
    split = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)
