"""The weights of a llama2.c file as a checkpoint."""

from __future__ import annotations

from pathlib import Path

from starai.models.checkpoints.base import Checkpoint, Floats
from starai.models.llama2c import read_llama2c


class Llama2cCheckpoint(Checkpoint):
    """All tensors at once: these models are small."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ModelFileRefused: it is no such file, or truncated.
        """
        _, self._weights = read_llama2c(path)
        self.shapes = {name: weight.shape for name, weight in self._weights.items()}

    def floats(self, name: str) -> Floats:
        """See `Checkpoint.floats`."""
        return self._weights[name]
