"""SentencePiece ``.model`` tokenizers: llama2.c models and older Hugging Face folders.

These models have no chat template: a conversation is its contents, one after another on lines,
which is what a story model can continue. SentencePiece never reads control tokens from text, so
nothing can be forged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starai.core.errors import InvalidRequest, ModelFileRefused
from starai.models.conversation import check_messages
from starai.models.folder import read_bytes
from starai.models.manifest import ModelManifest
from starai.models.pieces import Pieces
from starai.models.tools import Message, written_out

if TYPE_CHECKING:
    import sentencepiece

_SPACE = "▁"


def load_sentencepiece(path: Path) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model.

    Raises:
        ModelFileRefused: the file is not one.
    """
    import sentencepiece  # noqa: PLC0415 - a library that few models need

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(read_bytes(path))
    except (RuntimeError, TypeError) as error:
        raise ModelFileRefused(f"{path.name}: not a SentencePiece model") from error
    return processor


class SentencePieceCodec(Pieces):
    """The codec of a SentencePiece model; `encode` begins with its begin token if it has one."""

    def __init__(self, manifest: ModelManifest, path: Path) -> None:
        """Load the model's tokenizer.

        Raises:
            ModelFileRefused: the file is not a SentencePiece model, or knows more ids.
        """
        self._processor = load_sentencepiece(path)
        size = self._processor.GetPieceSize()
        if size > manifest.vocab_size:
            raise ModelFileRefused(
                f"{path.name}: knows {size} ids, the model's vocabulary has {manifest.vocab_size}"
            )
        control = {id_ for id_ in range(size) if self._processor.IsControl(id_)}
        try:
            pieces = [self._piece(id_) for id_ in range(size)]
        except ValueError as error:
            raise ModelFileRefused(f"{path.name}: has a piece that is no text") from error
        super().__init__(
            pieces,
            frozenset(control | set(manifest.eos_token_ids)),
            manifest.vocab_size,
        )
        self._bos = self._processor.bos_id()

    def encode(self, text: str) -> list[int]:
        """The ids of a raw prompt."""
        try:
            ids = [int(id_) for id_ in self._processor.EncodeAsIds(text)]
        except UnicodeEncodeError as error:
            raise InvalidRequest("the text is not valid Unicode") from error
        return [self._bos, *ids] if self._bos >= 0 else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; behind a begin token, without the blank that encoding put there."""
        taken = list(ids)
        text = super().decode(taken)
        return text.removeprefix(" ") if taken[:1] == [self._bos] else text

    def render_chat(self, messages: list[Message], tools: Sequence[Any] = ()) -> list[int]:
        """The contents of the messages, joined by newlines."""
        check_messages(messages)
        told = written_out(messages, tools)
        return self.encode("\n".join(message["content"] for message in told))

    def _piece(self, id_: int) -> bytes:
        piece: str = self._processor.IdToPiece(id_)
        if self._processor.IsByte(id_):
            return bytes([int(piece[3:5], 16)])
        if self._processor.IsUnknown(id_):
            return " \N{DOUBLE QUESTION MARK} ".encode()
        return piece.replace(_SPACE, " ").encode()
