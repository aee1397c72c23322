"""The tokenizer beside a llama2.c model: a SentencePiece ``*.model``, or llama2.c's ``tok*.bin``.

``tok*.bin`` (github.com/karpathy/llama2.c, tokenizer.py): u32 longest piece in bytes, then per id a
float32 score, a u32 length and the piece's bytes, blanks already as blanks.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from starai.core.errors import InvalidRequest, ModelFileRefused
from starai.models.conversation import check_messages
from starai.models.folder import read_bytes
from starai.models.manifest import ModelManifest
from starai.models.pieces import Pieces
from starai.models.sentencepieces import SentencePieceCodec, load_sentencepiece
from starai.models.tools import Message, written_out

#: llama2.c's convention: 0 unknown, 1 begin, 2 end, 3 to 258 the bytes where there are so many.
_CONTROL: Final = frozenset({0, 1, 2})
_BOS: Final = 1
_FIRST_BYTE: Final = 3
#: Longer pieces make no tokenizer.
_PIECE_BYTES_MAX: Final = 1024
#: Merging is quadratic in the length of a text; a llama2.c context holds far less.
_TEXT_CHARACTERS_MAX: Final = 16_384
_BYTE_PIECE: Final = re.compile(rb"<0x([0-9A-F]{2})>")


def find_llama2c_tokenizer(model: Path, vocab_size: int) -> Path:
    """The tokenizer file in the folder of ``model`` that has exactly ``vocab_size`` ids.

    Raises:
        ModelFileRefused: there is none, or none fits; says what was found.
    """
    found: list[str] = []
    folder = model.parent
    for path in (*sorted(folder.glob("*.model")), *sorted(folder.glob("tok*.bin"))):
        if path.suffix == ".model":
            size = load_sentencepiece(path).GetPieceSize()
        else:
            size = len(_read_pieces(path)[0])
        if size == vocab_size:
            return path
        found.append(f"{path.name} has {size}")
    raise ModelFileRefused(
        f"{model.name}: no tokenizer of {vocab_size} ids lies beside it"
        f" ({'; '.join(found) or 'no *.model, no tok*.bin'})"
    )


def open_llama2c_codec(manifest: ModelManifest) -> SentencePieceCodec | Llama2cCodec:
    """The codec of a llama2.c model."""
    path = find_llama2c_tokenizer(Path(manifest.path), manifest.vocab_size)
    if path.suffix == ".model":
        return SentencePieceCodec(manifest, path)
    return Llama2cCodec(manifest, path)


class Llama2cCodec(Pieces):
    """llama2.c's own byte-pair encoding: the best-scoring neighbours merge first (run.c)."""

    def __init__(self, manifest: ModelManifest, path: Path) -> None:
        """Load a ``tok*.bin``."""
        pieces, self._scores = _read_pieces(path)
        self._id_of = {piece: id_ for id_, piece in reversed(list(enumerate(pieces)))}
        shown = [
            bytes([int(byte[1], 16)]) if (byte := _BYTE_PIECE.fullmatch(piece)) else piece
            for piece in pieces
        ]
        self._pieces = pieces
        super().__init__(shown, _CONTROL | frozenset(manifest.eos_token_ids), manifest.vocab_size)

    def encode(self, text: str) -> list[int]:
        """The begin token, and the ids of ``text`` behind one blank."""
        if len(text) > _TEXT_CHARACTERS_MAX:
            raise InvalidRequest(f"this model takes up to {_TEXT_CHARACTERS_MAX} characters")
        ids = [id_ for character in (" " + text if text else "") for id_ in self._single(character)]
        while (best := self._best_merge(ids)) is not None:
            position, merged = best
            ids[position : position + 2] = [merged]
        return [_BOS, *ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; behind a begin token, without the blank that encoding put there."""
        taken = list(ids)
        text = super().decode(taken)
        return text.removeprefix(" ") if taken[:1] == [_BOS] else text

    def render_chat(self, messages: list[Message], tools: Sequence[Any] = ()) -> list[int]:
        """The contents of the messages, joined by newlines."""
        check_messages(messages)
        told = written_out(messages, tools)
        return self.encode("\n".join(message["content"] for message in told))

    def _single(self, character: str) -> list[int]:
        try:
            raw = character.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("the text is not valid Unicode") from error
        known = self._id_of.get(raw)
        if known is not None:
            return [known]
        ids = [self._id_of.get(b"<0x%02X>" % byte, 0) for byte in raw]
        return ids if all(ids) else [0]

    def _best_merge(self, ids: list[int]) -> tuple[int, int] | None:
        best: tuple[float, int, int] | None = None
        for position in range(len(ids) - 1):
            merged = self._id_of.get(self._pieces[ids[position]] + self._pieces[ids[position + 1]])
            if merged is not None and (best is None or self._scores[merged] > best[0]):
                best = (self._scores[merged], position, merged)
        return None if best is None else best[1:]


def _read_pieces(path: Path) -> tuple[list[bytes], list[float]]:
    raw = read_bytes(path)
    pieces: list[bytes] = []
    scores: list[float] = []
    at = 4
    while at < len(raw):
        if at + 8 > len(raw):
            raise ModelFileRefused(f"{path.name}: truncated at token {len(pieces)}")
        score, length = struct.unpack_from("<fI", raw, at)
        at += 8 + length
        if length > _PIECE_BYTES_MAX or at > len(raw):
            raise ModelFileRefused(f"{path.name}: truncated at token {len(pieces)}")
        pieces.append(raw[at - length : at])
        scores.append(score)
    return pieces, scores
