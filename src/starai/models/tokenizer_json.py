"""Hugging Face ``tokenizer.json`` and chat template, through the ``tokenizers`` library.

Decoding does not go through the library: the byte piece of each token is worked out once, from the
decoder that the file declares, so that streams never show half a character.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from starai.core.errors import InvalidRequest, ModelFileRefused
from starai.models.conversation import check_messages
from starai.models.folder import check_tokenizer, parse_json, read_bytes
from starai.models.manifest import ModelManifest
from starai.models.pieces import BYTE_PIECE, Pieces
from starai.models.template import Breaks, ChatTemplate
from starai.models.tools import Message, style_of, uses_tools, written_out

#: Added tokens of this shape count as control tokens even where a file forgets to say so.
_CONTROL_SHAPE: Final = re.compile("<[|\uff5c].+[|\uff5c]>")
#: Encoded when a tokenizer is opened: some that refer to tokens they lack fail only then.
_TRIED: Final = "a b\n\u00e9 1"
_NAMED_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "pad_token")


class TokenizerJsonCodec(Pieces):
    """The codec of a Hugging Face folder.

    Without a chat template a conversation becomes ``role: content`` lines and ends in
    ``assistant:``; that suits base models and is all that can be said of one.
    """

    def __init__(self, manifest: ModelManifest, files: Mapping[str, bytes] | None = None) -> None:
        """Load tokenizer and template, from ``files`` by name or from the model's folder.

        Raises:
            ModelFileRefused: a file is malformed, or of a kind that cannot be decoded exactly.
        """
        if files is None:
            files = _read_files(Path(manifest.path))
        declared = parse_json("tokenizer.json", files["tokenizer.json"])
        check_tokenizer(declared, manifest.vocab_size)
        settings = parse_json("tokenizer_config.json", files.get("tokenizer_config.json", b"{}"))
        self._tokenizer = _opened(files["tokenizer.json"])
        added = self._tokenizer.get_added_tokens_decoder()
        names = _named_tokens(settings)
        control = {
            id_
            for id_, token in added.items()
            if token.special
            or token.content in names.values()
            or _CONTROL_SHAPE.fullmatch(token.content)
        } | set(manifest.eos_token_ids)
        pieces = _pieces(self._tokenizer, declared.get("decoder"), set(added))
        super().__init__(pieces, frozenset(control), manifest.vocab_size)
        controls = [added[id_].content for id_ in control if id_ in added]
        self._breaks = Breaks(controls)
        source = _template_source(files, settings)
        self._template = ChatTemplate(source, controls, names) if source else None
        self._knows_tools = self._template is not None and self._template.knows_tools
        if self._knows_tools:
            self.tool_style = style_of(source or "")
        self._begin = self._begin_tokens(settings, names, manifest)

    def encode(self, text: str) -> list[int]:
        """The ids of a raw prompt, behind the begin token that the model's files ask for."""
        return self._begin + self._ids(text, framed=False)

    def render_chat(self, messages: list[Message], tools: Sequence[Any] = ()) -> list[int]:
        """The ids of a conversation through the model's template."""
        check_messages(messages)
        if uses_tools(messages, tools) and not self._knows_tools:
            messages, tools = written_out(messages, tools), ()
        if self._template is None:
            parts = self._plain(messages)
            begin = self._begin
        else:
            parts, begin = self._template.render(messages, tools), []
        return begin + [id_ for part in parts for id_ in self._ids(part, framed=False)]

    def _plain(self, messages: list[Message]) -> list[str]:
        lines = "".join(f"{m['role']}: {m.get('content', '')}\n" for m in messages)
        mark = self._breaks.mark_for(messages)
        return self._breaks.broken(lines + "assistant:", mark).split(mark)

    def _ids(self, text: str, *, framed: bool) -> list[int]:
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=framed).ids)
        except (UnicodeEncodeError, TypeError) as error:  # which one depends on the surrogate
            raise InvalidRequest("the text is not valid Unicode") from error

    def _begin_tokens(
        self, settings: dict[str, Any], names: dict[str, str], manifest: ModelManifest
    ) -> list[int]:
        """What stands before every raw prompt: the post-processor says it, or the settings do."""
        frame = self._ids("", framed=True)
        named = self._tokenizer.token_to_id(names["bos_token"]) if "bos_token" in names else None
        bos = named if named is not None else manifest.bos_token_id
        if bos is not None and (frame[:1] == [bos] or settings.get("add_bos_token") is True):
            return [bos]
        return []


