"""A model's tokenizer as the settings that llama.cpp reads: the inverse of `tokens`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sentencepiece

from starai.core.errors import ModelFileRefused
from starai.models.gguf.tokens import (
    BLANK,
    BYTE,
    CONTROL,
    NORMAL,
    PRE_TOKENIZERS,
    UNKNOWN,
    UNUSED,
    USER,
)
from starai.models.manifest import ModelManifest
from starai.models.pieces import BYTE_PIECE


def spelled(manifest: ModelManifest, files: Mapping[str, bytes]) -> dict[str, Any]:
    """The settings ``tokenizer...`` of a model, from the files of its folder.

    Raises:
        ModelFileRefused: llama.cpp has no tokenizer that does the same.
    """
    try:
        if "tokenizer.json" in files:
            declared = json.loads(files["tokenizer.json"])
            found = _from_json(declared, manifest.vocab_size)
        else:
            found = _from_sentencepiece(files["tokenizer.model"], manifest.vocab_size)
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ModelFileRefused(f"{manifest.name}: its tokenizer is damaged") from error
    configured = json.loads(files.get("tokenizer_config.json", b"{}"))
    found["add_bos_token"] |= configured.get("add_bos_token") is True
    settings = {f"tokenizer.ggml.{name}": value for name, value in found.items()}
    template = files.get("chat_template.jinja", b"").decode() or configured.get("chat_template")
    if isinstance(template, str):
        settings["tokenizer.chat_template"] = template
    if manifest.bos_token_id is not None:
        settings["tokenizer.ggml.bos_token_id"] = manifest.bos_token_id
    named = _named_end(manifest, configured, found["tokens"])
    settings["tokenizer.ggml.eos_token_id"] = named
    rest = [id_ for id_ in manifest.eos_token_ids if id_ != named]
    if rest:
        settings["tokenizer.ggml.eot_token_id"] = rest[0]
    return settings


def _named_end(manifest: ModelManifest, configured: Mapping[str, Any], tokens: list[str]) -> int:
    """The one end token that llama.cpp knows as such: the one that the tokenizer names."""
    value = configured.get("eos_token")
    content = value.get("content") if isinstance(value, dict) else value
    named = tokens.index(content) if content in tokens else None
    return named if named in manifest.eos_token_ids else manifest.eos_token_ids[-1]


def _from_json(declared: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    model = declared.get("model") or {}
    if model.get("type") != "BPE":
        raise ModelFileRefused(
            f"tokenizer.json: {str(model.get('type'))[:40]!r} cannot be written as GGUF; BPE can"
        )
    tokens, types = _tokens(model["vocab"], declared.get("added_tokens") or [], vocab_size)
    pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
    if model.get("byte_fallback"):
        return _scored(tokens, types, pairs, model.get("unk_token"), declared)
    return {
        "model": "gpt2",
        "pre": _pre(declared.get("pre_tokenizer")),
        "tokens": tokens,
        "token_type": types,
        "merges": [f"{left} {right}" for left, right in pairs],
        "add_bos_token": _frames(declared),
    }


def _tokens(
    vocab: dict[str, int], added: list[Any], vocab_size: int
) -> tuple[list[str], list[int]]:
    """Tokens and their kinds by id; ids that stand for nothing are padding."""
    tokens = [f"[PAD{id_}]" for id_ in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, id_ in vocab.items():
        tokens[id_], types[id_] = token, NORMAL
    for token in added:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token.get("special") else USER
    return tokens, types


def _pre(declared: Any) -> str:
    """llama.cpp's name of a pre-tokenizer."""
    wanted = _comparable(declared)
    for name, known in PRE_TOKENIZERS.items():
        if _comparable(known) == wanted:
            return name
    raise ModelFileRefused(
        "tokenizer.json: it cuts text into words in a way that llama.cpp has no name for that is "
        f"known here; {', '.join(PRE_TOKENIZERS)} are"
    )


def _comparable(declared: Any) -> Any:
    """Without what makes no difference to ids."""
    if not isinstance(declared, dict):
        return declared
    return {
        key: [_comparable(part) for part in value] if isinstance(value, list) else value
        for key, value in declared.items()
        if key != "trim_offsets"
    }


def _frames(declared: dict[str, Any]) -> bool:
    """Whether the post-processor puts a begin token before a text."""
    text = json.dumps(declared.get("post_processor") or {})
    return '"TemplateProcessing"' in text and '"SpecialToken"' in text


def _scored(
    tokens: list[str],
    types: list[int],
    pairs: list[list[str]],
    unknown: str | None,
    declared: dict[str, Any],
) -> dict[str, Any]:
    """SentencePiece's pieces: the earlier a merge, the better the score of what it makes."""
    rank: dict[str, int] = {}
    for at, (left, right) in enumerate(pairs):
        rank.setdefault(left + right, at + 1)
    for id_, token in enumerate(tokens):
        if token == unknown:
            types[id_] = UNKNOWN
        elif types[id_] == NORMAL and BYTE_PIECE.fullmatch(token):
            types[id_] = BYTE
    normalizer = json.dumps(declared.get("normalizer") or {})
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "token_type": types,
        "scores": [-float(rank.get(token, len(pairs) + 1)) for token in tokens],
        "add_bos_token": True,
        "add_space_prefix": '"Prepend"' in normalizer,
    }


def _from_sentencepiece(raw: bytes, vocab_size: int) -> dict[str, Any]:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(raw)
    tokens = [f"[PAD{id_}]" for id_ in range(vocab_size)]
    types, scores = [UNUSED] * vocab_size, [0.0] * vocab_size
    for id_ in range(processor.GetPieceSize()):
        tokens[id_] = processor.IdToPiece(id_)
        scores[id_] = float(processor.GetScore(id_))
        types[id_] = _type(processor, id_)
    blank = processor.EncodeAsPieces("a")[:1]
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "token_type": types,
        "scores": scores,
        "add_bos_token": processor.bos_id() >= 0,
        "add_space_prefix": bool(blank) and str(blank[0]).startswith(BLANK),
    }


def _type(processor: Any, id_: int) -> int:
    kinds = (
        (processor.IsUnknown, UNKNOWN),
        (processor.IsControl, CONTROL),
        (processor.IsByte, BYTE),
        (processor.IsUnused, UNUSED),
    )
    return next((kind for holds, kind in kinds if holds(id_)), NORMAL)
