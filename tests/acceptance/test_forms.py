"""Formats, tools and embeddings by the unmodified openai package, on `starai up`."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Literal

import openai
import pytest
from pydantic import BaseModel

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up

MODEL = "starai-tiny"
ASK = [{"role": "user", "content": "Tell me of a pet."}]


class Pet(BaseModel):
    """Every field is bounded, so that a small model comes to an end."""

    kind: Literal["cat", "dog", "fish"]
    tame: bool
    legs: Literal[0, 2, 4]


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city, now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 7]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}

NAMED = {"type": "function", "function": {"name": "weather"}}


def chat(up: Up, **fields: Any) -> Any:
    fields = {"model": MODEL, "messages": ASK, "max_tokens": 200, **fields}
    return up.openai().chat.completions.create(**fields)


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_keeps_to_its_schema(tiny: Up, seed: int) -> None:
    """Whatever is drawn, the client's own parser takes it, and it ends by itself."""
    answer = tiny.openai().chat.completions.parse(
        model=MODEL,
        messages=ASK,
        max_tokens=200,
        seed=seed,
        temperature=1.5,
        response_format=Pet,
    )
    assert isinstance(answer.choices[0].message.parsed, Pet)
    assert answer.choices[0].finish_reason == "stop"


def test_a_constrained_stream_is_the_whole_answer(tiny: Up) -> None:
    """With a seed, a stream and a second request give the same bytes."""
    schema = {**Pet.model_json_schema(), "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "pet", "schema": schema, "strict": True}}
    whole = chat(tiny, response_format=form, seed=8).choices[0].message.content
    chunks = chat(tiny, response_format=form, seed=8, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    Pet.model_validate_json(whole)


def test_any_object_is_json_as_far_as_it_got(tiny: Up) -> None:
    """``json_object`` begins an object at once."""
    content = chat(tiny, response_format={"type": "json_object"}, max_tokens=30).choices[0].message
    assert content.content.startswith("{")


def test_expressions_and_choices(tiny: Up) -> None:
    """VLLM's extra fields hold for the whole answer."""
    date = chat(tiny, extra_body={"guided_regex": r"20[0-9]{2}-(0[1-9]|1[0-2])"})
    assert re.fullmatch(r"20\d\d-\d\d", date.choices[0].message.content)
    words = ["yes", "no", "perhaps"]
    word = chat(tiny, extra_body={"guided_choice": words}, n=3, temperature=2)
    assert all(choice.message.content in words for choice in word.choices)


def test_a_bad_schema_is_the_clients_error(tiny: Up) -> None:
    """400 with the place, at once."""
    schema = {"type": "object", "properties": {"a": {"type": "frog"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=r"\$\.properties\.a"):
        chat(tiny, response_format=form)


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_forced_call_is_made(tiny: Up, choice: Any) -> None:
    """A model that never heard of tools calls one when it must, with arguments of the schema."""
    for stream in (False, True):
        answer = chat(
            tiny,
            tools=[WEATHER],
            tool_choice=choice,
            parallel_tool_calls=False,
            seed=3,
            stream=stream,
        )
        if stream:
            chunks = [chunk.choices[0] for chunk in answer]
            calls = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
            reason = chunks[-1].finish_reason
        else:
            calls = answer.choices[0].message.tool_calls
            reason = answer.choices[0].finish_reason
        assert reason == "tool_calls"
        (call,) = calls
        assert call.function.name == "weather"
        arguments = json.loads(call.function.arguments)
        assert arguments["city"] in ("Rome", "Oslo")
        assert arguments["days"] in (1, 7)


def test_a_result_can_be_sent_back(tiny: Up) -> None:
    """The call and its result are part of the conversation."""
    message = chat(tiny, tools=[WEATHER], tool_choice="required").choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls
    ]
    talk = [*ASK, message.model_dump(exclude_none=True), *results]
    answer = chat(tiny, tools=[WEATHER], messages=talk, max_tokens=10)
    assert answer.choices[0].finish_reason in ("stop", "length")


def norm(vector: list[float]) -> float:
    return math.sqrt(sum(number * number for number in vector))


def test_embeddings(tiny: Up) -> None:
    """Vectors of unit length, in order; equal texts are alike, others are not."""
    texts = ["The cat sleeps.", "A dog barks.", "The cat sleeps."]
    for encoding in ("float", "base64", None):
        form = {"encoding_format": encoding} if encoding else {}
        answer = tiny.openai().embeddings.create(model=MODEL, input=texts, **form)
        if encoding == "base64":
            assert all(isinstance(item.embedding, str) for item in answer.data)
            continue
        first, second, third = (list(item.embedding) for item in answer.data)
        assert len(first) > 8
        assert all(norm(vector) == pytest.approx(1, abs=1e-3) for vector in (first, second))
        assert norm([a - b for a, b in zip(first, third, strict=True)]) < 0.02
        assert norm([a - b for a, b in zip(first, second, strict=True)]) > 0.05
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_many_embeddings_at_once(tiny: Up) -> None:
    """More inputs than the network has places; each is answered."""
    answer = tiny.openai().embeddings.create(model=MODEL, input=[f"text {n}" for n in range(100)])
    assert [item.index for item in answer.data] == list(range(100))


def test_what_embeddings_do_not_offer_is_refused(tiny: Up) -> None:
    """``dimensions`` by its name, an input that is too long by its counts."""
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        tiny.openai().embeddings.create(model=MODEL, input="x", dimensions=8)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        tiny.openai().embeddings.create(model=MODEL, input="word " * 3000)
