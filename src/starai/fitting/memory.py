"""How much memory a model needs on a device."""

from __future__ import annotations

from typing import Final

from starai.fitting.base import Need, PoolKind
from starai.models.library import LibraryModel, Quantisation, weight_bytes

_MIB: Final = 1 << 20
#: What a program takes before it has a model: a GPU's context and libraries, Python and torch.
PROGRAM_BYTES: Final = 700 * _MIB
_CPU_PROGRAM_BYTES: Final = 400 * _MIB
#: Activations, copies while loading, fragmentation: a share of the weights.
_WORKING: Final = 0.03


def need(
    model: LibraryModel, kind: Quantisation, context: int, sequences: int, pool: PoolKind
) -> Need:
    """Memory for ``sequences`` answers at once of up to ``context`` tokens each."""
    weights = weight_bytes(model, kind)
    program = _CPU_PROGRAM_BYTES if pool == "cpu" else PROGRAM_BYTES
    return Need(weights, sequences * model.kv_bytes(context), program + int(_WORKING * weights))
