"""What a checkpoint is: dense tensors by name, whatever a file packs them into.

One file a format; `registry` knows them by the ``quant_method`` of config.json. Knows nothing about
models: a name and a shape is all that a tensor has.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from starai.core.errors import ModelFileRefused
from starai.models.weights import TensorInfo

Floats = NDArray[np.float32]
Array = NDArray[Any]

#: Weights that share a scale in our int4.
INT4_GROUP: Final = 32
INT4_ZERO: Final = 8
_FLOATS: Final = ("BF16", "F16", "F32", "F64")


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight as our own int8 and int4 layers keep it.

    int8: ``codes`` int8 [N, K], ``scale`` float32 [N], value ``code * scale``. int4: ``codes``
    uint8 [N, K] from 0 to 15, ``scale`` float16 [N, K/32], value ``(code - 8) * scale``.
    """

    kind: Literal["int8", "int4"]
    codes: Array
    scale: Array

    def floats(self) -> Floats:
        """The values, float32 [N, K]."""
        if self.kind == "int8":
            return self.codes.astype(np.float32) * self.scale[:, None]
        groups = self.codes.reshape(len(self.codes), -1, INT4_GROUP).astype(np.float32) - INT4_ZERO
        return (groups * self.scale.astype(np.float32)[:, :, None]).reshape(self.codes.shape)


class Source(ABC):
    """Raw tensors by the names that a file gives them."""

    tensors: Mapping[str, TensorInfo]

    @abstractmethod
    def raw(self, name: str) -> Array:
        """A tensor as numpy keeps it; bfloat16 as uint16."""

    def integers(self, name: str, dtype: str, *shape: int) -> Array:
        """A tensor that must have this type and shape.

        Raises:
            ModelFileRefused: it is missing or has another; -1 stands for any size.
        """
        info = self.tensors.get(name)
        if info is None:
            raise ModelFileRefused(f"the weights lack tensor {name!r}")
        fits = len(info.shape) == len(shape) and all(
            found and wanted in (-1, found) for wanted, found in zip(shape, info.shape, strict=True)
        )
        if info.dtype != dtype or not fits:
            raise ModelFileRefused(
                f"tensor {name!r} is {info.dtype} {list(info.shape)}; {dtype} {list(shape)} (none "
                "of it 0) is what its format asks for"
            )
        return self.raw(name)

    def floats(self, name: str) -> Floats:
        """A tensor of floats as float32.

        Raises:
            ModelFileRefused: it is missing or holds something else.
        """
        info = self.tensors.get(name)
        if info is None:
            raise ModelFileRefused(f"the weights lack tensor {name!r}")
        array = self.raw(name)
        if info.dtype == "BF16":
            wide = array.astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        if info.dtype not in _FLOATS:
            raise ModelFileRefused(f"tensor {name!r} is {info.dtype}, which is no plain weight")
        return array.astype(np.float32, copy=False)


class Checkpoint(ABC):
    """Dense tensors by their names in a transformers model.

    Attributes:
        shapes: of every tensor, as it would be without any packing.
        quantised: names of those that the file keeps quantised; they are [outputs, inputs].
    """

    shapes: Mapping[str, tuple[int, ...]]
    quantised: frozenset[str] = frozenset()

    @abstractmethod
    def floats(self, name: str) -> Floats:
        """One tensor as float32.

        Raises:
            ModelFileRefused: the file does not hold what its format asks for.
        """

    def is_packed(self, name: str) -> bool:
        """Whether `packed` has the tensor; reads nothing."""
        return False

    def packed(self, name: str) -> Packed | None:
        """The tensor as our layers keep it, where the file has it so; nothing is lost then."""
        return None

    @property
    def num_parameters(self) -> int:
        """How many numbers the dense tensors have."""
        return sum(math.prod(shape) for shape in self.shapes.values())


class Plain(Checkpoint):
    """Tensors that are what they look like; the base of formats that pack some of them."""

    def __init__(self, source: Source, config: Mapping[str, Any]) -> None:
        """Look at the names and shapes of ``source``; ``config`` is its ``quantization_config``."""
        self.source = source
        self.config = config
        self.shapes = self._shapes()
        floats = {name for name, info in source.tensors.items() if info.dtype in _FLOATS}
        self.quantised = frozenset(self.shapes) - floats

    def floats(self, name: str) -> Floats:
        """See `Checkpoint.floats`."""
        return self.source.floats(name)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.source.tensors.items()}


def unpacked(words: Array, bits: int) -> NDArray[np.uint8]:
    """Fields of ``bits`` from 32-bit words [..., n], lowest first: [..., n * 32 / bits]."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    fields = (words.view(np.uint32)[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    return fields.astype(np.uint8).reshape(*words.shape[:-1], -1)


def checked_bits(bits: object, *allowed: int) -> int:
    """``bits`` if it is one of ``allowed``.

    Raises:
        ModelFileRefused: it is not.
    """
    if not isinstance(bits, int) or bits not in allowed:
        raise ModelFileRefused(
            f"weights of {repr(bits)[:20]} bits cannot be read here; "
            f"{' or '.join(map(str, allowed))} can"
        )
    return bits
