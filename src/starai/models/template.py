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

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NoReturn

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from starai.core.errors import InvalidRequest, ModelFileRefused
from starai.models.conversation import check_messages
from starai.models.tools import Message

#: Templates that are programs have up to 30 kB; more is no template.
_TEMPLATE_CHARACTERS_MAX: Final = 1 << 20
#: What a template can go wrong with when it runs.
_FAULTS: Final = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    RecursionError,
)
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
    # Written as transformers does, blanks included: models were trained on that.
    return json.dumps(value, ensure_ascii=False, indent=indent)


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
            asked = meta.find_undeclared_variables(environment.parse(source))
        except (TemplateError, ValueError, RecursionError) as error:
            raise ModelFileRefused(f"the chat template does not compile: {error}") from error
        #: Whether the template has a place for tools.
        self.knows_tools = "tools" in asked
        self._source = source
        self._names = names
        self._breaks = Breaks(control_tokens)

    def render(self, messages: list[Message], tools: Sequence[Any] = ()) -> list[str]:
        """The conversation's text, to be tokenised part by part and joined.

        Raises:
            InvalidRequest: the template refuses the conversation, or a role is unknown.
        """
        check_messages(messages)
        mark = self._breaks.mark_for([*messages, *tools], self._source)
        safe = self._breaks.all_broken(messages, mark)
        given = {"tools": self._breaks.all_broken(list(tools), mark)} if tools else {}
        try:
            text = self._template.render(
                messages=safe, add_generation_prompt=True, **given, **self._names
            )
        except _Refusal as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        except _FAULTS as error:
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

    def mark_for(self, values: Sequence[Any], source: str = "") -> str:
        """A character that occurs neither in the texts within ``values`` nor in ``source``."""
        used = set(source).union(*map(set, _texts(values)))
        return next(mark for mark in map(chr, _MARKS) if mark not in used)

    def broken(self, text: str, mark: str) -> str:
        """``text`` with ``mark`` inside every control token."""
        return self._pattern.sub(rf"\g<1>{mark}", text) if self._pattern else text

    def all_broken(self, value: Any, mark: str) -> Any:
        """A JSON value with every text in it `broken`, names of fields included."""
        if isinstance(value, str):
            return self.broken(value, mark)
        if isinstance(value, dict):
            return {self.broken(k, mark): self.all_broken(v, mark) for k, v in value.items()}
        if isinstance(value, list):
            return [self.all_broken(item, mark) for item in value]
        return value


def _texts(value: Any) -> Iterator[str]:
    """Every text within a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, held in value.items():
            yield key
            yield from _texts(held)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
