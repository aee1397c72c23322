"""How fast a model could run on a machine at best: the slower of reading and multiplying.

The roofline model (Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009). A pass must read
every weight once, and every sequence's keys and values; and it must multiply every weight by every
row. No engine is faster; what else it does (norms, sampling, copying) makes it slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from starai.engines.linear.fusing import weight_bytes
from starai.engines.native.limits import Limits
from starai.engines.text.engine import TextEngine
from starai.models.manifest import ModelManifest


@dataclass(frozen=True, slots=True)
class Bound:
    """The shortest time of a pass, and what bounds it: ``memory`` or ``arithmetic``."""

    seconds: float
    by: str


@dataclass(frozen=True, slots=True)
class Roofline:
    """A model on a machine.

    Attributes:
        limits: of the machine.
        kind: of the numbers that are multiplied, a key of ``limits.operations_per_s``.
        read_bytes: weights that every pass reads.
        weights: that every row is multiplied by, the output layer's not counted.
        head_weights: those of the output layer, which only rows that are drawn from meet.
        attention_weights: layers x query heads x head width: each row meets each key, and value.
        kv_bytes: keys and values of one token, all layers.
    """

    limits: Limits
    kind: str
    read_bytes: int
    weights: int
    head_weights: int
    attention_weights: int
    kv_bytes: int

    def decode(self, sequences: int, length: int) -> Bound:
        """One more token for each of ``sequences``, ``length`` tokens long each."""
        read = self.read_bytes + sequences * length * self.kv_bytes
        return self._bound(read, sequences * (self.weights + self.head_weights), sequences * length)

    def prefill(self, length: int) -> Bound:
        """A prompt of ``length`` tokens, up to its first answered token."""
        work = length * self.weights + self.head_weights
        return self._bound(self.read_bytes, work, length * (length + 1) // 2)

    def _bound(self, read: int, multiplied: int, met: int) -> Bound:
        """``met`` counts the pairs of a row and a key that it looks back at."""
        fast = self.limits.operations_per_s
        floats = max(fast["float32"], fast["bfloat16"])
        arithmetic = 2 * multiplied / fast[self.kind] + 4 * met * self.attention_weights / floats
        memory = read / self.limits.read_bytes_per_s
        return Bound(memory, "memory") if memory >= arithmetic else Bound(arithmetic, "arithmetic")


def roofline_of(
    engine: TextEngine, manifest: ModelManifest, bits: int, limits: Limits
) -> Roofline | None:
    """The roofline of an open engine; None for models that do not use all weights for a token."""
    module: Any = engine.model.module
    config = module.config.get_text_config()
    if any("expert" in name for name, _ in module.named_modules()):
        return None
    embedding = module.get_input_embeddings()
    # A tied table is the output layer's: it is read with it.
    own_table = isinstance(embedding, nn.Embedding) and not engine.model.refitted.tied
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    head_width = int(getattr(config, "head_dim", None) or width // heads)
    head = manifest.vocab_size * width
    # A table of its own is looked up in: neither read as a whole nor multiplied.
    looked_up = embedding.weight.nbytes if own_table else 0
    separate = 0 if getattr(config, "tie_word_embeddings", False) else head
    native = "bfloat16" if module.dtype is torch.bfloat16 else "float32"
    return Roofline(
        limits,
        "int8" if bits < 16 else native,
        weight_bytes(module) - looked_up,
        max(0, manifest.num_parameters - separate - head),
        head,
        int(config.num_hidden_layers) * heads * head_width,
        engine.memory.pool.bytes_per_token,
    )
