"""Grammars that nodes hold answers to: made from tools and formats, and good before they go."""

import json

import anyio
import pytest

from starai.core.errors import InvalidRequest, UnsupportedField
from starai.engines.decoding.constraint import Grammars
from starai.gateway.asking.asks import Ask, ToolUse
from starai.gateway.asking.shaping import Checker, grammar_of
from starai.models.catalog import open_model
from starai.models.codec import open_codec
from starai.protocol.generation import Grammar

MOCK = open_model("mock")
GRAMMARS = Grammars(open_codec(MOCK), MOCK.eos_token_ids)


def tool(name, **parameters):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


CITY = tool(
    "weather",
    type="object",
    properties={"city": {"$ref": "#/$defs/city"}},
    required=["city"],
    additionalProperties=False,
    **{"$defs": {"city": {"enum": ["Rome", "Oslo"]}}},
)
NOW = tool("now", type="object", properties={}, additionalProperties=False)


def ask(told=(CITY, NOW), forced=(), parallel=True, shape=None):
    use = ToolUse(tuple(told), tuple(forced), parallel) if told else None
    return Ask("m", tools=use, shape=shape)


def call(name, arguments, key="arguments"):
    text = json.dumps({"name": name, key: arguments})
    return f"<tool_call>\n{text}\n</tool_call>" if key == "arguments" else text


def fits(grammar, text):
    """Whether ``text`` can be the whole answer."""
    try:
        return GRAMMARS.constraint(grammar, list(text.encode())).may_end
    except InvalidRequest:
        return False


def test_nothing_is_held_to_without_a_wish():
    """Tools that may be called or not leave the answer free."""
    assert grammar_of(ask(()), "hermes") is None
    assert grammar_of(ask(), "hermes") is None
    assert grammar_of(ask((), shape=Grammar("regex", "a")), None) == Grammar("regex", "a")


def test_a_forced_call_is_one_of_the_functions_with_its_arguments():
    """Names, arguments and references inside a schema hold; text is none."""
    grammar = grammar_of(ask(forced=(CITY, NOW)), "hermes")
    rome, now = call("weather", {"city": "Rome"}), call("now", {})
    assert all(fits(grammar, text) for text in (rome, now, f"{rome}\n{now}"))
    for wrong in ("Rome", call("weather", {"city": "Paris"}), call("weather", {}), call("x", {})):
        assert not fits(grammar, wrong)


def test_a_named_function_is_the_only_one():
    """Other functions are told of and cannot be called; one call where several are not wished."""
    grammar = grammar_of(ask(forced=(NOW,), parallel=False), "hermes")
    now = call("now", {})
    assert fits(grammar, now)
    assert not fits(grammar, call("weather", {"city": "Rome"}))
    assert not fits(grammar, f"{now}\n{now}")


def test_llamas_style():
    """One JSON object with parameters."""
    grammar = grammar_of(ask(forced=(CITY,)), "llama3")
    assert fits(grammar, call("weather", {"city": "Oslo"}, "parameters"))
    assert not fits(grammar, call("weather", {"city": "Oslo"}))


def test_a_format_beside_tools():
    """The answer is a call, or JSON of the format."""
    shape = Grammar("json_schema", '{"type":"object","properties":{"a":{"type":"integer"}}}')
    grammar = grammar_of(ask(shape=shape), "hermes")
    assert fits(grammar, call("now", {}))
    assert fits(grammar, '{"a": 1}')
    assert not fits(grammar, '{"a": "1"}')
    assert not fits(grammar, "text")


@pytest.mark.parametrize(
    ("asked", "style", "param"),
    [
        (ask(), None, "tools"),
        (ask(shape=Grammar("regex", "a")), "hermes", "tools"),
        (
            ask((tool("f", description="x" * 65_000),), (tool("f", x="y" * 66_000),)),
            "hermes",
            "tools",
        ),
    ],
)
def test_wishes_that_cannot_be_met(asked, style, param):
    """A model whose way of calling is unknown, a regular expression beside tools, too much."""
    with pytest.raises(InvalidRequest) as refused:
        grammar_of(asked, style)
    assert refused.value.param == param
    assert isinstance(refused.value, UnsupportedField) is (style is None)


def test_bad_schemas_are_refused_before_they_go_to_a_node():
    """A response format by its place inside, a tool by its name."""
    bad = {"type": "object", "properties": {"a": {"type": "frog"}}}
    schema = Grammar("json_schema", json.dumps(bad))
    for asked, words in (
        (ask((), shape=schema), r"\$\.properties\.a"),
        (ask((tool("f", **bad),), (tool("f", **bad),)), r"Function 'f'.*\$\.properties\.a"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            anyio.run(Checker().check, grammar_of(asked, "hermes"), asked)


def test_a_good_grammar_is_compiled_once():
    """The second time it is known."""
    checker, asked = Checker(), ask(forced=(CITY,))
    grammar = grammar_of(asked, "hermes")
    for _ in range(2):
        anyio.run(checker.check, grammar, asked)
    assert list(checker._known) == [grammar]
