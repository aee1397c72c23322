"""What a linear layer is here: ``y = x W^T + b``, with ``W`` kept in one of several ways.

One file a way: `floating`, `int8`, `int4`; `registry` knows them by name. Knows nothing about
models; `fusing` puts these layers into one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

#: Rows of a weight that are converted at once: bounds the float32 copy that converting needs.
ROWS_AT_ONCE = 4096


class Linear(nn.Module):
    """The contract, and what all kinds share.

    Attributes:
        kind: name of the way that the weight is kept in.
        weight: [out_features, ...], row-major; floats, or the codes of a quantised kind.
        scale: what the codes are multiplied by; None for floats.
        bias: [out_features] floats, or None.
        in_features: width of the input.
        out_features: width of the output.
    """

    kind: ClassVar[str]
    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> None:
        """Take tensors as they are kept; `from_weight` makes them."""
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.out_features = int(weight.shape[0])
        self.in_features = self._width()

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """A layer of this kind from floats [out_features, in_features]."""
        raise TypeError(f"{cls.__name__} is made from kept tensors only")

    def multiply(self, rows: Tensor) -> Tensor:
        """Rows [count, in_features] to [count, out_features], in their own type."""
        raise TypeError(f"{type(self).__name__} cannot multiply")

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``ids`` [count] of the weight as float32 [count, in_features]."""
        raise TypeError(f"{type(self).__name__} has no rows")

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        rows = x.reshape(-1, self.in_features).contiguous()
        return self.multiply(rows).view(*x.shape[:-1], self.out_features)

    def part(self, begin: int, end: int) -> Self:
        """The layer of output rows ``begin`` to ``end``; it looks at the same memory."""
        cut = slice(begin, end)
        scale = None if self.scale is None else self.scale[cut]
        return type(self)(self.weight[cut], scale, None if self.bias is None else self.bias[cut])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One layer whose outputs are those of ``parts``, one behind the other."""
        scales = [part.scale for part in parts if part.scale is not None]
        return cls(
            torch.cat([part.weight for part in parts]),
            torch.cat(scales) if scales else None,
            _joined_bias(parts),
        )

    def dequantised(self) -> Tensor:
        """The weight as float32 [out_features, in_features]."""
        every = torch.arange(self.out_features, device=self.weight.device)
        return torch.cat([self.rows(ids) for ids in torch.split(every, ROWS_AT_ONCE)])

    @property
    def weight_bytes(self) -> int:
        """Memory that the layer's tensors hold."""
        kept = (self.weight, self.scale, self.bias)
        return sum(tensor.nbytes for tensor in kept if tensor is not None)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.in_features} -> {self.out_features}, bias={self.bias is not None}"

    def _width(self) -> int:
        return int(self.weight.shape[1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `model.to(dtype)` means the floats of the model; scales are part of a format.
        scale = self.scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if scale is not None:
            self.scale = scale.to(self.weight.device)
        return self


def _joined_bias(parts: Sequence[Linear]) -> Tensor | None:
    like = next((part.bias for part in parts if part.bias is not None), None)
    if like is None:
        return None
    return torch.cat([like.new_zeros(p.out_features) if p.bias is None else p.bias for p in parts])
