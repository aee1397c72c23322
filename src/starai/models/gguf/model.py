"""A GGUF file as a model: its manifest, and the files of a folder that it stands for."""

from __future__ import annotations

from pathlib import Path

import msgspec

from starai.core.errors import ModelFileRefused
from starai.models.gguf.checkpoint import GgufCheckpoint
from starai.models.gguf.tokens import ending_ids, tokenizer_json, tokenizer_settings
from starai.models.manifest import ModelManifest, merkle_root


def read_gguf(path: Path) -> ModelManifest:
    """The manifest of a GGUF file.

    Raises:
        ModelFileRefused: the file is wrong, hostile, or cannot be read here; says why.
    """
    checkpoint = GgufCheckpoint(path)
    config = checkpoint.config
    _check_layers(path, checkpoint)
    ends = ending_ids(checkpoint.settings)
    vocab_size = config["vocab_size"]
    if not ends or not all(0 <= id_ < vocab_size for id_ in ends):
        raise ModelFileRefused(f"{path.name}: names no end token of its vocabulary")
    begin = config["bos_token_id"]
    return ModelManifest(
        name=path.stem,
        root=merkle_root({path.name: path}),
        kind="gguf",
        path=str(path),
        context_length=config["max_position_embeddings"],
        vocab_size=vocab_size,
        eos_token_ids=tuple(ends),
        bos_token_id=begin if isinstance(begin, int) and 0 <= begin < vocab_size else None,
        num_parameters=checkpoint.num_parameters,
        architecture=config["architectures"][0],
    )


def gguf_companions(path: Path) -> dict[str, bytes]:
    """The tokenizer files that a folder of this model would have.

    Raises:
        ModelFileRefused: the file's tokenizer cannot be rebuilt exactly.
    """
    settings = GgufCheckpoint(path).settings
    try:
        return {
            "tokenizer.json": msgspec.json.encode(tokenizer_json(settings)),
            "tokenizer_config.json": msgspec.json.encode(tokenizer_settings(settings)),
            "generation_config.json": msgspec.json.encode({"eos_token_id": ending_ids(settings)}),
        }
    except UnicodeEncodeError as error:
        raise ModelFileRefused(f"{path.name}: a token or the template is no text") from error


def _check_layers(path: Path, checkpoint: GgufCheckpoint) -> None:
    layers = checkpoint.config["num_hidden_layers"]
    present = {int(n.split(".")[2]) for n in checkpoint.shapes if n.startswith("model.layers.")}
    # Compared without making a set of what is declared, which may be two thousand million.
    if len(present) != layers or max(present, default=-1) != layers - 1:
        raise ModelFileRefused(
            f"{path.name}: declares {layers} layers and has {len(present)}: truncated?"
        )
