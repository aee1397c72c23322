"""Any model that llama.cpp knows the architecture of, as a GGUF file for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from starai.core.errors import ConfigurationRefused, ModelFileRefused
from starai.models.checkpoints.base import INT4_GROUP, Checkpoint
from starai.models.checkpoints.opening import companions, dense_config, open_checkpoint
from starai.models.gguf.blocks import BF16, F16, F32, Q4_0, Q8_0, Block, packed_q4_0
from starai.models.gguf.names import heads_of, to_gguf, to_pairs
from starai.models.gguf.rope import llama3_factors
from starai.models.gguf.settings import settings_of
from starai.models.gguf.spelling import spelled
from starai.models.gguf.writing import write_gguf
from starai.models.manifest import ModelManifest

#: Type of the large tensors, and llama.cpp's number for a file of it.
KINDS: Final = {"q8_0": (Q8_0, 7), "q4_0": (Q4_0, 2), "bf16": (BF16, 32)}
#: Every token passes these; in a Q4_0 file they are finer.
_ENDS: Final = ("model.embed_tokens.weight", "lm_head.weight")
_QUANTISATION_VERSION: Final = 2
_ROPE: Final = "rope_freqs.weight"
#: Called with tensors written and tensors in all.
Progress = Callable[[int, int], None]


def export_gguf(
    manifest: ModelManifest,
    kind: str,
    path: Path,
    progress: Progress = lambda _done, _total: None,
) -> None:
    """Write a model as GGUF, tensor by tensor.

    Args:
        manifest: the model; its weights may be quantised already.
        kind: one of `KINDS`.
        path: the file to write; must not be there.
        progress: is told how far it is.

    Raises:
        ConfigurationRefused: the file exists.
        ModelFileRefused: llama.cpp cannot run the model, or its tokenizer.
    """
    if path.exists():
        raise ConfigurationRefused(f"{path} exists: name another file")
    config = dense_config(manifest)
    settings = settings_of(config)
    block, number = KINDS[kind]
    settings |= {
        "general.name": manifest.name,
        "general.file_type": number,
        "general.quantization_version": _QUANTISATION_VERSION,
        **spelled(manifest, companions(manifest)),
    }
    checkpoint = open_checkpoint(manifest)
    wanted = _wanted(checkpoint, bool(config.get("tie_word_embeddings")))
    tensors = {
        theirs: (checkpoint.shapes[ours], _block(ours, checkpoint.shapes[ours], block))
        for ours, theirs in wanted.items()
    }
    factors = _factors(config)
    if factors is not None:
        tensors[_ROPE] = (factors.shape, F32)

    def parts() -> Iterator[NDArray[np.uint8]]:
        for at, (ours, theirs) in enumerate(wanted.items()):
            progress(at, len(tensors))
            heads = heads_of(ours, settings["general.architecture"], config)
            yield _encoded(checkpoint, ours, tensors[theirs][1], heads)
        if factors is not None:
            yield factors.view(np.uint8)
        progress(len(tensors), len(tensors))

    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(path, settings, tensors, parts())


def _wanted(checkpoint: Checkpoint, tied: bool) -> dict[str, str]:
    """GGUF's name by ours, in the order of layers."""
    wanted = {}
    for name in checkpoint.shapes:
        theirs = to_gguf(name)
        if tied and name == "lm_head.weight":
            continue
        if theirs is None:
            if name.endswith("rotary_emb.inv_freq"):
                continue  # old files carry what can be computed
            raise ModelFileRefused(f"tensor {name[:80]!r} has no place in GGUF")
        wanted[name] = theirs
    return dict(sorted(wanted.items(), key=lambda item: _place(item[1])))


def _place(name: str) -> tuple[int, int, str]:
    parts = name.split(".")
    if parts[0] == "blk":
        return 1, int(parts[1]), name
    return (0 if parts[0] == "token_embd" else 2), 0, name


def _block(name: str, shape: tuple[int, ...], block: Block) -> Block:
    """The type of one tensor."""
    if len(shape) == 1:
        return F32
    if block is Q4_0 and name in _ENDS:
        block = Q8_0
    return block if shape[-1] % block.elements == 0 else F16


def _encoded(checkpoint: Checkpoint, name: str, block: Block, heads: int) -> NDArray[np.uint8]:
    packed = checkpoint.packed(name) if block is Q4_0 else None
    if packed is not None and packed.kind == "int4":
        # The same numbers in the same places: nothing is rounded again.
        codes, scale = packed.codes, packed.scale
        if heads:
            codes, scale = to_pairs(codes, heads), to_pairs(scale, heads)
        return packed_q4_0(codes.reshape(-1, INT4_GROUP), scale.reshape(-1, 1)).reshape(-1)
    values = checkpoint.floats(name)
    if heads:
        values = to_pairs(values, heads)
    if block.encode is None:
        raise ModelFileRefused(f"{block.name} is read, not written")
    return block.encode(values.reshape(-1, block.elements)).reshape(-1)


def _factors(config: dict[str, Any]) -> NDArray[np.float32] | None:
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") != "llama3":
        return None
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return llama3_factors(width, float(rope["rope_theta"]), rope)
