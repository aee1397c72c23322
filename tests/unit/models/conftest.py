"""A tiny Hugging Face folder made by hand: a safetensors file, a tokenizer with control tokens."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
CONTROL = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
THINK = "<think>"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'developer' %}"
    "{{ raise_exception('no developers here') }}{% endif %}"
    "<|{{ m.role if m.role == 'assistant' else 'user' }}|>{{ m.content | trim }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_alphabet() -> list[str]:
    """GPT-2's 256 characters, in the order of their bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def safetensors_bytes(tensors: dict[str, list[int]], dtype: str = "F32", width: int = 4) -> bytes:
    """A file of zeros with tensors of these shapes."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        size = width
        for number in shape:
            size *= number
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(at)


def tokenizer_json() -> dict[str, object]:
    """Byte-level BPE over 256 bytes, two merges, four control tokens and a plain added one."""
    vocab = {piece: n for n, piece in enumerate(byte_alphabet())}
    vocab |= {"he": 256, "hel": 257}
    added = [
        {
            "id": 258 + n,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": content != THINK,
        }
        for n, content in enumerate([*CONTROL, THINK])
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": ["h e", "he l"]},
    }


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 264,
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 258,
    "eos_token_id": 259,
}
TENSORS = {
    "model.embed_tokens.weight": [264, 4],
    "model.layers.0.mlp.up_proj.weight": [8, 4],
    "model.layers.1.mlp.up_proj.weight": [8, 4],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder; tests damage it as they like."""
    path = tmp_path / "tiny"
    path.mkdir()
    settings = {
        "bos_token": "<|begin|>",
        "eos_token": {"content": "<|end|>"},
        "chat_template": TEMPLATE,
        "add_bos_token": True,
    }
    for name, value in (
        ("config.json", CONFIG),
        ("tokenizer.json", tokenizer_json()),
        ("tokenizer_config.json", settings),
        ("generation_config.json", {"eos_token_id": [259, 261]}),
    ):
        (path / name).write_text(json.dumps(value))
    (path / "model.safetensors").write_bytes(safetensors_bytes(TENSORS))
    return path


@pytest.fixture
def change(folder: Path):
    """Changes keys of one of the folder's JSON files; None removes a key."""

    def apply(file: str, **changes: object) -> Path:
        path = folder / file
        merged = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in merged.items() if v is not None}))
        return folder

    return apply
