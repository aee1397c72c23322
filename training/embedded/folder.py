"""Writes the trained model as a Hugging Face folder with its recipe beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from training.embedded import tokenizer as tokens

WEIGHTS: Final = "model.safetensors"
_README: Final = """# starai-tiny

StarAI's embedded model: about {millions:.1f} million parameters, so that a clean clone answers
without a download. It is tiny. It greets, tells short stories, adds small numbers, knows a few
facts and says what StarAI is; everything else it gets wrong or says that it does not know.

It is an ordinary Hugging Face Llama folder (float16, {context} tokens of context), trained on one
CPU core by `training/embedded` of this repository from text which that folder generates.
`recipe.json` holds the seed, the settings, the measured loss and the checksum of the weights.
"""


def write(
    model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path, recipe: dict[str, Any]
) -> None:
    """Write all files; the recipe gains the weights' size and SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    # float16 keeps three more bits of each weight than bfloat16, and all weights are small.
    weights = {
        name: tensor.detach().to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    stored = save(weights, metadata={"format": "pt"})
    (folder / WEIGHTS).write_bytes(stored)
    recipe |= {"weights_bytes": len(stored), "weights_sha256": hashlib.sha256(stored).hexdigest()}
    context = model.config.max_position_embeddings
    _write_json(folder / "config.json", config_fields(model.config))
    _write_json(folder / "generation_config.json", generation_fields())
    _write_json(folder / "tokenizer_config.json", tokens.settings(context))
    _write_json(folder / "recipe.json", recipe)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    millions = recipe["model"]["num_parameters"] / 1e6
    (folder / "README.md").write_text(_README.format(millions=millions, context=context))


def config_fields(config: LlamaConfig) -> dict[str, Any]:
    """config.json with the fields that make a Llama, readable by old and new readers alike."""
    kept = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads head_dim max_position_embeddings rms_norm_eps hidden_act "
        "tie_word_embeddings attention_bias mlp_bias bos_token_id eos_token_id pad_token_id"
    )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{field: getattr(config, field) for field in kept.split()},
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "dtype": "float16",
    }


def generation_fields() -> dict[str, Any]:
    """generation_config.json: where an answer ends, and how it is best sampled."""
    return {
        "bos_token_id": tokens.ID[tokens.BEGIN],
        "eos_token_id": tokens.ID[tokens.END],
        "pad_token_id": tokens.ID[tokens.END],
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.95,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
