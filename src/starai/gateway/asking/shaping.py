"""From what an answer shall look like to the grammar that a node holds it to.

A forced call of a tool is a grammar in the model's own style of writing calls; a response format
beside tools is one that lets either come. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import msgspec

from starai.core.errors import ConfigurationRefused, InvalidRequest
from starai.core.limits import GRAMMAR_CHARACTERS_MAX
from starai.core.threads import in_thread
from starai.engines.decoding.grammars import WHITE_SPACE, check_grammar
from starai.gateway.asking.asks import Ask, ToolUse
from starai.gateway.asking.refusals import unsupported, wrong_value
from starai.models.tools import CALL_BEGIN, CALL_END, ToolStyle
from starai.protocol.generation import Grammar

#: Grammars known to be good; an application uses a handful.
_KNOWN_MAX: Final = 256
_ENCODE: Final = msgspec.json.Encoder().encode


def grammar_of(ask: Ask, style: ToolStyle | None) -> Grammar | None:
    """What a node shall hold the answer to; None: nothing.

    Raises:
        InvalidRequest: this model writes calls in a way that is not known here, or the wishes
            cannot be combined.
    """
    use = ask.tools
    if use is None:
        return ask.shape
    if style is None:
        raise unsupported("tools", "This model writes calls in a way that is not known here.")
    if not use.forced and ask.shape is None:
        return None
    if ask.shape is not None and not ask.shape.kind.startswith("json"):
        raise wrong_value(
            "tools", "'tools' cannot be combined with a regular expression or choice."
        )
    lines = _calls(use, style)
    if ask.shape is None or use.forced:
        lines.insert(0, "start: calls")
    else:
        lines.insert(0, "start: calls | answer")
        lines.append("answer: " + _json(msgspec.json.decode(ask.shape.text or '{"type":"object"}')))
    text = "\n".join(lines)
    if len(text) > GRAMMAR_CHARACTERS_MAX:
        raise wrong_value("tools", "Invalid 'tools': their schemas are too large together.")
    return Grammar("lark", text)


def _calls(use: ToolUse, style: ToolStyle) -> list[str]:
    functions = [tool["function"] for tool in use.forced or use.told]
    key = "arguments" if style == "hermes" else "parameters"
    rules = [f"one{n}: {_json(_call(spec, key))}" for n, spec in enumerate(functions)]
    one = "one: " + " | ".join(f"one{number}" for number in range(len(functions)))
    if style == "llama3":
        return ["calls: one", one, *rules]
    more = ' ("\\n" call)*' if use.parallel else ""
    return [f"calls: call{more}", f'call: "{CALL_BEGIN}\\n" one "\\n{CALL_END}"', one, *rules]


def _call(spec: dict[str, Any], key: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": spec["name"]},
            key: _moved(spec["parameters"], f"#/properties/{key}"),
        },
        "required": ["name", key],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    """A schema that now stands at ``place``: its references to itself lead there."""
    if isinstance(schema, dict):
        return {
            name: place + value[1:]
            if name == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, place)
            for name, value in schema.items()
        }
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    return schema


def _json(schema: dict[str, Any]) -> str:
    return "%json " + _ENCODE({**schema, "x-guidance": WHITE_SPACE}).decode()


class Checker:
    """Compiles grammars once, aside, so that a bad one is the client's error and not a node's."""

    def __init__(self) -> None:
        """Know none yet."""
        self._known: OrderedDict[Grammar, None] = OrderedDict()

    async def check(self, grammar: Grammar, ask: Ask) -> None:
        """Refuse what no node could hold an answer to.

        Raises:
            InvalidRequest: says why, and where.
        """
        if grammar in self._known:
            self._known.move_to_end(grammar)
            return
        try:
            await in_thread(partial(_check, grammar, ask))
        except ConfigurationRefused:
            return  # this gateway has no compiler: the nodes find out
        self._known[grammar] = None
        if len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)


def _check(grammar: Grammar, ask: Ask) -> None:
    try:
        check_grammar(grammar)
    except InvalidRequest as error:
        _blame_tool(ask.tools.forced or ask.tools.told if ask.tools else ())
        error.param = "response_format" if grammar.kind.startswith("json") else None
        raise


def _blame_tool(tools: Sequence[dict[str, Any]]) -> None:
    """Raise for the tool whose schema is at fault, if one is by itself."""
    for tool in tools:
        spec = tool["function"]
        try:
            check_grammar(Grammar("json_schema", _ENCODE(spec["parameters"]).decode()))
        except InvalidRequest as error:
            raise wrong_value("tools", f"Function '{spec['name']}': {error.message}") from error
