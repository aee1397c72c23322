"""What a request says about the form of its answer: response formats, tools, calls fed back.

Shapes and bounds are checked here; whether a schema can be held to, `shaping` finds out.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from starai.core.errors import InvalidRequest
from starai.core.limits import GRAMMAR_CHARACTERS_MAX
from starai.engines.decoding.grammars import check_schema
from starai.gateway.asking.asks import ToolUse
from starai.gateway.asking.refusals import check_length, unsupported, wrong_value
from starai.gateway.asking.schema import (
    ChatMessage,
    ChatRequest,
    CommonRequest,
    NamedTool,
    ResponseFormat,
    Tool,
)
from starai.gateway.errors import RequestRefused
from starai.protocol.generation import Grammar

#: OpenAI's limits.
_TOOLS_MAX: Final = 128
_CALLS_MAX: Final = 128
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NOTHING: Final[dict[str, Any]] = {"type": "object", "properties": {}}
_ENCODE: Final = msgspec.json.Encoder().encode


def shape_of(request: CommonRequest, response_format: ResponseFormat | None) -> Grammar | None:
    """What the text of the answer must look like.

    Raises:
        InvalidRequest: two things at once, or one that is unknown or out of bounds.
    """
    asked: dict[str, Grammar] = {}
    if response_format is not None and response_format.type != "text":
        asked["response_format"] = _response_format(response_format)
    if request.guided_json is not None:
        given = request.guided_json
        asked["guided_json"] = _schema("guided_json", given)
    if request.guided_regex is not None:
        asked["guided_regex"] = Grammar("regex", request.guided_regex)
    if request.guided_choice is not None:
        asked["guided_choice"] = Grammar("choice", _ENCODE(request.guided_choice).decode())
    if len(asked) > 1:
        first, second = list(asked)[:2]
        raise wrong_value(second, f"'{second}' and '{first}' cannot be used at the same time.")
    for param, grammar in asked.items():
        _check_size(param, grammar.text)
        return grammar
    return None


def _response_format(given: ResponseFormat) -> Grammar:
    if given.type == "json_object":
        return Grammar("json_object")
    if given.type != "json_schema":
        raise wrong_value(
            "response_format.type",
            "Supported values of 'response_format.type' are 'text', 'json_object' and "
            "'json_schema'.",
        )
    if given.json_schema is None:
        raise RequestRefused(
            "Missing required parameter: 'response_format.json_schema'.",
            reason="missing_required_parameter",
            param="response_format.json_schema",
        )
    _check_name("response_format.json_schema.name", given.json_schema.name)
    place = "response_format.json_schema.schema"
    return _schema(place, given.json_schema.schema or {})


def _schema(param: str, given: str | dict[str, Any]) -> Grammar:
    text = given if isinstance(given, str) else _ENCODE(given).decode()
    _check_size(param, text)
    grammar = Grammar("json_schema", text)
    try:
        check_schema(grammar)
    except InvalidRequest as error:
        error.param = param
        raise
    return grammar


def _check_size(param: str, text: str) -> None:
    if len(text) > GRAMMAR_CHARACTERS_MAX:
        raise wrong_value(
            param, f"Invalid '{param}': longer than {GRAMMAR_CHARACTERS_MAX} characters."
        )


def _check_name(param: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise wrong_value(param, f"Invalid '{param}': 1 to 64 letters, digits, '_' or '-'.")


def tools_of(request: ChatRequest) -> ToolUse | None:
    """The functions that the model may call; None: it shall call none.

    Raises:
        InvalidRequest: a tool is no function, a schema out of bounds, a choice not among them.
    """
    tools, choice = request.tools or [], request.tool_choice
    check_length("tools", tools, longest=_TOOLS_MAX)
    told = tuple(_tool(number, tool) for number, tool in enumerate(tools))
    names = [tool["function"]["name"] for tool in told]
    if len(set(names)) < len(names):
        raise wrong_value("tools", "Invalid 'tools': two functions have the same name.")
    if choice is not None and not told and choice != "none":
        raise wrong_value("tool_choice", "'tool_choice' is only allowed when 'tools' are given.")
    if not told or choice == "none":
        return None
    forced = _forced(told, choice)
    return ToolUse(told, forced, request.parallel_tool_calls is not False)


def _forced(
    told: tuple[dict[str, Any], ...], choice: str | NamedTool | None
) -> tuple[dict[str, Any], ...]:
    if choice in (None, "auto"):
        return ()
    if choice == "required":
        return told
    if isinstance(choice, str) or choice is None:
        raise wrong_value(
            "tool_choice",
            "Supported values of 'tool_choice' are 'none', 'auto', 'required' and a function.",
        )
    if choice.type != "function" or choice.function is None:
        raise unsupported("tool_choice.type", "Only a function can be chosen.")
    named = tuple(tool for tool in told if tool["function"]["name"] == choice.function.name)
    if not named:
        raise wrong_value("tool_choice", "'tool_choice' names a function that is not in 'tools'.")
    return named


def _tool(number: int, tool: Tool) -> dict[str, Any]:
    place = f"tools[{number}]"
    if tool.type != "function" or tool.custom is not None:
        raise unsupported(f"{place}.type", "Only functions can be called.")
    if tool.function is None:
        raise RequestRefused(
            f"Missing required parameter: '{place}.function'.",
            reason="missing_required_parameter",
            param=f"{place}.function",
        )
    spec = tool.function
    _check_name(f"{place}.function.name", spec.name)
    parameters = _NOTHING if spec.parameters is None else spec.parameters
    _schema(f"{place}.function.parameters", parameters)
    described = {} if spec.description is None else {"description": spec.description}
    function = {"name": spec.name, **described, "parameters": parameters}
    return {"type": "function", "function": function}


def tool_fields(sent: ChatMessage, place: str) -> dict[str, Any]:
    """What a message has besides role and content: calls that were made, or whose result it is.

    Raises:
        InvalidRequest: a call is none, or stands where none can.
    """
    if sent.role == "tool":
        if sent.tool_call_id is None:
            raise RequestRefused(
                f"Missing required parameter: '{place}.tool_call_id'.",
                reason="missing_required_parameter",
                param=f"{place}.tool_call_id",
            )
        return {"tool_call_id": sent.tool_call_id}
    if sent.tool_call_id is not None:
        raise unsupported(f"{place}.tool_call_id", "It belongs to messages of the role 'tool'.")
    if not sent.tool_calls:
        return {}
    if sent.role != "assistant":
        raise unsupported(f"{place}.tool_calls", "They belong to messages of the role 'assistant'.")
    check_length(f"{place}.tool_calls", sent.tool_calls, longest=_CALLS_MAX)
    calls = []
    for number, call in enumerate(sent.tool_calls):
        at = f"{place}.tool_calls[{number}]"
        if call.type != "function":
            raise unsupported(f"{at}.type", "Only functions can be called.")
        arguments = _arguments(call.function.arguments, f"{at}.function.arguments")
        function = {"name": call.function.name, "arguments": arguments}
        calls.append({"id": call.id, "type": "function", "function": function})
    return {"tool_calls": calls}


def _arguments(text: str, param: str) -> dict[str, Any]:
    try:
        # An object for templates, which write it their way; as deep as a schema may be.
        check_schema(Grammar("json_schema", text or "{}"))
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (InvalidRequest, msgspec.DecodeError) as error:
        raise wrong_value(param, f"Invalid '{param}': not a JSON object.") from error
