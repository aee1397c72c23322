"""Loads a model's weights into transformers' definition: local files only, and nothing amiss.

Runs no code from a model's folder. Knows nothing about serving.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from starai.core.errors import ModelFileRefused
from starai.models.llama2c import read_llama2c
from starai.models.manifest import ModelManifest

#: Below this many parameters float32 is as fast as bfloat16 on a CPU, and exact.
_FLOAT32_PARAMETERS_MAX: Final = 200_000_000
#: How many names a refusal quotes.
_NAMES_QUOTED: Final = 3


def load_model(manifest: ModelManifest, attention: str) -> Any:
    """The model in evaluation mode, on the GPU if there is one, with our attention.

    Raises:
        ModelFileRefused: weights are missing, unexpected or misshapen, or transformers does not
            know the architecture.
    """
    quiet: Any = transformers_logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    dtype = _dtype(manifest)
    if manifest.kind == "llama2c":
        model = _load_llama2c(manifest, attention)
    else:
        model = _load_folder(Path(manifest.path), dtype, attention)
    return model.to(device(), dtype).eval().requires_grad_(False)


def device() -> torch.device:
    """Where models run on this machine."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(manifest: ModelManifest) -> torch.dtype:
    # bfloat16, never float16: float16 matmuls are 10 times slower on CPUs.
    small = manifest.num_parameters < _FLOAT32_PARAMETERS_MAX
    return torch.float32 if small else torch.bfloat16


def _load_folder(folder: Path, dtype: torch.dtype, attention: str) -> Any:
    declared = json.loads((folder / "config.json").read_bytes())
    quantisation = declared.get("quantization_config")
    if quantisation:
        method = str(quantisation.get("quant_method", "an unnamed method"))[:40]
        raise ModelFileRefused(f"the weights are quantised ({method}); this engine runs plain ones")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        auto_model: Any = AutoModelForCausalLM
        model, report = auto_model.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelFileRefused(f"transformers cannot load it: {str(error)[:300]}") from error
    _check_report(report)
    return model


def _check_report(report: dict[str, Any]) -> None:
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        names = sorted(map(str, report.get(fault) or ()))
        if names:
            quoted = ", ".join(name[:80] for name in names[:_NAMES_QUOTED])
            more = f" and {len(names) - _NAMES_QUOTED} more" if len(names) > _NAMES_QUOTED else ""
            raise ModelFileRefused(f"the weights have {fault.replace('_', ' ')}: {quoted}{more}")


def _load_llama2c(manifest: ModelManifest, attention: str) -> Any:
    values, weights = read_llama2c(Path(manifest.path))
    config = LlamaConfig(
        **values,
        bos_token_id=manifest.bos_token_id,
        eos_token_id=list(manifest.eos_token_ids),
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation(attention)
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    if values["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ModelFileRefused(f"not the weights of a Llama: {str(error)[:300]}") from error
    return model
