"""The mock model's codec: ids 0 to 255 are bytes, 256 ends an answer. No files, no template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starai.core.errors import InvalidRequest
from starai.models.conversation import check_messages
from starai.models.pieces import Pieces
from starai.models.tools import Message, written_out

_EOS = 256


class MockCodec(Pieces):
    """UTF-8 bytes as tokens; a conversation is its contents, one a line."""

    def __init__(self) -> None:
        """Build the table of bytes."""
        pieces = [bytes([value]) for value in range(_EOS)]
        super().__init__([*pieces, b"<end>"], frozenset({_EOS}), _EOS + 1)

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of ``text``."""
        try:
            return list(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidRequest("the text is not valid Unicode") from error

    def render_chat(self, messages: list[Message], tools: Sequence[Any] = ()) -> list[int]:
        """The contents, each on its line."""
        check_messages(messages)
        told = written_out(messages, tools)
        return self.encode("".join(message["content"] + "\n" for message in told))
