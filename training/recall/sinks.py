"""Where a model's heads look: do they lean on the first token?

In large models most heads, where they have nothing to find, put their weight on the first token
(Xiao et al.: Efficient streaming language models with attention sinks, 2023), and Star Attention's
paper explains its anchor by that. This says whether a small model does so too.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

#: Queries from here on count: earlier ones have little else to look at.
FROM: Final = 64
OPENING: Final = 16


@torch.inference_mode()
def sinks(model: Any, ids: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean attention of every head over the documents ``ids`` [documents, tokens], read densely.

    Returns:
        Shares [layers, heads]: to the first token, and to the `OPENING` tokens behind it.
    """
    used = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the one that reports its weights
    try:
        seen = model(input_ids=torch.from_numpy(ids), output_attentions=True, use_cache=False)
    finally:
        model.set_attn_implementation(used)
    late = [layer[:, :, FROM:] for layer in seen.attentions]
    first = torch.stack([layer[..., 0].mean((0, 2)) for layer in late])
    opening = torch.stack([layer[..., 1 : 1 + OPENING].sum(-1).mean((0, 2)) for layer in late])
    return first.numpy(), opening.numpy()
