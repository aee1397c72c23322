"""Linear layers that read the same input, computed as one.

transformers' definitions call ``q_proj(x)``, ``k_proj(x)`` and ``v_proj(x)`` one after another.
Each is replaced by a `Share` of one `FusedGroup`: the first call computes all outputs, the others
hand out theirs, provided that they are called with the very same tensor. Knows no architecture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from starai.engines.linear.base import Linear

#: Names of siblings that read the same input wherever they occur together.
SIBLINGS = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("w1", "w3"),
)


class FusedGroup:
    """One weight whose output rows belong to several layers, in the order of ``names``.

    Attributes:
        linear: the fused layer; native kernels take its tensors.
        names: what the layers were called, for example q_proj, k_proj, v_proj.
        sizes: output rows of each.
    """

    def __init__(self, names: Sequence[str], parts: Sequence[Linear]) -> None:
        """Join layers of the same kind and input width; their tensors are copied."""
        self.names = tuple(names)
        self.sizes = tuple(part.out_features for part in parts)
        self.linear: Linear = type(parts[0]).joined(parts)
        self._starts = [sum(self.sizes[:n]) for n in range(len(parts))]
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}
        self._apart = False

    @property
    def kind(self) -> str:
        """How the weight is kept."""
        return self.linear.kind

    @property
    def weight(self) -> Tensor:
        """The fused weight [sum of sizes, ...]."""
        return self.linear.weight

    @property
    def scale(self) -> Tensor | None:
        """Its scales; None for floats."""
        return self.linear.scale

    @property
    def bias(self) -> Tensor | None:
        """The fused bias [sum of sizes], or None."""
        return self.linear.bias

    def part(self, index: int) -> Linear:
        """One of the layers by itself, on the same memory."""
        begin = self._starts[index]
        return self.linear.part(begin, begin + self.sizes[index])

    def compute(self, index: int, x: Tensor) -> Tensor:
        """The output of layer ``index`` for ``x``."""
        if x is self._input and index in self._outputs:
            found = self._outputs.pop(index)
            if not self._outputs:
                self._input = None  # everybody was served: hold on to nothing
            return found
        if index in self._outputs:
            # A sibling was called with something else: these layers do not share an input.
            self._apart = True
            self._outputs, self._input = {}, None
        if self._apart:
            return self.part(index).forward(x)
        outputs = torch.split(self.linear.forward(x), list(self.sizes), dim=-1)
        self._input = x
        self._outputs = {n: output for n, output in enumerate(outputs) if n != index}
        return outputs[index]


class Share(nn.Module):
    """Stands where a linear layer of a group stood.

    The first share holds the fused layer as a submodule, so that it counts and moves once.
    """

    def __init__(self, group: FusedGroup, index: int) -> None:
        """Take the place of the group's layer ``index``."""
        super().__init__()
        self.group = group
        self.index = index
        self.in_features = group.linear.in_features
        self.out_features = group.sizes[index]
        if index == 0:
            self.fused = group.linear

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return self.group.compute(self.index, x)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.in_features} -> {self.out_features}, share of {'+'.join(self.group.names)}"
