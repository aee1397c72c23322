"""Text from token ids, byte by byte: every tokenizer here is a table of byte pieces.

A token's piece is the bytes that it adds to an answer, so decoding is concatenation and a stream
decodes exactly as the whole does. Knows nothing about how text becomes ids.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from typing import Final

from starai.models.tools import ToolStyle

#: How vocabularies write the piece of a single byte.
BYTE_PIECE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")

_DECODER: Final = codecs.getincrementaldecoder("utf-8")


class StreamDecoder:
    """Turns an answer's ids into text as they come: never half a character.

    Bytes that can still become a character wait; bytes that cannot become U+FFFD at once.
    """

    def __init__(self, pieces: Pieces) -> None:
        """Start at the beginning of an answer."""
        self._pieces = pieces
        self._utf8 = _DECODER("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that ``ids`` complete; may be empty."""
        return self._utf8.decode(self._pieces.text_bytes(ids))

    def flush(self) -> str:
        """The end of the answer: an unfinished character becomes U+FFFD."""
        return self._utf8.decode(b"", final=True)


class Pieces:
    """The byte pieces of a vocabulary; control tokens are pieces that add nothing to a text.

    Attributes:
        vocab_size: ids the model may produce; ids without a piece add nothing.
        tool_style: how the model writes calls of tools.
    """

    def __init__(self, pieces: Sequence[bytes], control: frozenset[int], vocab_size: int) -> None:
        """Take each id's bytes; those of ``control`` ids are shown but not part of a text."""
        self._shown = pieces
        self._text = [b"" if id_ in control else piece for id_, piece in enumerate(pieces)]
        self.vocab_size = vocab_size
        self.tool_style: ToolStyle | None = "hermes"

    def text_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ``ids`` add to a text."""
        text = self._text
        known = [*ids]
        if known and min(known) >= 0 and max(known) < len(text):
            return b"".join(map(text.__getitem__, known))  # nearly always, and without a loop
        return b"".join([text[id_] for id_ in known if 0 <= id_ < len(text)])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; equals a stream's pushes and its flush."""
        return self.text_bytes(ids).decode("utf-8", "replace")

    def stream(self) -> StreamDecoder:
        """A decoder for an answer that comes in parts."""
        return StreamDecoder(self)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, control tokens included; empty for an id without a piece."""
        return self._shown[token_id] if 0 <= token_id < len(self._shown) else b""

    def token_text(self, token_id: int) -> str:
        """One token as OpenAI's log-probabilities show it; half characters become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")
