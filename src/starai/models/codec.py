"""Text to token ids and back, for one model: the contract and the choice of implementation.

Gateways encode and decode; nodes never see text. Knows nothing about engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from starai.models.conversation import ROLES
from starai.models.manifest import ModelManifest
from starai.models.pieces import StreamDecoder
from starai.models.tools import Message, ToolStyle

__all__ = ["ROLES", "StreamDecoder", "TextCodec", "open_codec"]


class TextCodec(Protocol):
    """One model's tokenizer and chat template. Thread-safe; decoding needs no lock."""

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        ...

    @property
    def tool_style(self) -> ToolStyle | None:
        """How the model writes calls of tools; None: in a way that is not known here."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a raw prompt, with the begin token if the model uses one.

        Control tokens written in ``text`` count as such, as in every completions API: a raw
        prompt is its author's own.

        Raises:
            InvalidRequest: the text is not valid Unicode.
        """
        ...

    def render_chat(self, messages: list[Message], tools: Sequence[Any] = ()) -> list[int]:
        """The ids of a conversation, up to where the assistant's answer begins.

        Control tokens written in a message are plain text: nobody can forge a turn. ``tools``
        are OpenAI's descriptions of functions.

        Raises:
            InvalidRequest: a role is unknown, or the model's template refuses the conversation.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, without control tokens."""
        ...

    def stream(self) -> StreamDecoder:
        """A decoder for an answer that comes in parts."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, for log-probabilities."""
        ...

    def token_text(self, token_id: int) -> str:
        """One token as text, for log-probabilities."""
        ...


def open_codec(manifest: ModelManifest) -> TextCodec:
    """The codec of a model.

    Raises:
        ModelFileRefused: its tokenizer is wrong, of an unsupported kind, or not the model's.
    """
    if manifest.kind == "mock":
        from starai.models.mock_codec import MockCodec  # noqa: PLC0415 - load what is used

        return MockCodec()
    if manifest.kind == "llama2c":
        from starai.models.llama2c_tokens import open_llama2c_codec  # noqa: PLC0415

        return open_llama2c_codec(manifest)
    if manifest.kind == "gguf":
        from starai.models.gguf.model import gguf_companions  # noqa: PLC0415
        from starai.models.tokenizer_json import TokenizerJsonCodec  # noqa: PLC0415

        return TokenizerJsonCodec(manifest, gguf_companions(Path(manifest.path)))
    if (Path(manifest.path) / "tokenizer.json").is_file():
        from starai.models.tokenizer_json import TokenizerJsonCodec  # noqa: PLC0415

        return TokenizerJsonCodec(manifest)
    from starai.models.sentencepieces import SentencePieceCodec  # noqa: PLC0415

    return SentencePieceCodec(manifest, Path(manifest.path) / "tokenizer.model")
