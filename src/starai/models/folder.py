"""Reads a Hugging Face model folder into a manifest, and refuses it when its files disagree.

Looks at configuration, safetensors headers and tokenizer; loads no weight and runs no code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from starai.core.errors import ModelFileRefused
from starai.core.limits import SAMPLER_CANDIDATES
from starai.models.checkpoints.files import SafetensorsSource
from starai.models.checkpoints.registry import checkpoint_of
from starai.models.manifest import ModelManifest, SamplingDefaults, merkle_root
from starai.models.weights import read_safetensors_header

INDEX_FILE: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"
#: Files beside the weights that decide what the model answers.
DEFINING_FILES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
)
Shapes = Mapping[str, tuple[int, ...]]
#: A tokenizer.json of a 256k vocabulary has about 35 MB. Hostile JSON takes 25 times its size.
_JSON_BYTES_MAX: Final = 64 << 20
#: The largest vocabularies have 262,144 ids; tables of this many are made before a weight is read.
VOCABULARY_MAX: Final = 1 << 22
_EMBEDDINGS: Final = (
    "model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
    "transformer.wte.weight",
    "wte.weight",
    "gpt_neox.embed_in.weight",
)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the model.

    Raises:
        ModelFileRefused: it cannot be read, is too large or is not a JSON object.
    """
    return parse_json(path.name, read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """A file of the model that is no weights.

    Raises:
        ModelFileRefused: it cannot be read, or is too large.
    """
    try:
        if path.stat().st_size > _JSON_BYTES_MAX:
            raise ModelFileRefused(f"{path.name}: larger than {_JSON_BYTES_MAX} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ModelFileRefused(f"{path.name}: cannot be read: {error.strerror}") from error


def parse_json(name: str, raw: bytes) -> dict[str, Any]:
    """The JSON object in the file ``name``.

    Raises:
        ModelFileRefused: it is none.
    """
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileRefused(f"{name}: not a JSON object ({error})") from error


def read_optional_json(path: Path) -> dict[str, Any]:
    """Like `read_json`; an absent file is an empty object."""
    return read_json(path) if path.is_file() else {}


def read_config(folder: Path) -> dict[str, Any]:
    """The language model's configuration; a multimodal model's ``text_config`` comes forward."""
    config = read_json(folder / "config.json")
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def read_folder(folder: Path, name: str) -> ModelManifest:
    """The manifest of a folder with config.json, safetensors and a tokenizer.

    Raises:
        ModelFileRefused: a file is missing, truncated or contradicts another; says which.
    """
    config = read_config(folder)
    weight_files = list_weight_files(folder)
    checkpoint = checkpoint_of(SafetensorsSource(folder, weight_files), config)
    _check_shapes(config, checkpoint.shapes, _vocab_size(config))
    indexed = [INDEX_FILE] if (folder / INDEX_FILE).is_file() else []
    files = (*_defining(folder), *indexed, *weight_files)
    root = merkle_root({file: folder / file for file in files})
    return _manifest(folder, name, config, root, checkpoint.num_parameters)


def read_served(folder: Path, name: str) -> ModelManifest:
    """The manifest of a folder with config.json and a tokenizer, of a model that a server has.

    Its root is of these files and the name: it says what tokens mean, not what the weights are.

    Raises:
        ModelFileRefused: a file is missing or contradicts another; says which.
    """
    config = read_config(folder)
    described = merkle_root({file: folder / file for file in _defining(folder)})
    root = hashlib.sha256(b"starai/v1/served-model" + described + name.encode()).digest()
    manifest = _manifest(folder, name, config, root, 0)
    return msgspec.structs.replace(manifest, kind="served")


def _defining(folder: Path) -> list[str]:
    return [file for file in DEFINING_FILES if (folder / file).is_file()]


def _manifest(
    folder: Path, name: str, config: dict[str, Any], root: bytes, num_parameters: int
) -> ModelManifest:
    vocab_size = _vocab_size(config)
    check_vocabulary(folder, vocab_size)
    architectures = config.get("architectures")
    if not (isinstance(architectures, list) and architectures):
        raise ModelFileRefused("config.json: has no 'architectures'")
    return ModelManifest(
        name=name,
        root=root,
        kind="huggingface",
        path=str(folder),
        context_length=_number(config, "max_position_embeddings", "n_positions", "n_ctx"),
        vocab_size=vocab_size,
        eos_token_ids=_eos_token_ids(folder, config, vocab_size),
        bos_token_id=_bos_token_id(config, vocab_size),
        num_parameters=num_parameters,
        architecture=str(architectures[0]),
        sampling=_sampling_defaults(folder),
    )


def _vocab_size(config: dict[str, Any]) -> int:
    vocab_size = _number(config, "vocab_size")
    if vocab_size > VOCABULARY_MAX:
        raise ModelFileRefused(f"config.json: a vocabulary of {vocab_size}; refused")
    return vocab_size


def list_weight_files(folder: Path) -> list[str]:
    """The safetensors files of the folder, relative and sorted; every indexed tensor is in one.

    Raises:
        ModelFileRefused: there are none, or the index names what is not there.
    """
    if not (folder / INDEX_FILE).is_file():
        if not (folder / SINGLE_FILE).is_file():
            raise ModelFileRefused(f"the folder has neither {SINGLE_FILE} nor {INDEX_FILE}")
        return [SINGLE_FILE]
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileRefused(f"{INDEX_FILE}: has no 'weight_map'")
    files = sorted({str(file) for file in weight_map.values()})
    for file in files:
        # A hostile index must not reach outside the folder.
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelFileRefused(f"{INDEX_FILE}: {file[:80]!r} is not a file of this folder")
        if not (folder / file).is_file():
            raise ModelFileRefused(f"{INDEX_FILE}: names {file}, which is missing")
        present = read_safetensors_header(folder / file)
        for tensor in (name for name, home in weight_map.items() if home == file):
            if tensor not in present:
                raise ModelFileRefused(f"{file}: lacks tensor {tensor[:80]!r} of the index")
    return files


def check_vocabulary(folder: Path, vocab_size: int) -> None:
    """Refuse a tokenizer whose ids exceed the model's vocabulary; smaller ones are padding.

    Raises:
        ModelFileRefused: the tokenizer is malformed or knows more ids than the model.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        if not (folder / "tokenizer.model").is_file():
            raise ModelFileRefused("the folder has neither tokenizer.json nor tokenizer.model")
        return  # `open_codec` compares a sentencepiece model with the manifest
    check_tokenizer(read_json(path), vocab_size)


def check_tokenizer(tokenizer: dict[str, Any], vocab_size: int) -> None:
    """Refuse a tokenizer.json whose ids exceed the model's vocabulary.

    Raises:
        ModelFileRefused: it has no vocabulary, or one that is larger than the model's.
    """
    try:
        vocabulary = tokenizer["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
        added = [token["id"] for token in tokenizer.get("added_tokens") or []]
        highest = max((*ids, *added))
        beyond = highest >= vocab_size
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileRefused("tokenizer.json: has no usable vocabulary") from error
    if beyond:
        raise ModelFileRefused(
            f"tokenizer.json: its ids reach {highest}, the model's vocabulary ends at "
            f"{vocab_size - 1}"
        )


def _check_shapes(config: dict[str, Any], shapes: Shapes, vocab_size: int) -> None:
    hidden = _number(config, "hidden_size", "n_embd", "d_model")
    for name in (*_EMBEDDINGS, "lm_head.weight"):
        found = shapes.get(name)
        if found and found != (vocab_size, hidden):
            raise ModelFileRefused(
                f"tensor {name!r} has shape {list(found)}, config.json says {[vocab_size, hidden]}"
            )
    layers = _number(config, "num_hidden_layers", "n_layer")
    if layers > len(shapes):
        raise ModelFileRefused(f"config.json says {layers} layers for {len(shapes)} tensors")
    present = {part for name in shapes for part in name.split(".")[:5] if part.isdigit()}
    # Some models carry layers behind the last one (multi-token prediction), none may lack one.
    missing = next((n for n in range(layers) if str(n) not in present), None) if present else None
    if missing is not None:
        raise ModelFileRefused(
            f"config.json says {layers} layers, the weights lack layer {missing}"
        )


def _number(config: dict[str, Any], *keys: str) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and 0 < value < 1 << 31:
            return value
    raise ModelFileRefused(f"config.json: lacks a positive {' or '.join(map(repr, keys))}")


def _eos_token_ids(folder: Path, config: dict[str, Any], vocab_size: int) -> tuple[int, ...]:
    generation = read_optional_json(folder / "generation_config.json")
    ids: list[Any] = []
    for source in (generation, config):
        value = source.get("eos_token_id")
        ids += value if isinstance(value, list) else [] if value is None else [value]
    if not ids:
        raise ModelFileRefused("neither generation_config.json nor config.json has 'eos_token_id'")
    if not all(isinstance(value, int) and 0 <= value < vocab_size for value in ids):
        raise ModelFileRefused(f"'eos_token_id' {str(ids)[:80]} is outside the vocabulary")
    return tuple(sorted(set(ids)))


def _sampling_defaults(folder: Path) -> SamplingDefaults:
    """What generation_config.json advises; a value out of range is as good as none."""
    advice = read_optional_json(folder / "generation_config.json")
    found: dict[str, float] = {}
    for name, most in (("temperature", 2.0), ("top_p", 1.0), ("min_p", 1.0)):
        value = advice.get(name)
        if isinstance(value, int | float) and 0 <= value <= most:
            found[name] = float(value)
    top_k = advice.get("top_k")
    in_reach = isinstance(top_k, int) and 0 < top_k <= SAMPLER_CANDIDATES
    return SamplingDefaults(**found, top_k=top_k if in_reach else 0)  # type: ignore[arg-type]


def _bos_token_id(config: dict[str, Any], vocab_size: int) -> int | None:
    value = config.get("bos_token_id")
    return value if isinstance(value, int) and 0 <= value < vocab_size else None
