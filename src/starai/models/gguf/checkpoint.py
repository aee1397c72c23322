"""The weights of a GGUF file under transformers' names.

Q4_0 is our int4, code by code. Q8_0 has a scale for 32 weights where our int8 has one for a whole
row: it is rounded once more, as it would be from floats. Other types are decoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from starai.core.errors import ModelFileRefused
from starai.models.checkpoints.base import Checkpoint, Floats, Packed
from starai.models.gguf.blocks import Q4_0, Q8_0, nibbles
from starai.models.gguf.header import GgufTensor, read_header
from starai.models.gguf.names import from_gguf, heads_of, to_halves
from starai.models.gguf.settings import config_of

_ROPE: Final = "rope_freqs.weight"
#: It is read with the head, and has a number for each two of a head's, which are a few hundred.
_ROPE_MAX: Final = 1 << 14
_SCALE_MIN: Final = 1e-30


class GgufCheckpoint(Checkpoint):
    """One file.

    Attributes:
        settings: the file's, as they are.
        config: the same as a config.json.
    """

    def __init__(self, path: Path) -> None:
        """Read and check the head.

        Raises:
            ModelFileRefused: the file is wrong, hostile, or of an architecture or type that
                cannot be read here.
        """
        self._path = path
        header = read_header(path)
        self.settings = header.settings
        self._tensors: dict[str, GgufTensor] = {}
        for name, tensor in header.tensors.items():
            ours = from_gguf(name)
            if ours is not None:
                self._tensors[ours] = tensor
            elif name != _ROPE:
                raise ModelFileRefused(
                    f"{path.name}: tensor {name[:80]!r} belongs to no architecture that can be "
                    "read from GGUF here: take the model's Hugging Face folder instead"
                )
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.quantised = frozenset(n for n, t in self._tensors.items() if t.block.elements > 1)
        rope = header.tensors.get(_ROPE)
        if rope is not None and rope.num_elements > _ROPE_MAX:
            raise ModelFileRefused(f"{path.name}: {_ROPE} has {rope.num_elements} numbers")
        factors = None if rope is None else rope.block.decode(self._blocks(rope)).reshape(-1)
        try:
            self.config = config_of(header.settings, self.shapes, factors)
        except ModelFileRefused as error:
            raise ModelFileRefused(f"{path.name}: {error.message}") from error
        self._check_turned()

    def floats(self, name: str) -> Floats:
        """See `Checkpoint.floats`."""
        tensor = self._tensors[name]
        values = tensor.block.decode(self._blocks(tensor)).reshape(tensor.shape)
        return self._in_halves(name, values)

    def is_packed(self, name: str) -> bool:
        """See `Checkpoint.is_packed`."""
        tensor = self._tensors.get(name)
        return tensor is not None and tensor.block in (Q4_0, Q8_0) and len(tensor.shape) == 2

    def packed(self, name: str) -> Packed | None:
        """See `Checkpoint.packed`."""
        if not self.is_packed(name):
            return None
        tensor = self._tensors[name]
        if tensor.block is Q8_0:
            values = self.floats(name)
            step = np.maximum(np.abs(values).max(axis=1) / 127, _SCALE_MIN).astype(np.float32)
            codes = np.clip(np.rint(values / step[:, None]), -127, 127).astype(np.int8)
            return Packed("int8", codes, step)
        blocks = self._blocks(tensor)
        codes = nibbles(blocks, 2, 16).reshape(tensor.shape)
        scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").reshape(tensor.shape[0], -1)
        if not np.isfinite(scale).all():
            raise ModelFileRefused(f"{self._path.name}: a scale of {name!r} is no number")
        return Packed("int4", self._in_halves(name, codes), self._in_halves(name, scale))

    def _in_halves(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        heads = heads_of(name, self.settings["general.architecture"], self.config)
        return to_halves(rows, heads) if heads else rows

    def _blocks(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        try:
            raw = np.fromfile(self._path, np.uint8, tensor.num_bytes, offset=tensor.begin)
        except OSError as error:
            raise ModelFileRefused(
                f"{self._path.name}: cannot be read: {error.strerror}"
            ) from error
        if raw.size != tensor.num_bytes:
            raise ModelFileRefused(f"{self._path.name}: it shrank while it was read")
        return raw.reshape(-1, tensor.block.num_bytes)

    def _check_turned(self) -> None:
        """Rows that will be put into another order must be whole heads."""
        for name, shape in self.shapes.items():
            heads = heads_of(name, self.settings["general.architecture"], self.config)
            if heads and shape[0] != heads * self.config["head_dim"]:
                raise ModelFileRefused(
                    f"{self._path.name}: tensor {name!r} has {shape[0]} rows, {heads} heads of "
                    f"{self.config['head_dim']} were declared"
                )
