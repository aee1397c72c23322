"""A tiny llama in a Hugging Face folder with real numbers, and the same as GGUF."""

from __future__ import annotations

import json

import numpy as np
import pytest

from starai.models.checkpoints.files import write_safetensors

HIDDEN, HEADS, KV_HEADS, WIDTH, INNER, VOCAB = 64, 4, 2, 16, 96, 264
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


def tensors_of(layers=2, tied=False):
    """Random weights under transformers' names."""
    random = np.random.default_rng(11)
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(layers):
        stem = f"model.layers.{layer}."
        shapes |= {
            stem + "input_layernorm.weight": (HIDDEN,),
            stem + "self_attn.q_proj.weight": (HEADS * WIDTH, HIDDEN),
            stem + "self_attn.k_proj.weight": (KV_HEADS * WIDTH, HIDDEN),
            stem + "self_attn.v_proj.weight": (KV_HEADS * WIDTH, HIDDEN),
            stem + "self_attn.o_proj.weight": (HIDDEN, HEADS * WIDTH),
            stem + "post_attention_layernorm.weight": (HIDDEN,),
            stem + "mlp.gate_proj.weight": (INNER, HIDDEN),
            stem + "mlp.up_proj.weight": (INNER, HIDDEN),
            stem + "mlp.down_proj.weight": (HIDDEN, INNER),
        }
    shapes |= {"model.norm.weight": (HIDDEN,)}
    shapes |= {} if tied else {"lm_head.weight": (VOCAB, HIDDEN)}
    return {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def tokenizer():
    """Byte-level BPE with two merges and three control tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    alphabet = [chr(b) if b in printable else chr(next(others)) for b in range(256)]
    vocab = {piece: n for n, piece in enumerate(alphabet)} | {"he": 256, "hel": 257}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": 258 + n, "content": content, "special": n < 3, **plain}
        for n, content in enumerate(["<|begin|>", "<|end|>", "<|user|>", "<think>"])
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": ["h e", "he l"]},
    }


def config(**changes):
    """A config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": WIDTH,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "bos_token_id": 258,
        "eos_token_id": 259,
        **changes,
    }


@pytest.fixture
def folder(tmp_path):
    """The folder; tests may change its files."""
    path = tmp_path / "tiny"
    path.mkdir()
    weights = tensors_of()
    kinds = {name: ("F32", array.shape) for name, array in weights.items()}
    write_safetensors(path / "model.safetensors", kinds, weights.values())
    settings = {
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "add_bos_token": True,
        "chat_template": "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}",
    }
    for name, value in (
        ("config.json", config()),
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", settings),
    ):
        (path / name).write_text(json.dumps(value))
    return path
