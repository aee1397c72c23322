"""The tokenizer in a GGUF file as the tokenizer.json that it was made from, and back.

Two kinds: ``gpt2``, byte-level BPE with merges, whose way of cutting text into words is told by a
name (``tokenizer.ggml.pre``); and ``llama``, SentencePiece's BPE, whose pieces have scores: of all
neighbours, those merge first whose piece has the best score.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from starai.core.errors import ModelFileRefused

_PREFIX: Final = "tokenizer.ggml."
#: llama.cpp's kinds of tokens.
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
#: What stands for a blank in SentencePiece.
BLANK: Final = "▁"
#: Longer pieces are not cut in two to find merges: scores of such are of no use.
_PIECE_CHARACTERS_MAX: Final = 64
#: Ways of cutting all pieces in two; a vocabulary of 256k has 600,000.
_MERGES_MAX: Final = 1 << 22

_BYTES: Final = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(regex: str) -> dict[str, Any]:
    split = {
        "type": "Split",
        "pattern": {"Regex": regex},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, {**_BYTES, "use_regex": False}]}


_DIGITS: Final = {"type": "Digits", "individual_digits": True}
#: How text is cut into words, by llama.cpp's name.
PRE_TOKENIZERS: Final[dict[str, dict[str, Any]]] = {
    "gpt-2": {**_BYTES, "use_regex": True},
    "llama-bpe": _split(_WORDS % "{1,3}"),
    "qwen2": _split(_WORDS % ""),
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, {**_BYTES, "use_regex": True}]},
}
#: Other names of the same.
_ALIASES: Final = {"default": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}


def tokenizer_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json of a GGUF file.

    Raises:
        ModelFileRefused: there is none in it, or one that cannot be rebuilt exactly.
    """
    kind = settings.get(_PREFIX + "model")
    tokens = _list(settings, "tokens", str)
    types = _list(settings, "token_type", int) or [NORMAL] * len(tokens)
    if not tokens or len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ModelFileRefused("the file's tokenizer has no tokens, or some of them twice")
    if kind == "gpt2":
        model = _byte_level(settings, tokens)
    elif kind == "llama":
        model = _sentence_pieces(settings, tokens, types)
    else:
        raise ModelFileRefused(
            f"the file's tokenizer {str(kind)[:40]!r} cannot be read here; gpt2 and llama can: "
            "take the model's Hugging Face folder instead"
        )
    added = [
        {
            "id": id_,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[id_] != USER,
        }
        for id_, token in enumerate(tokens)
        if types[id_] in (CONTROL, USER, UNKNOWN)
    ]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added} | model


def tokenizer_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer_config.json of a GGUF file: named tokens and the chat template."""
    tokens = _list(settings, "tokens", str)
    found: dict[str, Any] = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        id_ = settings.get(f"{_PREFIX}{theirs}_token_id")
        if isinstance(id_, int) and 0 <= id_ < len(tokens):
            found[f"{ours}_token"] = tokens[id_]
    # SentencePiece models begin every text unless they say otherwise.
    begins = settings.get(_PREFIX + "model") == "llama"
    found["add_bos_token"] = bool(settings.get(_PREFIX + "add_bos_token", begins))
    template = settings.get("tokenizer.chat_template")
    return found | ({"chat_template": template} if isinstance(template, str) else {})


def ending_ids(settings: Mapping[str, Any]) -> list[int]:
    """The ids that end an answer."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = (settings.get(_PREFIX + name) for name in names)
    return sorted({id_ for id_ in ids if isinstance(id_, int) and not isinstance(id_, bool)})


def _byte_level(settings: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    pre = str(settings.get(_PREFIX + "pre", "default"))
    name = _ALIASES.get(pre, pre)
    if name not in PRE_TOKENIZERS:
        raise ModelFileRefused(
            f"the file's tokenizer cuts words by {pre[:40]!r}, which is not known here; "
            f"{', '.join(PRE_TOKENIZERS)} are: take the model's Hugging Face folder instead"
        )
    return {
        "normalizer": {"type": "NFC"} if name == "qwen2" else None,
        "pre_tokenizer": PRE_TOKENIZERS[name],
        "post_processor": {**_BYTES, "use_regex": True},
        "decoder": {**_BYTES, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: id_ for id_, token in enumerate(tokens)},
            "merges": [_pair(merge) for merge in _list(settings, "merges", str)],
            "ignore_merges": name == "llama-bpe",
        },
    }


def _pair(merge: str) -> list[str]:
    # The first piece may not be empty, and neither holds a blank in the byte alphabet.
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise ModelFileRefused(f"the file's tokenizer has the merge {merge[:40]!r}")
    return [left, right]


def _sentence_pieces(
    settings: Mapping[str, Any], tokens: list[str], types: list[int]
) -> dict[str, Any]:
    scores = _list(settings, "scores", float)
    if len(scores) != len(tokens) or not all(score == score for score in scores):  # noqa: PLR0124
        raise ModelFileRefused("the file's tokenizer lacks the scores of its pieces")
    unknown = next((id_ for id_, kind in enumerate(types) if kind == UNKNOWN), None)
    prepends = bool(settings.get(_PREFIX + "add_space_prefix", True))
    prepend = [{"type": "Prepend", "prepend": BLANK}] if prepends else []
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    back = {"type": "Replace", "pattern": {"String": BLANK}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prepends else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, blanks]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE",
            "vocab": {token: id_ for id_, token in enumerate(tokens)},
            "merges": merges_of(tokens, scores, types),
            "byte_fallback": BYTE in types,
            "fuse_unk": True,
            "unk_token": None if unknown is None else tokens[unknown],
        },
    }


def merges_of(tokens: list[str], scores: list[float], types: list[int]) -> list[list[str]]:
    """The merges, best first, that make every piece from two others as its score says.

    Raises:
        ModelFileRefused: there are more than any vocabulary has.
    """
    usable = {token for token, kind in zip(tokens, types, strict=True) if kind in (NORMAL, UNUSED)}
    ranked = sorted(
        (id_ for id_, token in enumerate(tokens) if 1 < len(token) <= _PIECE_CHARACTERS_MAX),
        key=lambda id_: -scores[id_],
    )
    merges = (
        [tokens[id_][:cut], tokens[id_][cut:]]
        for id_ in ranked
        if tokens[id_] in usable
        for cut in range(1, len(tokens[id_]))
        if tokens[id_][:cut] in usable and tokens[id_][cut:] in usable
    )
    found = list(islice(merges, _MERGES_MAX + 1))
    if len(found) > _MERGES_MAX:
        raise ModelFileRefused(f"the file's pieces merge in more than {_MERGES_MAX} ways")
    return found


def _list(settings: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    found = settings.get(_PREFIX + name, [])
    if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
        raise ModelFileRefused(f"the file's setting {_PREFIX + name} is no list of {kind.__name__}")
    return found
