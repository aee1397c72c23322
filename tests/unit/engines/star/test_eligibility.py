"""Recurrent and hybrid models are refused by name."""

from __future__ import annotations

import pytest

from starai.core.errors import ConfigurationRefused
from starai.engines.star.eligibility import refuse_recurrent

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(
    "config",
    [
        "MambaConfig", "Mamba2Config", "FalconH1Config", "JambaConfig", "BambaConfig", "RwkvConfig",
        "RecurrentGemmaConfig", "Lfm2Config", "Qwen3NextConfig", "MiniMaxConfig", "Zamba2Config",
        "GraniteMoeHybridConfig", "NemotronHConfig", "FalconMambaConfig", "xLSTMConfig",
        "Llama4TextConfig",
    ],
)  # fmt: skip
def test_models_with_a_state_are_refused(config):
    """Each recurrent, hybrid or chunked family is refused with the reason and the way out."""
    with pytest.raises(ConfigurationRefused, match="attention=dense"):
        refuse_recurrent(getattr(transformers, config)().to_dict())


@pytest.mark.parametrize(
    "config",
    [
        "LlamaConfig", "Qwen2Config", "Qwen3Config", "Qwen3MoeConfig", "Gemma2Config",
        "Gemma3TextConfig", "MistralConfig", "Phi3Config", "GraniteConfig", "Olmo2Config",
        "GptOssConfig", "Cohere2Config", "SmolLM3Config", "GPT2Config", "MixtralConfig",
    ],
)  # fmt: skip
def test_plain_transformers_pass(config):
    """Families whose memory is keys and values alone are let through."""
    refuse_recurrent(getattr(transformers, config)().to_dict())


def test_the_text_part_of_a_larger_model_counts():
    """A multimodal model is judged by its text model, too."""
    with pytest.raises(ConfigurationRefused, match="linear_attention"):
        refuse_recurrent({"model_type": "x", "text_config": {"layer_types": ["linear_attention"]}})
