"""What requests are understood, and how the others are refused."""

import contextlib
import json

import pytest
from hypothesis import given, strategies as st

from starai.core.errors import InvalidRequest, UnsupportedField
from starai.gateway.asking.parsing import parse_chat, parse_completion
from starai.gateway.asking.schema import ChatRequest

HELLO = [{"role": "user", "content": "Hello"}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def chat(**fields):
    return parse_chat(json.dumps({"model": "m", "messages": HELLO, **fields}).encode())


def completion(**fields):
    return parse_completion(json.dumps({"model": "m", "prompt": "Hello", **fields}).encode())


def refusal(parse, **fields):
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return caught.value


def test_every_field_arrives():
    """Each supported field of a chat ends up in the ask."""
    ask = chat(
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        max_completion_tokens=3,
        stop=["a", "b"],
        seed=-1,
        n=8,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={"5": -100, "6": 1},
        logprobs=True,
        top_logprobs=20,
        user="someone",
        stream=True,
        stream_options={"include_usage": True},
        regions=["eu", "us-east"],
    )
    assert ask.regions == ("eu", "us-east")
    assert ask.messages == HELLO
    assert (ask.temperature, ask.top_p, ask.top_k, ask.min_p) == (0.5, 0.9, 5, 0.1)
    assert (ask.max_tokens, ask.stops, ask.seed, ask.n) == (3, ("a", "b"), -1, 8)
    assert (ask.presence_penalty, ask.frequency_penalty) == (-2, 2)
    assert ask.logit_bias == {5: -100, 6: 1}
    assert (ask.logprobs, ask.stream, ask.include_usage) == (20, True, True)


def test_null_means_not_given():
    """Every optional field may be null, as OpenAI's own clients send it."""
    names = set(ChatRequest.__struct_fields__) - {"model", "messages"}
    assert chat(**dict.fromkeys(names)) == chat()


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "text"}},
        {"store": False},
        {"metadata": {"a": "b"}},
        {"tools": []},
        {"tool_choice": "none"},
        {"service_tier": "auto"},
        {"modalities": ["text"]},
        {"stop": []},
        {"logprobs": False},
        {"n": 1},
        {"user": "u"},
        {"safety_identifier": "s"},
    ],
)
def test_harmless_fields(field):
    """Values that ask for nothing change nothing."""
    assert chat(**field) == chat()


@pytest.mark.parametrize(
    "field",
    [
        {"functions": [{"name": "f"}]},
        {"function_call": "auto"},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "x"}},
        {"prediction": {"type": "content"}},
        {"reasoning_effort": "low"},
        {"web_search_options": {}},
        {"store": True},
        {"service_tier": "flex"},
    ],
)
def test_unsupported_fields_by_name(field):
    """A field of OpenAI's that is not offered is refused by its name."""
    (name,) = field
    error = refusal(chat, **field)
    assert isinstance(error, UnsupportedField)
    assert error.param == name
    assert name in error.message


def test_unknown_fields_by_name():
    """A field that nobody knows is refused by its name, also inside a message."""
    error = refusal(chat, temprature=1)
    assert (error.param, error.reason) == ("temprature", "unknown_parameter")
    error = refusal(chat, messages=[{"role": "user", "content": "x", "colour": 1}])
    assert error.param == "messages[0].colour"


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ({"temperature": 2.1}, "decimal_above_max_value"),
        ({"temperature": -0.1}, "decimal_below_min_value"),
        ({"top_p": 1.1}, "decimal_above_max_value"),
        ({"top_k": 65}, "integer_above_max_value"),
        ({"regions": [""]}, "invalid_value"),
        ({"regions": ["eu"] * 33}, "invalid_value"),
        ({"regions": ["e" * 65]}, "invalid_value"),
        ({"min_p": -1.0}, "decimal_below_min_value"),
        ({"presence_penalty": 3.0}, "decimal_above_max_value"),
        ({"frequency_penalty": -3.0}, "decimal_below_min_value"),
        ({"n": 9}, "integer_above_max_value"),
        ({"n": 0}, "integer_below_min_value"),
        ({"max_tokens": 0}, "integer_below_min_value"),
        ({"max_completion_tokens": -1}, "integer_below_min_value"),
        ({"seed": 1 << 63}, "integer_above_max_value"),
        ({"logit_bias": {"1": 101}}, "decimal_above_max_value"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "array_above_max_length"),
        ({"stop": list("abcde")}, "array_above_max_length"),
        ({"stop": ""}, "invalid_value"),
        ({"messages": []}, "empty_array"),
        ({"top_logprobs": 2}, "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "invalid_value"),
        ({"n": "2"}, "invalid_type"),
        ({"messages": "hi"}, "invalid_type"),
        ({"stream": 1}, "invalid_type"),
    ],
)
def test_ranges_and_types(field, code):
    """A value out of range or of another type is refused with OpenAI's code and the field."""
    (name,) = field
    error = refusal(chat, **field)
    assert (error.reason, error.param) == (code, name)
    assert error.message.endswith(".")


