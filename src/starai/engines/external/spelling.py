"""Token ids as text, and an answer's text as token ids, for servers that know only text.

**Prompts** are spelled with their control tokens, as a server reads them, and then read back: what
does not come out as the very ids that were meant is refused, so that nothing a user typed can turn
into a control token there. **Answers** are cut into the longest tokens of the vocabulary. Where a
server sends a token a time, as all that were tried do, these are its own tokens, unless several
tokens have the same bytes; else they are other tokens of the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starai.core.errors import UnsupportedField
from starai.models.codec import TextCodec
from starai.models.manifest import ModelManifest

#: Longer tokens are rare, and none of them is needed.
_PIECE_BYTES_MAX: Final = 256


class Spelling:
    """One model's way from ids to text and back."""

    def __init__(self, codec: TextCodec, manifest: ModelManifest) -> None:
        """Learn the vocabulary; 150,000 tokens take a quarter of a second."""
        self._codec = codec
        begins = codec.encode("")
        self._begin = begins[0] if begins else None
        self._ids: dict[bytes, int] = {}
        self._longest = 1
        ends = set(manifest.eos_token_ids)
        for id_ in range(codec.vocab_size):
            piece = codec.token_bytes(id_)
            # Of tokens with the same bytes the last counts: SentencePiece's single bytes come
            # before the letters that are the same.
            if id_ not in ends and 0 < len(piece) <= _PIECE_BYTES_MAX and codec.decode([id_]):
                self._ids[piece] = id_
                self._longest = max(self._longest, len(piece))

    def text_of(self, ids: Sequence[int], prompt: int) -> str:
        """The text that a server reads as ``ids``, of which the first ``prompt`` must be exact.

        An unfinished character at the end is left out.

        Raises:
            UnsupportedField: there is no such text.
        """
        spelled = ids[1:] if ids and ids[0] == self._begin else ids
        raw = b"".join(self._codec.token_bytes(id_) for id_ in spelled)
        text = raw.decode("utf-8", "ignore")
        # SentencePiece puts a blank before the first word by itself.
        for candidate in (text, text.removeprefix(" ")):
            if self._codec.encode(candidate)[:prompt] == list(ids[:prompt]):
                return candidate
        raise UnsupportedField("this server takes text, and no text is read as this prompt")

    def ids_of(self, text: str) -> list[int]:
        """The ids of a piece of an answer: the longest tokens first, from left to right."""
        data, ids, at = text.encode(), list[int](), 0
        while at < len(data):
            for length in range(min(self._longest, len(data) - at), 0, -1):
                id_ = self._ids.get(data[at : at + length])
                if id_ is not None:
                    ids.append(id_)
                    break
            else:
                length = 1  # a byte that the vocabulary cannot spell is lost, as it is to the model
            at += length
        return ids
