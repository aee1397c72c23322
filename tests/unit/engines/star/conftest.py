"""Tiny random models with the packed attention, one of each family, made once per session."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

BASE = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
WIDE = ["sliding_attention", "full_attention", "sliding_attention"]
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CONFIGS = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}),
    "qwen3_moe": ("Qwen3MoeConfig", MOE),
    "gemma2": ("Gemma2Config", {"sliding_window": 4096, "layer_types": WIDE}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 4096, "layer_types": WIDE}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "phi3": ("Phi3Config", {"pad_token_id": 0}),
    "granite": ("GraniteConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "gpt_oss": (
        "GptOssConfig",
        {
            "sliding_window": 4096,
            "layer_types": WIDE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "narrow": ("MistralConfig", {"sliding_window": 8}),
}


@pytest.fixture(scope="session")
def model_of():
    """Makes the tiny random model of a named family."""
    made = {}

    def make(family):
        if family not in made:
            made[family] = _make(family)
        return made[family]

    return make


def _make(family):
    import torch  # noqa: PLC0415 - the planner's tests do without
    import transformers  # noqa: PLC0415

    import starai.engines.text.attention as packed  # noqa: PLC0415

    name, changes = CONFIGS[family]
    torch.manual_seed(11)
    config = getattr(transformers, name)(**{**BASE, **changes})
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=packed.NAME, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5.0)  # fresh weights attend to everything alike
            elif family == "gpt_oss" and parameter.numel() == BASE["num_attention_heads"]:
                parameter.normal_()  # sinks begin at zero
    return model.requires_grad_(False)
