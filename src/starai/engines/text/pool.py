"""The KV memory itself: for each layer, keys and values in blocks that tables point to.

A layer's keys are one tensor [kv heads, blocks, block tokens, width], its values another (their
width may differ). Which sequence owns which block is decided elsewhere (`starai.engines.paging`);
here blocks are written, gathered, copied and carried in and out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from starai.engines.paging.memory import Copy

#: Makes the memory of a layer, given its shape and type.
Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]

#: Tokens of a block on a CPU: 0.6 % waste on conversations, 9 % with 256
#: (benchmarks/engine/memory.py).
BLOCK_TOKENS: Final = 16
#: An int8 entry is the value divided by its token's scale, which maps the largest to this.
_INT8_MAX: Final = 127.0


@dataclass(slots=True)
class States:
    """Keys or values of a layer [heads, blocks, block tokens, width]; ``scales`` only if int8."""

    data: Tensor
    scales: Tensor | None = None

    def write(self, slots: Tensor, states: Tensor) -> None:
        """Store [heads, tokens, width] at flat token slots [tokens] (int64)."""
        if self.scales is not None:
            scales = states.float().abs().amax(dim=-1).clamp_min_(1e-12) / _INT8_MAX
            self.scales.flatten(1, 2).index_copy_(1, slots, scales)
            states = torch.round(states.float() / scales.unsqueeze(-1))
        self.data.flatten(1, 2).index_copy_(1, slots, states.to(self.data.dtype))

    def read(self, table: Sequence[int], low: int, high: int, dtype: torch.dtype) -> Tensor:
        """Tokens low to high - 1 of the sequence with that table: [1, heads, tokens, width].

        Blocks that lie in a row are a view: nothing is copied.
        """
        block = self.data.shape[2]
        first, last = low // block, -(-high // block)
        blocks = table[first:last]
        data = _select(self.data, blocks).flatten(1, 2)
        inside = slice(low - first * block, high - first * block)
        if self.scales is None:
            return data[:, inside].unsqueeze(0)
        scales = _select(self.scales, blocks).flatten(1, 2)[:, inside]
        return (data[:, inside].float() * scales.unsqueeze(-1)).to(dtype).unsqueeze(0)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What a block consists of: its data, and its scales if it has some."""
        return (self.data,) if self.scales is None else (self.data, self.scales)


def _select(blocks_of: Tensor, blocks: Sequence[int]) -> Tensor:
    if len(blocks) == 0:
        return blocks_of[:, :0]
    begin = blocks[0]
    if all(block == begin + n for n, block in enumerate(blocks)):
        return blocks_of[:, begin : begin + len(blocks)]
    return blocks_of.index_select(1, torch.as_tensor(blocks, device=blocks_of.device))


