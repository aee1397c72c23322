"""Formats, tools and embeddings with the unmodified openai package against a real gateway."""

import json
import struct

import openai
import pytest
from pydantic import BaseModel

from starai.models.catalog import open_model
from starai.models.codec import open_codec
from starai.protocol.generation import Grammar
from starai.protocol.tokens import unpack
from starai.testing.tasks import Script, says

HELLO = [{"role": "user", "content": "Weather in Rome?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather now.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


class City(BaseModel):
    name: str
    people: int


@pytest.fixture
def client(served, key):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0) as client:
        yield client


def chat(client, **fields):
    return client.chat.completions.create(**{"model": "mock", "messages": HELLO, **fields})


def test_a_parsed_answer(client, served):
    """The client's own helper for pydantic models: its schema goes to the node as a grammar."""
    served.tasks.script = says('{"name": "Rome", "people": 3}')
    answer = client.chat.completions.parse(model="mock", messages=HELLO, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Rome", people=3)
    grammar = served.tasks.submissions[0].generation.grammar
    assert grammar.kind == "json_schema"
    assert json.loads(grammar.text)["required"] == ["name", "people"]


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
        ({"extra_body": {"guided_regex": "[ab]+"}}, Grammar("regex", "[ab]+")),
        ({"extra_body": {"guided_choice": ["yes", "no"]}}, Grammar("choice", '["yes","no"]')),
        ({}, None),
    ],
)
def test_shapes_go_to_the_node(client, served, fields, grammar):
    """What the answer must look like travels with the task."""
    chat(client, **fields)
    assert served.tasks.submissions[0].generation.grammar == grammar


def test_a_bad_schema_is_refused_at_once(client, served):
    """400 with the place, and no node hears of it."""
    schema = {"type": "object", "properties": {"a": {"type": "frog"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=r"\$\.properties\.a") as refused:
        chat(client, response_format=form)
    assert refused.value.param == "response_format"
    assert served.tasks.submissions == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before", ["", "Let me see.\n"])
def test_a_call_of_a_tool(client, served, stream, before):
    """The model's own writing becomes OpenAI's calls, with text before it and two at once."""
    served.tasks.script = says(f"{before}{CALL}\n{CALL.replace('Rome', 'Oslo')}")
    answer = chat(client, tools=[WEATHER], stream=stream)
    if stream:
        chunks = [chunk.choices[0] for chunk in answer]
        text = "".join(chunk.delta.content or "" for chunk in chunks)
        calls = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
        assert [call.index for call in calls] == [0, 1]
        reason = chunks[-1].finish_reason
    else:
        message, reason = answer.choices[0].message, answer.choices[0].finish_reason
        text, calls = message.content or "", message.tool_calls
    assert (text, reason) == (before.strip(), "tool_calls")
    assert [call.function.name for call in calls] == ["weather"] * 2
    assert [json.loads(call.function.arguments) for call in calls] == [
        {"city": "Rome"},
        {"city": "Oslo"},
    ]
    assert len({call.id for call in calls}) == 2
    prompt = open_codec(open_model("mock")).decode(
        unpack(served.tasks.submissions[0].generation.prompt)
    )
    assert "The weather now." in prompt


def test_an_answer_without_a_call_is_text(client):
    """Tools that are not called change nothing in the answer."""
    choice = chat(client, tools=[WEATHER]).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Hello, world!", "stop")
    assert choice.message.tool_calls is None


def test_a_forced_call_is_a_grammar(client, served):
    """A choice that forces a call is held to on the node; one that forbids it is no tool at all."""
    chat(client, tools=[WEATHER], tool_choice="required")
    chat(client, tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "weather"}})
    chat(client, tools=[WEATHER], tool_choice="none")
    chat(client)
    forced, named, none, plain = [task.generation for task in served.tasks.submissions]
    assert forced.grammar == named.grammar
    assert forced.grammar.kind == "lark"
    assert (none.grammar, none.prompt) == (None, plain.prompt)


def test_a_conversation_with_a_result(client, served):
    """What the client got can be sent back with the result."""
    served.tasks.script = says(CALL)
    message = chat(client, tools=[WEATHER]).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    chat(client, tools=[WEATHER], messages=[*HELLO, message.model_dump(), result])
    prompt = bytes(unpack(served.tasks.submissions[1].generation.prompt)).decode()
    assert CALL in prompt
    assert "sunny" in prompt


def test_embeddings(client, served):
    """One vector an input, in their order, and their tokens counted once."""
    scripts = {b"a": (1.0, 0.0), b"bc": (0.0, 1.0)}
    served.tasks.script = lambda task: Script(
        vector=struct.pack("<2f", *scripts[bytes(unpack(task.generation.prompt))])
    )
    for form in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        answer = client.embeddings.create(model="mock", input=["a", "bc"], **form)
        assert [item.index for item in answer.data] == [0, 1]
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 3)
        if form.get("encoding_format") != "base64":
            assert [list(item.embedding) for item in answer.data] == [[1.0, 0.0], [0.0, 1.0]]
    generation = served.tasks.submissions[0].generation
    assert (generation.embed, generation.max_tokens) == (True, 0)


def test_many_inputs_are_not_asked_all_at_once(client, served):
    """A list of inputs takes a few places of the network at a time."""
    served.tasks.script = Script(first_delay_s=0.01)
    running = []
    served.tasks.script = lambda _: (
        running.append(served.tasks.running) or Script(first_delay_s=0.005)
    )
    answer = client.embeddings.create(model="mock", input=["x"] * 100)
    assert len(answer.data) == 100
    assert 4 < max(running) <= 16


def test_an_input_that_is_too_long(client):
    """The context holds the whole input, and not a token more."""
    client.embeddings.create(model="mock", input="x" * 8192)
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="mock", input="x" * 8193)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")


def test_memory_is_shared_within_an_account_only(client, served, new_entry, new_ring):
    """One key has one salt, which is not made of the key alone; another key has another."""
    for _ in range(2):
        chat(client)
    other = "sk-starai-other"
    table = new_ring(new_entry(other))._accounts
    served.keys._accounts.update(table)
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=other, max_retries=0) as second:
        chat(second)
    salts = [task.generation.cache_salt for task in served.tasks.submissions]
    assert salts[0] == salts[1] != salts[2]
    assert {len(salt) for salt in salts} == {16}


def test_documents_end_where_the_client_says(client, served):
    """A client may say how much of its prompt is documents, but must leave a question."""
    chat(client, extra_body={"context_tokens": 1})
    assert served.tasks.submissions[0].generation.context_tokens == 1
    with pytest.raises(openai.BadRequestError, match="context_tokens"):
        chat(client, extra_body={"context_tokens": 10_000})


def test_stepping_back(client, served):
    """A client may let others go first."""
    chat(client, extra_body={"priority": -10})
    assert served.tasks.submissions[0].generation.priority == -10
