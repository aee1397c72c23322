"""The formats of weights by the ``quant_method`` that config.json declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from starai.core.errors import ModelFileRefused
from starai.models.checkpoints.awq import Awq
from starai.models.checkpoints.base import Plain, Source
from starai.models.checkpoints.compressed import CompressedTensors
from starai.models.checkpoints.gptq import Gptq
from starai.models.checkpoints.ours import METHOD, Ours

FORMATS: Final[dict[str, Callable[[Source, Mapping[str, Any]], Plain]]] = {
    METHOD: Ours,
    "gptq": Gptq,
    "awq": Awq,
    "compressed-tensors": CompressedTensors,
}


def checkpoint_of(source: Source, config: Mapping[str, Any]) -> Plain:
    """The checkpoint in ``source`` of a model with this config.json.

    Raises:
        ModelFileRefused: it is quantised in a way that cannot be read here.
    """
    settings = config.get("quantization_config")
    if not settings:
        return Plain(source, {})
    method = str(settings.get("quant_method", "")) if isinstance(settings, dict) else ""
    if method not in FORMATS:
        raise ModelFileRefused(
            f"the weights are quantised ({method[:40] or 'an unnamed method'}); this program reads "
            f"plain ones and {', '.join(FORMATS)}"
        )
    return FORMATS[method](source, settings)
