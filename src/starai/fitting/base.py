"""The kernel's values."""

from __future__ import annotations

from typing import Literal

import msgspec

from starai.models.library import LibraryModel

#: What computes, and how well it is used: see `starai.fitting.speed.FACTORS`.
PoolKind = Literal["cpu", "nvidia", "amd", "intel", "apple"]


class Pool(msgspec.Struct, frozen=True):
    """Memory and what computes beside it: one or several equal GPUs, or the processor.

    Attributes:
        name: for people.
        kind: see `PoolKind`.
        memory_bytes: that models may use; what the device's owner needs is not in it.
        read_bytes_per_s: of that memory; of several GPUs one's, because layers run in turn.
        operations_per_s: likewise.
        slow_host: a GPU in a machine whose processor or bus keeps it waiting.
        measured: whether the rates were, or were looked up.
    """

    name: str
    kind: PoolKind
    memory_bytes: int
    read_bytes_per_s: float
    operations_per_s: float
    slow_host: bool = False
    measured: bool = False


class Work(msgspec.Struct, frozen=True):
    """What one more token costs a model.

    Attributes:
        read_bytes: weights that are read.
        weights: that it is multiplied by.
        kv_bytes: keys and values of one earlier token that are read, while no window is full.
        attention: operations for each earlier token that it looks back at.
        answers: whether tokens come out; an embedding model gives none.
    """

    read_bytes: int
    weights: int
    kv_bytes: int = 0
    attention: int = 0
    answers: bool = True


class Prediction(msgspec.Struct, frozen=True):
    """Tokens a second of one answer, and of a prompt."""

    prefill_tps: float
    decode_tps: float


class Need(msgspec.Struct, frozen=True):
    """Memory in bytes: of weights, of keys and values, and of everything else."""

    weights: int
    kv: int
    overhead: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.overhead


class Wishes(msgspec.Struct, frozen=True):
    """What a supplier or a network wants of a choice.

    Attributes:
        sequences: answers at once that memory must hold; 0: as is usual for the kind of pool.
        context: tokens of each that there must be room for at least; models made for less are left
            out, embedding models aside.
        context_enough: more than this is not reserved.
        decode_tps: slower is not worth offering; people read 5 to 8 tokens a second.
        prefill_tps: slower keeps people waiting for the first token.
        quantisations: that the engines at hand can run, MXFP4 aside.
        refused_licences: models under these are left out: no money may be made with them.
        models: at most so many beside each other.
        disk_bytes: where their files must find room together; 0: wherever that is, there is enough.
    """

    sequences: int = 0
    context: int = 8192
    context_enough: int = 32768
    decode_tps: float = 8.0
    prefill_tps: float = 64.0
    quantisations: tuple[str, ...] = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
    refused_licences: tuple[str, ...] = ("qwen-research",)
    models: int = 3
    disk_bytes: int = 0


class Choice(msgspec.Struct, frozen=True):
    """A model for a pool; ``context`` is of each of ``sequences`` answers at once."""

    pool: Pool
    model: LibraryModel
    quantisation: str
    sequences: int
    context: int
    need: Need
    prediction: Prediction


class Plan(msgspec.Struct, frozen=True):
    """What a device should serve, the main model first, and why."""

    choices: tuple[Choice, ...]
    reasons: tuple[str, ...]