class KeyValuePool:
    """All layers' blocks. Layers are allocated when they are first written.

    On a CPU the operating system commits pages only as they are touched, so a large unused pool
    costs nothing.
    """

    def __init__(
        self,
        num_blocks: int,
        block_tokens: int = BLOCK_TOKENS,
        *,
        int8: bool = False,
        allocate: Allocate | None = None,
    ) -> None:
        """Room for ``num_blocks`` blocks.

        Args:
            num_blocks: how many.
            block_tokens: their size.
            int8: keep values as int8 with a float32 scale per head and token.
            allocate: makes a layer's tensors; on the model's device if there is none.
        """
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.int8 = int8
        self._allocate = allocate
        self._layers: dict[int, tuple[States, States]] = {}

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[States, States]:
        """The memory of a layer, shaped after its first keys and values [1, heads, T, width]."""
        memory = self._layers.get(index)
        if memory is None:
            memory = (self._like(key), self._like(value))
            self._layers[index] = memory
        return memory

    def _like(self, states: Tensor) -> States:
        heads, width = states.shape[1], states.shape[3]
        shape = (heads, self.num_blocks, self.block_tokens)

        def new(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            if self._allocate is not None:
                return self._allocate(shape, dtype)
            return torch.empty(shape, dtype=dtype, device=states.device)

        if not self.int8:
            return States(new((*shape, width), states.dtype))
        return States(new((*shape, width), torch.int8), new(shape, torch.float32))

    def alike(self, num_blocks: int, allocate: Allocate) -> KeyValuePool:
        """A pool of another size for blocks of the same form, all layers at once."""
        other = KeyValuePool(num_blocks, self.block_tokens, int8=self.int8, allocate=allocate)
        for index, pair in self._layers.items():
            made = []
            for states in pair:
                parts = [
                    allocate((t.shape[0], num_blocks, *t.shape[2:]), t.dtype)
                    for t in states.tensors
                ]
                made.append(States(*parts))
            other._layers[index] = (made[0], made[1])
        return other

    @property
    def layers(self) -> dict[int, tuple[States, States]]:
        """Keys and values of each layer that was written."""
        return self._layers

    @cached_property
    def pairs(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys and values of all layers in order, as tensors; ask once all layers are there."""
        return tuple((keys.data, values.data) for _, (keys, values) in sorted(self._layers.items()))

    @property
    def bytes_per_block(self) -> int:
        """Memory of one block, all layers; known after the first pass."""
        return sum(
            tensor.element_size() * tensor[:, :1].numel()
            for pair in self._layers.values()
            for states in pair
            for tensor in states.tensors
        )

    @property
    def bytes_per_token(self) -> int:
        """Memory of one position of one sequence, all layers; known after the first pass."""
        return self.bytes_per_block // self.block_tokens

    def copy(self, copies: Sequence[Copy]) -> None:
        """Copy source blocks onto target blocks, in every layer."""
        if not copies:
            return
        sources = torch.as_tensor([one.source for one in copies])
        targets = torch.as_tensor([one.target for one in copies])
        for tensor in self._tensors():
            found = tensor.index_select(1, sources.to(tensor.device))
            tensor.index_copy_(1, targets.to(tensor.device), found)

    def rows(self, blocks: Sequence[int]) -> Tensor:
        """What is in blocks, as rows of bytes on the CPU: uint8 [blocks, bytes a block]."""
        chosen = torch.as_tensor(blocks)
        rows = torch.empty((len(blocks), self.bytes_per_block), dtype=torch.uint8)
        for tensor, part in zip(self._tensors(), self._parts(rows), strict=True):
            part.copy_(tensor.index_select(1, chosen.to(tensor.device)).transpose(0, 1))
        return rows

    def put_rows(self, blocks: Sequence[int], rows: Tensor) -> None:
        """Write what `rows` of an equally shaped pool gave into ``blocks``."""
        chosen = torch.as_tensor(blocks)
        for tensor, part in zip(self._tensors(), self._parts(rows), strict=True):
            found = part.transpose(0, 1).to(tensor.device)
            tensor.index_copy_(1, chosen.to(tensor.device), found)

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """What of each row belongs to which tensor: [rows, heads, block tokens(, width)]."""
        parts, begin = [], 0
        for tensor in self._tensors():
            shape = (len(rows), tensor.shape[0], *tensor.shape[2:])
            end = begin + tensor.element_size() * tensor[:, 0].numel()
            parts.append(rows[:, begin:end].view(tensor.dtype).view(shape))
            begin = end
        return parts

    def take_out(self, blocks: Sequence[int]) -> list[Tensor]:
        """Copies of blocks on the CPU: per tensor [heads, blocks, block tokens(, width)].

        The order is that of the layers' numbers, keys before values, data before scales.
        """
        chosen = torch.as_tensor(blocks)
        return [t.index_select(1, chosen.to(t.device)).cpu() for t in self._tensors()]

    def put_in(self, blocks: Sequence[int], data: Sequence[Tensor]) -> None:
        """Write what `take_out` of an equally shaped pool gave into ``blocks``."""
        chosen = torch.as_tensor(blocks)
        for tensor, one in zip(self._tensors(), data, strict=True):
            tensor.index_copy_(1, chosen.to(tensor.device), one.to(tensor.device))

    def _tensors(self) -> list[Tensor]:
        return [
            tensor
            for index in sorted(self._layers)
            for states in self._layers[index]
            for tensor in states.tensors
        ]
