"""The yardstick: a model of the Qwen3-0.6B shape with random weights, as a Hugging Face folder.

Speed does not depend on what the weights say, so that nothing needs to be downloaded; quality is
not measured here. Run it with ``python benchmarks/engine/make_model.py FOLDER [--layers N]``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, VOCABULARY = 1024, 16, 8, 128, 3072, 151936
#: As transformers initialises Qwen3.
STANDARD_DEVIATION = 0.02
SEED = 3
END_OF_TEXT = "<|endoftext|>"


def config(layers: int) -> dict[str, object]:
    """The config.json of the shape."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 256,
        "eos_token_id": 256,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": STANDARD_DEVIATION,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": 40960,
        "max_window_layers": layers,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
    }


def weights(layers: int) -> dict[str, torch.Tensor]:
    """Every tensor, bfloat16: norms are 1, the rest is N(0, 0.02); the head is the embedding."""
    random = torch.Generator().manual_seed(SEED)

    def normal(*shape: int) -> torch.Tensor:
        drawn = torch.empty(shape).normal_(0.0, STANDARD_DEVIATION, generator=random)
        return drawn.to(torch.bfloat16)

    def ones(width: int) -> torch.Tensor:
        return torch.ones(width, dtype=torch.bfloat16)

    made = {
        "model.embed_tokens.weight": normal(VOCABULARY, HIDDEN),
        "model.norm.weight": ones(HIDDEN),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}."
        made |= {
            f"{at}input_layernorm.weight": ones(HIDDEN),
            f"{at}self_attn.q_proj.weight": normal(HEADS * HEAD_DIM, HIDDEN),
            f"{at}self_attn.k_proj.weight": normal(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{at}self_attn.v_proj.weight": normal(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{at}self_attn.o_proj.weight": normal(HIDDEN, HEADS * HEAD_DIM),
            f"{at}self_attn.q_norm.weight": ones(HEAD_DIM),
            f"{at}self_attn.k_norm.weight": ones(HEAD_DIM),
            f"{at}post_attention_layernorm.weight": ones(HIDDEN),
            f"{at}mlp.gate_proj.weight": normal(FEED_FORWARD, HIDDEN),
            f"{at}mlp.up_proj.weight": normal(FEED_FORWARD, HIDDEN),
            f"{at}mlp.down_proj.weight": normal(HIDDEN, FEED_FORWARD),
        }
    return made


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of the 256 bytes and an end: valid, and all that the peers need to start."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "model_max_length": 40960,
        "clean_up_tokenization_spaces": False,
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2))


def make(folder: Path, layers: int) -> None:
    """Write the model, unless a complete one is there."""
    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(layers), folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(folder)
    about = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(about, indent=2))
    # Last, because its presence says that the rest is whole.
    (folder / "config.json").write_text(json.dumps(config(layers), indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    asked = parser.parse_args()
    make(asked.folder, asked.layers)
    print(asked.folder)
