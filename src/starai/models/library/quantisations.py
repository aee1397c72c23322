"""How weights can be kept, and what a model weighs then.

Bits of GGUF's kinds are averages over a model's matrices: the "K_M" mixtures keep some of them
finer than others (github.com/ggml-org/llama.cpp, tools/quantize/README.md); compared with
published files of seven models they are right to 2 %.
"""

from __future__ import annotations

from typing import Final

import msgspec

from starai.models.library.base import LibraryModel

#: Vision towers stay 16-bit floats in every quantisation.
_EXTRA_BITS: Final = 16.0


class Quantisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bits per weight of the layers, of the input table and of the output table.

    ``expert_bits`` are of a mixture's experts where they differ from ``bits``. ``kept`` says how
    much of the model is left, as a share of its size: a rule of thumb, from how much perplexity
    the kinds cost (the table in the README named above).
    """

    name: str
    bits: float
    input_bits: float
    output_bits: float
    kept: float
    expert_bits: float = 0.0


_ALL: Final = (
    Quantisation("BF16", 16.0, 16.0, 16.0, 1.0),
    Quantisation("Q8_0", 8.5, 8.5, 8.5, 0.995),
    Quantisation("Q6_K", 6.5625, 6.5625, 6.5625, 0.99),
    Quantisation("Q5_K_M", 5.66, 5.5, 6.5625, 0.98),
    Quantisation("Q4_K_M", 4.80, 4.5, 6.5625, 0.96),
    Quantisation("MXFP4", 8.5, 8.5, 8.5, 1.0, 4.25),
    # Our own engine's: an untied input table stays as it is.
    Quantisation("int8", 8.01, 16.0, 8.01, 0.99),
    Quantisation("int4", 4.5, 16.0, 4.5, 0.93),
)
#: By name.
QUANTISATIONS: Final = {kind.name: kind for kind in _ALL}


def weight_bytes(model: LibraryModel, kind: Quantisation) -> int:
    """Memory of all weights."""
    shape = model.shape
    bits = _layer_bits(
        kind, shape.layer_weights - shape.expert_weights, shape.expert_weights
    ) + shape.table * (kind.output_bits if shape.tied else kind.input_bits + kind.output_bits)
    return int((bits + model.extra_parameters * _EXTRA_BITS) / 8)


def read_bytes(model: LibraryModel, kind: Quantisation) -> int:
    """Weights that must be read for one more token: those it meets, and the output table."""
    shape = model.shape
    bits = _layer_bits(
        kind, shape.used_layer_weights - shape.used_expert_weights, shape.used_expert_weights
    )
    if model.modality != "embedding":
        bits += shape.table * kind.output_bits
    return int(bits / 8)


def _layer_bits(kind: Quantisation, dense: int, experts: int) -> float:
    return dense * kind.bits + experts * (kind.expert_bits or kind.bits)
