"""Writes a refitted model as a folder that opens like any other, weights as they are kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from starai.core.errors import ConfigurationRefused, InternalFault
from starai.engines.linear.base import Linear
from starai.engines.linear.embedding import TiedEmbedding
from starai.engines.linear.groups import Share
from starai.engines.linear.int4 import Int4Linear
from starai.engines.linear.int8 import Int8Linear
from starai.models.checkpoints.base import Array, Packed
from starai.models.checkpoints.files import write_safetensors
from starai.models.checkpoints.opening import companions, dense_config
from starai.models.checkpoints.ours import METHOD, VERSION, stored
from starai.models.folder import SINGLE_FILE
from starai.models.manifest import ModelManifest

_TYPES: Final = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_TYPE_OF_ARRAY: Final = {"int8": "I8", "uint8": "U8", "float32": "F32", "float16": "F16"}


def save(model: Any, manifest: ModelManifest, kind: str, folder: Path) -> None:
    """Write ``model``, which was loaded from ``manifest`` and refitted, to a new folder.

    Raises:
        ConfigurationRefused: the folder has something in it already.
        ModelFileRefused: the tokenizer beside the model cannot be carried over.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationRefused(f"{folder} is not empty: name another folder with --out")
    files = companions(manifest)
    config = dense_config(manifest)
    config["quantization_config"] = {"quant_method": METHOD, "version": VERSION, "kind": kind}
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in files.items():
        (partial / name).write_bytes(content)
    text = msgspec.json.format(msgspec.json.encode(config), indent=2)
    (partial / "config.json").write_bytes(text)
    # Twice over the same walk: names and shapes first, so that one weight is in memory at a time.
    tensors = {name: (dtype, array.shape) for name, dtype, array in _tensors(model)}
    parts = (array for _, _, array in _tensors(model))
    write_safetensors(partial / SINGLE_FILE, tensors, parts)
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)


def _tensors(model: Any) -> Iterator[tuple[str, str, Array]]:
    """Name, type and array of everything that the file holds."""
    linears = dict(_linears(model))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    renamed = {}
    if isinstance(embedding, TiedEmbedding):
        renamed[names[head]] = names[embedding]
    elif isinstance(head, Linear) and head.weight.data_ptr() == embedding.weight.data_ptr():
        del linears[names[head]]  # the embedding is written in its own name
    for name, linear in linears.items():
        yield from _weight(f"{renamed.get(name, name)}.weight", linear)
        if linear.bias is not None:
            yield _floats(f"{name}.bias", linear.bias)
    modules = model.named_modules()
    ours = tuple(name + "." for name, module in modules if isinstance(module, Linear | Share))
    for name, tensor in model.state_dict().items():
        if not name.startswith(ours):
            yield _floats(name, tensor)


def _linears(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    """Every layer that a transformers definition calls by this name."""
    inside: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, Share):
            inside.add(name + ".fused")
            yield name, module.group.part(module.index)
        elif isinstance(module, Linear) and name not in inside:
            yield name, module


def _weight(name: str, linear: Linear) -> Iterator[tuple[str, str, Array]]:
    if isinstance(linear, Int8Linear):
        packed = Packed("int8", linear.weight.cpu().numpy(), linear.scale.cpu().numpy())
    elif isinstance(linear, Int4Linear):
        packed = Packed("int4", linear.codes().cpu().numpy(), linear.scale.cpu().numpy())
    else:
        yield _floats(name, linear.weight)
        return
    for part, array in stored(name, packed):
        yield part, _TYPE_OF_ARRAY[str(array.dtype)], array


def _floats(name: str, tensor: Tensor) -> tuple[str, str, Array]:
    if tensor.dtype not in _TYPES:
        raise InternalFault(f"tensor {name!r} is {tensor.dtype}, which no folder of ours holds")
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return name, _TYPES[tensor.dtype], tensor.view(torch.uint16).numpy()
    return name, _TYPES[tensor.dtype], np.asarray(tensor.numpy())
