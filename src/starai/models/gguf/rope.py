"""Llama 3's stretched rotary frequencies, which GGUF keeps as a tensor and transformers as a rule.

Rule: transformers' ``rope_type: llama3`` (modeling_rope_utils). Wavelengths below ``original /
high`` stay, those above ``original / low`` are stretched by ``factor``, between them it is
interpolated.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from starai.core.errors import ModelFileRefused

#: Llama 3.1's and 3.2's settings but for the factor, which is the largest number of the tensor.
_LOW: Final = 1.0
_HIGH: Final = 4.0
_ORIGINAL: Final = 8192


def llama3_factors(width: int, base: float, rule: dict[str, Any]) -> NDArray[np.float32]:
    """What each of ``width / 2`` frequencies is divided by."""
    wavelength = 2 * np.pi * base ** (np.arange(0, width, 2, dtype=np.float64) / width)
    factor, original = float(rule["factor"]), float(rule["original_max_position_embeddings"])
    low, high = float(rule["low_freq_factor"]), float(rule["high_freq_factor"])
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def llama3_rule(factors: NDArray[np.float32], width: int, base: float) -> dict[str, Any]:
    """The rule that gives these factors.

    Raises:
        ModelFileRefused: none that is known does.
    """
    rule = {
        "rope_type": "llama3",
        "rope_theta": base,
        "factor": float(factors.max()),
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _ORIGINAL,
    }
    if factors.shape != (width // 2,) or not np.allclose(
        llama3_factors(width, base, rule), factors, rtol=1e-3
    ):
        raise ModelFileRefused(
            "its rope_freqs follow a rule that cannot be read here: take the model's Hugging Face "
            "folder instead"
        )
    return rule