def _opened(raw: bytes) -> Tokenizer:
    """The library's tokenizer, tried once."""
    try:
        tokenizer = Tokenizer.from_buffer(raw)
        # Settings of training must not reach prompts.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        for framed in (False, True):
            tokenizer.encode(_TRIED, add_special_tokens=framed)
    except BaseException as error:  # the library raises bare Exception, or panics; a boundary
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelFileRefused(f"tokenizer.json: not usable: {str(error)[:200]}") from error
    return tokenizer


def _named_tokens(settings: dict[str, Any]) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in _NAMED_TOKENS:
        value = settings.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            names[name] = content
    return names


def _read_files(folder: Path) -> dict[str, bytes]:
    paths = [folder / "tokenizer.json"]
    optional = ("tokenizer_config.json", "chat_template.jinja")
    paths += [folder / name for name in optional if (folder / name).is_file()]
    return {path.name: read_bytes(path) for path in paths}


def _template_source(files: Mapping[str, bytes], settings: dict[str, Any]) -> str | None:
    if "chat_template.jinja" in files:
        try:
            return files["chat_template.jinja"].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileRefused("chat_template.jinja: cannot be read as UTF-8") from error
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _pieces(tokenizer: Tokenizer, decoder: Any, added: set[int]) -> list[bytes]:
    kinds = _decoder_steps(decoder)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(vocabulary.values()) + 1)
    to_bytes = _byte_alphabet() if "ByteLevel" in kinds else None
    replaced = [(s["from"], s["to"]) for s in kinds.values() if "from" in s]
    fallback = "ByteFallback" in kinds
    for token, id_ in vocabulary.items():
        if id_ in added:
            pieces[id_] = token.encode()
        elif to_bytes is not None:
            pieces[id_] = b"".join(to_bytes.get(char, char.encode()) for char in token)
        elif fallback and (byte := BYTE_PIECE.fullmatch(token)):
            pieces[id_] = bytes([int(byte[1], 16)])
        else:
            for old, new in replaced:
                token = token.replace(old, new)  # noqa: PLW2901 - the steps build on each other
            pieces[id_] = token.encode()
    return pieces


def _decoder_steps(decoder: Any) -> dict[str, dict[str, str]]:
    """The decoder's steps by kind; refuses those whose tokens have no fixed bytes."""
    if not isinstance(decoder, dict):
        raise ModelFileRefused("tokenizer.json: has no 'decoder'; its text would be guesswork")
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    known: dict[str, dict[str, str]] = {}
    for step in steps:
        kind = step.get("type")
        if kind == "Replace":
            pattern = (step.get("pattern") or {}).get("String")
            if not isinstance(pattern, str):
                raise ModelFileRefused("tokenizer.json: its decoder replaces by regular expression")
            known[kind] = {"from": pattern, "to": step.get("content", "")}
        elif kind == "Metaspace":
            known[kind] = {"from": step.get("replacement", "▁"), "to": " "}
        elif kind in ("ByteLevel", "ByteFallback", "Fuse", "Strip"):
            # Strip only drops the blank before a text's first word; an answer keeps it.
            known[kind] = {}
        else:
            raise ModelFileRefused(f"tokenizer.json: decoder {kind!r} is not supported")
    return known


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's byte-level alphabet: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [value for value in range(256) if value not in printable]
    alphabet = {chr(value): bytes([value]) for value in printable}
    return alphabet | {chr(0x100 + n): bytes([value]) for n, value in enumerate(others)}
