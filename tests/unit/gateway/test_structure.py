"""What requests say about the form of their answers, and how wrong wishes are refused."""

import json

import pytest

from starai.core.errors import InvalidRequest
from starai.gateway.asking.parsing import parse_chat, parse_completion, parse_embeddings
from starai.protocol.generation import Grammar

HELLO = [{"role": "user", "content": "Hello"}]
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}


def chat(**fields):
    return parse_chat(json.dumps({"model": "m", "messages": HELLO, **fields}).encode())


def embeddings(**fields):
    return parse_embeddings(json.dumps({"model": "m", "input": "Hello", **fields}).encode())


def refusal(parse, **fields):
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return caught.value


def function(name="f", **more):
    return {"type": "function", "function": {"name": name, **more}}


def json_schema(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
        (
            {"response_format": json_schema(PERSON, strict=True)},
            Grammar("json_schema", json.dumps(PERSON, separators=(",", ":"))),
        ),
        ({"guided_json": {"a": 1}}, Grammar("json_schema", '{"a":1}')),
        ({"guided_json": '{ "a": 1}'}, Grammar("json_schema", '{ "a": 1}')),
        ({"guided_regex": "a+"}, Grammar("regex", "a+")),
        ({"guided_choice": ["yes", "né"]}, Grammar("choice", '["yes","né"]')),
    ],
)
def test_shapes(field, shape):
    """A response format, or vLLM's names for more, becomes a grammar."""
    assert chat(**field).shape == shape


def test_a_plain_completion_can_be_shaped_too():
    """Both endpoints know vLLM's fields."""
    body = {"model": "m", "prompt": "x", "guided_choice": ["a"]}
    assert parse_completion(json.dumps(body).encode()).shape == Grammar("choice", '["a"]')


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": json_schema({"d": [[[{}]] * 2], "x": "y" * 70_000})},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": json_schema(json.loads('{"a":' * 90 + "{}" + "}" * 90))},
            "response_format.json_schema.schema",
        ),
        ({"guided_json": "[1]"}, "guided_json"),
        ({"guided_regex": "x" * 70_000}, "guided_regex"),
        ({"guided_regex": "x", "guided_choice": ["x"]}, "guided_choice"),
        ({"priority": 1}, "priority"),
        ({"priority": -101}, "priority"),
        ({"context_tokens": -1}, "context_tokens"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [function("a b")]}, "tools[0].function.name"),
        ({"tools": [function()] * 2}, "tools"),
        ({"tools": [function(str(n)) for n in range(129)]}, "tools"),
        ({"tools": [function(colour=1)]}, "tools[0].function.colour"),
        (
            {"tools": [function(parameters=json.loads('{"a":' * 90 + "{}" + "}" * 90))]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [function()], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [function()], "tool_choice": function("g")}, "tool_choice"),
        ({"tools": [function()], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
    ],
)
def test_wrong_wishes(field, param):
    """Each is refused by its place."""
    assert refusal(chat, **field).param == param


def test_tools():
    """Functions are described as OpenAI describes them; a choice says which must be called."""
    tools = [function("f", description="d", parameters=PERSON, strict=True), function("g")]
    use = chat(tools=tools).tools
    assert use.told == (
        function("f", description="d", parameters=PERSON),
        function("g", parameters={"type": "object", "properties": {}}),
    )
    assert (use.forced, use.parallel) == ((), True)
    assert chat(tools=tools, tool_choice="auto").tools == use
    assert chat(tools=tools, tool_choice="none").tools is None
    assert chat(tools=tools, tool_choice="required").tools.forced == use.told
    named = chat(tools=tools, tool_choice=function("g"), parallel_tool_calls=False).tools
    assert (named.forced, named.parallel) == (use.told[1:], False)


def test_calls_fed_back():
    """A call and its result can be sent back, the arguments as an object for the template."""
    talk = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": [{"type": "text", "text": "sunny"}], "tool_call_id": "c1"},
    ]
    told = {**CALL, "function": {"name": "f", "arguments": {"a": [1]}}}
    assert chat(messages=talk).messages == [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [told]},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "user", "content": "x", "tool_call_id": "1"}, "messages[0].tool_call_id"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages[0].tool_calls"),
        ({"role": "tool", "tool_call_id": "1"}, "messages[0].content"),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]},
            "messages[0].tool_calls[0].type",
        ),
        *(
            (
                {
                    "role": "assistant",
                    "tool_calls": [{**CALL, "function": {"name": "f", "arguments": text}}],
                },
                "messages[0].tool_calls[0].function.arguments",
            )
            for text in ("[1]", "{", '{"a":' * 90 + "1" + "}" * 90)
        ),
    ],
)
def test_calls_that_are_refused(message, param):
    """A call that is none, or in the wrong place."""
    assert refusal(chat, messages=[message]).param == param


def test_embeddings():
    """One input or many, as text or token ids, as numbers or base64."""
    assert embeddings().prompts == ("Hello",)
    assert embeddings(input=["a"] * 2048).num_choices == 2048
    assert embeddings(input=[[1, 2], [3]]).prompts == ([1, 2], [3])
    assert (embeddings().base64, embeddings(encoding_format="base64").base64) == (False, True)
    assert (embeddings().embed, embeddings(priority=-5).priority) == (True, -5)


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"dimensions": 8}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"stream": True}, "stream"),
    ],
)
def test_embeddings_that_are_refused(field, param):
    """What is not offered or makes no sense, by its name."""
    assert refusal(embeddings, **field).param == param
