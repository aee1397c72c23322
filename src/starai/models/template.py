"""Chat templates: a model's own jinja2 program, run in a sandbox, safe from its users.

**Why a user cannot forge a turn.** A template pastes message texts between control tokens such as
``<|im_start|>``; a text that contains one would be read as structure. Before rendering, `render`
therefore breaks every control token inside a message with a mark behind its first character
(``<`` MARK ``|im_start|>``). The mark is a private-use character that occurs nowhere in the
conversation. After rendering, the text is cut at the marks and each part is tokenised on its own,
so a control token can only come from the template. Texts without control tokens are tokenised
exactly as everyone else tokenises them, because nothing is cut; trimming and tests inside the
template work on the real text. Roles are a closed set.

Differences to transformers: no ``strftime_now`` (templates fall back to their fixed date), so that
the same conversation gives the same ids on every machine and day. Knows nothing about tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, NoReturn

import msgspec
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from starai.core.errors import InvalidRequest, ModelFileRefused
from starai.models.conversation import check_messages

#: Templates that are programs have up to 30 kB; more is no template.
_TEMPLATE_CHARACTERS_MAX: Final = 1 << 20
#: Marks are looked for here: Unicode's supplementary private use area B.
_MARKS: Final = range(0x100000, 0x10FFFE)


class _Generation(Extension):
    """``{% generation %}`` marks answers for training; here its body is just rendered."""

    tags: Final = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Refusal(TemplateError):
    """The template itself called ``raise_exception``."""


def _raise_exception(message: str) -> NoReturn:
    raise _Refusal(message)


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    text = msgspec.json.encode(value)
    return (msgspec.json.format(text, indent=indent) if indent else text).decode()


class ChatTemplate:
    """A model's chat template, and the control tokens that messages must not forge."""

    def __init__(self, source: str, control_tokens: Iterable[str], names: dict[str, str]) -> None:
        """Compile ``source``; ``names`` are its variables (``bos_token``, ``eos_token`` ...).

        Raises:
            ModelFileRefused: it is not a jinja2 template.
        """
        if len(source) > _TEMPLATE_CHARACTERS_MAX:
            raise ModelFileRefused("the chat template is larger than 1 MiB")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelFileRefused(f"the chat template does not compile: {error}") from error
        self._source = source
        self._names = names
        self._breaks = Breaks(control_tokens)

    def render(self, messages: list[dict[str, str]]) -> list[str]:
        """The conversation's text, to be tokenised part by part and joined.

        Raises:
            InvalidRequest: the template refuses the conversation, or a role is unknown.
        """
        check_messages(messages)
        mark = self._breaks.mark_for(messages, self._source)
        safe = [
            {key: self._breaks.broken(value, mark) for key, value in message.items()}
            for message in messages
        ]
        try:
            text = self._template.render(messages=safe, add_generation_prompt=True, **self._names)
        except _Refusal as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        except (TemplateError, TypeError, ValueError, LookupError, OverflowError) as error:
            # Its words are left out: an error of evaluation may quote a message.
            raise InvalidRequest(
                "the model's chat template cannot render these messages", param="messages"
            ) from error
        return [part for part in text.split(mark) if part]


class Breaks:
    """Breaks control tokens inside a text, so that none of them is read as one."""

    def __init__(self, control_tokens: Iterable[str]) -> None:
        """Take the strings that must not be read as control tokens."""
        longest_first = sorted({token for token in control_tokens if len(token) > 1}, key=len)
        # A lookahead finds overlapping tokens too; cutting behind the first character breaks each.
        self._pattern = (
            re.compile("(?=(?:" + "|".join(map(re.escape, longest_first)) + "))(.)", re.DOTALL)
            if longest_first
            else None
        )

    def mark_for(self, messages: list[dict[str, str]], source: str = "") -> str:
        """A character that occurs neither in the messages nor in ``source``."""
        used = set(source).union(*(set(value) for m in messages for value in m.values()))
        return next(mark for mark in map(chr, _MARKS) if mark not in used)

    def broken(self, text: str, mark: str) -> str:
        """``text`` with ``mark`` inside every control token."""
        return self._pattern.sub(rf"\g<1>{mark}", text) if self._pattern else text
