"""Tiny random models in Hugging Face folders, made once per session."""

from __future__ import annotations

import json
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
BASE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", {"sliding_window": 6, "layer_types": SLIDING}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 5, "layer_types": SLIDING}),
    "mistral": ("MistralConfig", {"sliding_window": 4}),
    "gpt_oss": (
        "GptOssConfig",
        {
            "sliding_window": 4,
            "layer_types": SLIDING,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "n_inner": 48},
    ),
    "qwen2": ("Qwen2Config", {}),
    "phi3": ("Phi3Config", {}),
    "granite": (
        "GraniteConfig",
        {
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
        },
    ),
    "olmo2": ("Olmo2Config", {}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0, 1]}),
    "cohere2": ("Cohere2Config", {"sliding_window": 6, "layer_types": SLIDING}),
    "starcoder2": ("Starcoder2Config", {}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "stablelm": ("StableLmConfig", {}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "head_dim": None,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gemma4": (
        "Gemma4TextConfig",
        {
            "layer_types": [*SLIDING[:1], *SLIDING[:1], "full_attention"],
            "vocab_size_per_layer_input": 300,
            "hidden_size_per_layer_input": 8,
        },
    ),
    "long_llama": ("LlamaConfig", {"max_position_embeddings": 4096}),
    "bloom": ("BloomConfig", {"n_head": 4, "n_layer": 3}),
    "falcon": ("FalconConfig", {"head_dim": None}),
    "mamba": ("MambaConfig", {"state_size": 4}),
    "falcon_h1": ("FalconH1Config", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}),
    "llama4": ("Llama4TextConfig", {"attention_chunk_size": 8, "intermediate_size_mlp": 48}),
}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Makes the folder of a tiny random model of a named family."""
    made = {}

    def make(family: str):
        if family not in made:
            made[family] = _save(family, tmp_path_factory.mktemp(family))
        return made[family]

    return make


def _save(family, folder):
    import torch  # noqa: PLC0415 - only tests of the text engine pay for it
    import transformers  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    name, changes = CONFIGS[family]
    torch.manual_seed(7)
    config = getattr(transformers, name)(
        **{key: value for key, value in {**BASE, **changes}.items() if value is not None}
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        # Fresh weights are so small that every next token is nearly equally likely.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5.0)
    model.save_pretrained(folder)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


class Steady:
    """A pace that learns nothing: so many prompt tokens a step."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def prompt_tokens(self, answering: int, waiting: int) -> int:
        return self._tokens

    def learn(self, rows: int, seconds: float) -> None:
        pass


@pytest.fixture(scope="session")
def steady() -> type[Steady]:
    """Makes a pace of so many prompt tokens a step."""
    return Steady
