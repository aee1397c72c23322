"""Opens the weights and the configuration of any model that the catalogue knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starai.core.errors import ModelFileRefused
from starai.models.checkpoints.base import Checkpoint
from starai.models.checkpoints.files import SafetensorsSource
from starai.models.checkpoints.llama2c import Llama2cCheckpoint
from starai.models.checkpoints.registry import checkpoint_of
from starai.models.folder import DEFINING_FILES, list_weight_files, read_config, read_json
from starai.models.gguf.checkpoint import GgufCheckpoint
from starai.models.gguf.model import gguf_companions
from starai.models.llama2c import read_llama2c
from starai.models.llama2c_tokens import find_llama2c_tokenizer
from starai.models.manifest import ModelManifest


def open_checkpoint(manifest: ModelManifest) -> Checkpoint:
    """The weights of a model, to be read tensor by tensor.

    Raises:
        ModelFileRefused: the files are wrong, or quantised in a way that cannot be read here.
    """
    path = Path(manifest.path)
    if manifest.kind == "huggingface":
        return checkpoint_of(SafetensorsSource(path, list_weight_files(path)), read_config(path))
    if manifest.kind == "llama2c":
        return Llama2cCheckpoint(path)
    if manifest.kind == "gguf":
        return GgufCheckpoint(path)
    raise ModelFileRefused(f"{manifest.name} has no weights")


def dense_config(manifest: ModelManifest) -> dict[str, Any]:
    """The config.json of a model as if its weights were plain floats.

    Raises:
        ModelFileRefused: the files are wrong.
    """
    path = Path(manifest.path)
    if manifest.kind == "huggingface":
        config = read_json(path / "config.json")
        config.pop("quantization_config", None)
        return config
    if manifest.kind == "llama2c":
        values, _ = read_llama2c(path)
        return {
            "architectures": [manifest.architecture],
            "model_type": "llama",
            **values,
            "bos_token_id": manifest.bos_token_id,
            "eos_token_id": list(manifest.eos_token_ids),
        }
    if manifest.kind == "gguf":
        return {**GgufCheckpoint(path).config, "eos_token_id": list(manifest.eos_token_ids)}
    raise ModelFileRefused(f"{manifest.name} has no configuration")


def companions(manifest: ModelManifest) -> dict[str, bytes]:
    """The files beside the weights and config.json that make a folder of this model complete.

    Raises:
        ModelFileRefused: its tokenizer has no form that belongs into a folder.
    """
    path = Path(manifest.path)
    if manifest.kind == "huggingface":
        wanted = (path / name for name in DEFINING_FILES if name != "config.json")
        return {file.name: file.read_bytes() for file in wanted if file.is_file()}
    if manifest.kind == "llama2c":
        tokenizer = find_llama2c_tokenizer(path, manifest.vocab_size)
        if tokenizer.suffix != ".model":
            raise ModelFileRefused(
                f"{tokenizer.name}: only llama2.c reads this; put the SentencePiece *.model that "
                "it was made from beside the model"
            )
        return {"tokenizer.model": tokenizer.read_bytes()}
    if manifest.kind == "gguf":
        return gguf_companions(path)
    raise ModelFileRefused(f"{manifest.name} has no tokenizer")
