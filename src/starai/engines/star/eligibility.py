"""Which models can be computed in blocks: those whose whole memory of a text is keys and values.

A recurrent layer hands a state from token to token. Block i needs the state at the end of block
i-1, so blocks cannot be computed apart, and two states cannot be merged as attention can. Such
models are refused by name, never degraded silently. Knows configurations as mappings, no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starai.core.errors import ConfigurationRefused

#: What attention over keys and values is called in transformers' ``layer_types``.
_ATTENTION_KINDS: Final = frozenset({"full_attention", "sliding_attention", "attention"})
#: Settings that only models with a recurrent or convolutional state have.
_STATE_SETTINGS: Final = (
    "ssm_cfg",
    "state_size",
    "mamba_d_state",
    "mamba_d_ssm",
    "mamba_expand",
    "ssm_state_size",
    "linear_num_value_heads",
    "linear_conv_kernel_dim",
    "conv_L_cache",
    "lru_width",
    "attention_hidden_size",
    "return_last_states",
)


def refuse_recurrent(config: Mapping[str, Any]) -> None:
    """Check a transformers configuration, as a mapping (``config.to_dict()``).

    Raises:
        ConfigurationRefused: a layer keeps a state that cannot be computed block by block, or
            attends in chunks; says which.
    """
    name = str(config.get("model_type") or "this model")
    inner = config.get("text_config")
    settings = {**config, **inner} if isinstance(inner, Mapping) else dict(config)
    kinds = settings.get("layer_types") or settings.get("layers_block_type") or ()
    strange = sorted({str(kind) for kind in kinds} - _ATTENTION_KINDS)
    if strange:
        raise ConfigurationRefused(
            f"{name} has layers of kind {strange[0]!r}, whose state passes from token to token (or "
            "is cut into chunks): Star Attention cannot compute it in blocks; use attention=dense"
        )
    for setting in _STATE_SETTINGS:
        if settings.get(setting):
            raise ConfigurationRefused(
                f"{name} keeps a recurrent state ({setting}): Star Attention cannot compute it in "
                "blocks; use attention=dense"
            )
