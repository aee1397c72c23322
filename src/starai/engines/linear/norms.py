"""RMS norms by the compiled kernel, in place of a model's own, after proof that they agree.

Architectures differ in one thing that their names do not tell: whether the weight multiplies as
it is, or as ``1 + weight`` (Gemma). So both are tried on random input, and what agrees with neither
stays.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from starai.engines.native import library
from starai.engines.native.rows import rms_norm

#: Largest difference from the model's own norm, relative to its largest output.
_TOLERANCE: Final = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_ROWS_TRIED: Final = 3


class NativeNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * (offset + weight)`` over the last dimension."""

    def __init__(self, weight: nn.Parameter, eps: float, offset: int) -> None:
        """Take the weight [width] of the norm that is replaced; ``offset`` is 0 or 1."""
        super().__init__()
        self.weight = weight
        self.variance_epsilon = eps
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same shape."""
        # Queries and keys are views into the output of a fused layer.
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        return rms_norm(rows, self.weight, self.variance_epsilon, self.offset).view(x.shape)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.weight.shape[0]}, eps={self.variance_epsilon}, offset={self.offset}"


def native_norm(norm: nn.Module) -> NativeNorm | None:
    """The kernel's version of ``norm``; None where there is none that gives the same."""
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if (
        not type(norm).__name__.endswith("RMSNorm")
        or not isinstance(weight, nn.Parameter)
        or weight.ndim != 1
        or weight.device.type != "cpu"
        or weight.dtype not in _TOLERANCE
        or not isinstance(eps, float)
        or library.load() is None
    ):
        return None
    chance = torch.Generator().manual_seed(0)
    tried = torch.randn(_ROWS_TRIED, weight.shape[0], generator=chance).to(weight.dtype)
    try:
        expected = norm(tried)
    except (TypeError, RuntimeError):
        return None  # it takes more than one argument
    for offset in (0, 1):
        candidate = NativeNorm(weight, eps, offset)
        off = (candidate(tried).float() - expected.float()).abs().max()
        if off <= _TOLERANCE[weight.dtype] * expected.float().abs().max().clamp_min(1e-6):
            return candidate
    return None
