"""A model's numbers: GGUF's settings as a config.json, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from starai.core.errors import ModelFileRefused
from starai.models.gguf.names import ARCHITECTURES, GGUF_OF_TYPE
from starai.models.gguf.rope import llama3_rule

_NUMBER_MAX: Final = 1 << 31
#: config.json's name of each setting that is one number.
_NUMBERS: Final = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}


def config_of(
    settings: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_factors: NDArray[np.float32] | None,
) -> dict[str, Any]:
    """The config.json of a GGUF file.

    Args:
        settings: of the file.
        shapes: of its tensors, by transformers' names.
        rope_factors: its tensor ``rope_freqs.weight``, if it has one.

    Raises:
        ModelFileRefused: the architecture is another, or a setting is missing or makes no sense.
    """
    architecture = settings.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelFileRefused(
            f"its architecture {str(architecture)[:40]!r} cannot be read from GGUF; "
            f"{', '.join(ARCHITECTURES)} can: take the model's Hugging Face folder instead"
        )
    read = _Settings(settings, str(architecture))
    if read.value("expert_count", 0):
        raise ModelFileRefused("mixtures of experts cannot be read from GGUF: take the folder")
    model_type, kind = ARCHITECTURES[str(architecture)]
    config: dict[str, Any] = {"architectures": [kind], "model_type": model_type}
    config |= {theirs: read.number(ours) for ours, theirs in _NUMBERS.items()}
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = read.number("attention.head_count_kv", heads)
    default = config["hidden_size"] // heads
    width = read.number("attention.key_length", default)
    if read.number("attention.value_length", width) != width or width % 2:
        raise ModelFileRefused("its keys and values differ in width: not supported")
    if read.number("rope.dimension_count", width) != width:
        raise ModelFileRefused("only a part of each of its heads is rotated: not supported")
    embedding = shapes.get("model.embed_tokens.weight")
    if embedding is None or len(embedding) != 2:
        raise ModelFileRefused("it lacks the tensor token_embd.weight")
    return {
        **config,
        "head_dim": width,
        "vocab_size": embedding[0],
        "rms_norm_eps": read.real("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_parameters": _rope(read, width, rope_factors),
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in shapes,
        "bos_token_id": settings.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": settings.get("tokenizer.ggml.eos_token_id"),
    }


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config.json, for a file that llama.cpp reads.

    Raises:
        ModelFileRefused: llama.cpp has no such architecture, or none that is written here.
    """
    architecture = GGUF_OF_TYPE.get(str(config.get("model_type")))
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    kind = rope.get("rope_type", "default")
    if architecture is None or kind not in ("default", "linear", "yarn", "llama3"):
        what = config.get("model_type") if architecture is None else f"{kind} positions"
        raise ModelFileRefused(
            f"{str(what)[:40]!r} cannot be written as GGUF here; "
            f"{', '.join(sorted(GGUF_OF_TYPE))} can"
        )
    if architecture == "llama" and config.get("mlp_bias"):
        raise ModelFileRefused("a llama with biases in its MLP cannot be written as GGUF here")
    window = config.get("sliding_window")
    if (
        config.get("use_sliding_window", True)
        and window
        and (window < config["max_position_embeddings"])
    ):
        raise ModelFileRefused(
            f"its attention sees {window} tokens back, which llama.cpp would not know: the file "
            "would answer otherwise"
        )
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    numbers: dict[str, Any] = {ours: config[theirs] for ours, theirs in _NUMBERS.items()}
    numbers |= {
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": width,
        "attention.value_length": width,
        "rope.dimension_count": width,
        "rope.freq_base": float(rope.get("rope_theta", 10000.0)),
        "vocab_size": config["vocab_size"],
    }
    if kind in ("linear", "yarn"):
        numbers |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
        original = rope.get("original_max_position_embeddings")
        if original:
            numbers["rope.scaling.original_context_length"] = int(original)
    named = {f"{architecture}.{name}": value for name, value in numbers.items()}
    return {"general.architecture": architecture, **named}


class _Settings:
    """The settings of one architecture."""

    def __init__(self, settings: Mapping[str, Any], architecture: str) -> None:
        self._settings = settings
        self._prefix = architecture + "."

    def value(self, name: str, default: Any = None) -> Any:
        return self._settings.get(self._prefix + name, default)

    def number(self, name: str, default: int | None = None) -> int:
        value = self.value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _NUMBER_MAX:
            raise ModelFileRefused(
                f"its setting {self._prefix + name} is {repr(value)[:40]}; a positive number is "
                "what can be read here"
            )
        return value

    def real(self, name: str, default: float) -> float:
        value = self.value(name, default)
        if not isinstance(value, int | float) or not 0 < value < 1e12:
            raise ModelFileRefused(f"its setting {self._prefix + name} is {repr(value)[:40]}")
        return float(value)


def _rope(read: _Settings, width: int, factors: NDArray[np.float32] | None) -> dict[str, Any]:
    base = read.real("rope.freq_base", 10000.0)
    if factors is not None:
        return llama3_rule(factors, width, base)
    kind = read.value("rope.scaling.type", "none")
    if kind == "none":
        return {"rope_type": "default", "rope_theta": base}
    if kind not in ("linear", "yarn"):
        raise ModelFileRefused(f"its positions are stretched by {str(kind)[:40]!r}: not supported")
    rope = {"rope_type": kind, "rope_theta": base, "factor": read.real("rope.scaling.factor", 1.0)}
    original = read.value("rope.scaling.original_context_length")
    if isinstance(original, int) and 0 < original < _NUMBER_MAX:
        rope["original_max_position_embeddings"] = original
    return rope