def test_too_many_top_logprobs():
    """``top_logprobs`` ends at 20, a plain completion's ``logprobs`` at 5."""
    assert refusal(chat, logprobs=True, top_logprobs=21).param == "top_logprobs"
    assert refusal(completion, logprobs=6).param == "logprobs"


def test_two_limits_at_once():
    """``max_tokens`` and ``max_completion_tokens`` exclude each other."""
    assert "at the same time" in refusal(chat, max_tokens=1, max_completion_tokens=1).message


def test_missing_fields():
    """A missing required field is named."""
    with pytest.raises(InvalidRequest, match="Missing required parameter: 'messages'"):
        parse_chat(b'{"model": "m"}')
    with pytest.raises(InvalidRequest, match="Missing required parameter: 'prompt'"):
        parse_completion(b'{"model": "m"}')


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": tru}',
        b'{"model":"\xff"}',
        b'{"functions":' + b"[" * 100_000,
        b'{"model":"m","messages":[]} x',
    ],
)
def test_malformed_json(body):
    """A body that is no JSON is refused with the place where it broke."""
    with pytest.raises(InvalidRequest, match="We could not parse the JSON body"):
        parse_chat(body)


def test_json_that_is_no_object():
    """A list is no request."""
    with pytest.raises(InvalidRequest, match="expected an object, but got an array"):
        parse_chat(b"[]")


def test_content_parts():
    """Text parts become lines of one text; developer is system."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    ask = chat(messages=[{"role": "developer", "content": parts}])
    assert ask.messages == [{"role": "system", "content": "a\nb"}]


def test_an_answer_fed_back():
    """A message as OpenAI's client prints it can be sent back."""
    told = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    assert chat(messages=[told]).messages == [{"role": "assistant", "content": "x"}]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "content": "x"}, "messages[0].role"),
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": "x", "name": "n"}, "messages[0].name"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{}]},
            "messages[0].tool_calls[0].id",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
            "messages[0].content[0].type",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
    ],
)
def test_messages_that_are_refused(message, param):
    """Tools, pictures, names and broken messages are refused with their place."""
    assert refusal(chat, messages=[message]).param == param


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        (["a"], ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ([1, 2],)),
        ([[1, 2], [3]], ([1, 2], [3])),
    ],
)
def test_forms_of_prompts(prompt, prompts):
    """A prompt is a text, texts, token ids or lists of token ids."""
    assert completion(prompt=prompt).prompts == prompts


@pytest.mark.parametrize("prompt", [[], ["a", 1], ["a"] * 9, 5, [1.5]])
def test_prompts_that_are_refused(prompt):
    """Mixed, empty and too many prompts are refused."""
    assert refusal(completion, prompt=prompt).param.startswith("prompt")


def test_too_many_choices():
    """Prompts times n are choices; eight are allowed."""
    assert completion(prompt=["a", "b"], n=4).num_choices == 8
    assert refusal(completion, prompt=["a", "b"], n=5).param == "prompt"


@pytest.mark.parametrize("field", [{"echo": True}, {"suffix": "x"}, {"best_of": 2}])
def test_completion_fields_that_are_refused(field):
    """``echo``, ``suffix`` and ``best_of`` are refused by name."""
    assert refusal(completion, **field).param == next(iter(field))


def test_completion_fields_that_ask_for_nothing():
    """``echo: false`` and ``best_of`` equal to ``n`` are no requests."""
    assert completion(echo=False, best_of=1) == completion()


def test_a_nucleus_of_nothing_is_greedy():
    """``top_p`` 0 leaves the likeliest token alone."""
    ask = chat(top_p=0)
    assert (ask.temperature, ask.top_p) == (0.0, 1.0)


@given(st.dictionaries(st.sampled_from(ChatRequest.__struct_fields__), JSON, max_size=6))
def test_any_json_is_understood_or_refused(fields):
    """No value of any field does anything but be accepted or refused."""
    body = json.dumps({"model": "m", "messages": HELLO, **fields}).encode()
    with contextlib.suppress(InvalidRequest):
        assert parse_chat(body).model


@given(st.binary(max_size=60))
def test_any_bytes_are_refused(body):
    """No bytes crash the parser."""
    with pytest.raises(InvalidRequest):
        parse_completion(body)
