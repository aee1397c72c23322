"""The unmodified openai package, and curl, against `starai up` with the embedded model."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up

MODEL = "starai-tiny"
HELLO = [{"role": "user", "content": "Hello"}]


def chat(up: Up, **fields: Any) -> Any:
    fields = {"model": MODEL, "messages": HELLO, "max_tokens": 20, **fields}
    return up.openai().chat.completions.create(**fields)


def test_the_models_are_listed(tiny: Up) -> None:
    """The embedded model is there, by its public name."""
    assert [model.id for model in tiny.openai().models.list()] == [MODEL]
    assert tiny.openai().models.retrieve(MODEL).owned_by == "starai"


def test_a_chat_is_answered(tiny: Up) -> None:
    """A whole answer has text, a reason why it ended, and counts."""
    answer = chat(tiny)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 20


def test_a_streamed_chat_equals_the_whole_one(tiny: Up) -> None:
    """With a seed, the stream's pieces are the whole answer, and usage comes last when asked."""
    whole = chat(tiny, seed=5, temperature=0.8)
    chunks = list(
        chat(tiny, seed=5, temperature=0.8, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == (
        whole.choices[0].finish_reason
    )


def test_a_completion_is_answered(tiny: Up) -> None:
    """The older API takes plain text."""
    answer = tiny.openai().completions.create(
        model=MODEL, prompt="Once upon a time", max_tokens=12, temperature=0
    )
    assert answer.choices[0].text
    assert answer.usage.completion_tokens <= 12


def test_two_choices_differ_and_each_repeats_with_its_seed(tiny: Up) -> None:
    """n=2 gives two answers with their own noise; the same seed gives both again."""
    texts = [
        [choice.message.content for choice in chat(tiny, n=2, seed=3, temperature=1.2).choices]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2
    assert texts[0][0] != texts[0][1]


def test_logprobs_belong_to_the_tokens(tiny: Up) -> None:
    """Greedy tokens are the likeliest, and the tokens' bytes make the text."""
    choice = chat(tiny, logprobs=True, top_logprobs=3, temperature=0).choices[0]
    tokens = choice.logprobs.content
    assert all(token.logprob == max(top.logprob for top in token.top_logprobs) for token in tokens)
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == choice.message.content


def test_a_stop_string_ends_the_answer_before_it(tiny: Up) -> None:
    """The answer breaks off before the stop string."""
    plain = chat(tiny, temperature=0, max_tokens=30).choices[0].message.content
    stop = plain[len(plain) // 2 : len(plain) // 2 + 3]
    cut = chat(tiny, temperature=0, max_tokens=30, stop=[stop]).choices[0]
    assert cut.message.content == plain[: plain.index(stop)]
    assert cut.finish_reason == "stop"


def test_a_wrong_key_is_refused(tiny: Up) -> None:
    """401, with OpenAI's code."""
    with pytest.raises(openai.AuthenticationError) as failed:
        tiny.openai(api_key="sk-starai-wrong").models.list()
    assert failed.value.code == "invalid_api_key"


def test_an_unknown_model_is_refused_with_near_names(tiny: Up) -> None:
    """404, and the message helps."""
    with pytest.raises(openai.NotFoundError, match=MODEL) as failed:
        chat(tiny, model="starai-tinny")
    assert failed.value.code == "model_not_found"


def test_a_prompt_that_is_too_long_is_refused_with_the_counts(tiny: Up) -> None:
    """400 context_length_exceeded, as OpenAI's clients know it."""
    with pytest.raises(openai.BadRequestError, match="maximum context length") as failed:
        chat(tiny, messages=[{"role": "user", "content": "word " * 3000}])
    assert failed.value.code == "context_length_exceeded"


def test_an_unsupported_field_is_refused_by_name(tiny: Up) -> None:
    """Nothing is silently ignored."""
    with pytest.raises(openai.BadRequestError, match="functions"):
        chat(tiny, functions=[{"name": "f"}])
    with pytest.raises(openai.BadRequestError, match="frobnicate"):
        chat(tiny, extra_body={"frobnicate": 1})


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b'{"model": 1}', b"\xff\xfe", b'"x"'])
def test_a_malformed_body_is_refused(tiny: Up, body: bytes) -> None:
    """400, in OpenAI's shape."""
    headers = {**tiny.headers, "Content-Type": "application/json"}
    answer = httpx.post(
        f"{tiny.url}/v1/chat/completions", content=body, headers=headers, trust_env=False
    )
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


def curl(up: Up, path: str, *arguments: str, key: str | None = None) -> tuple[int, str]:
    """What curl gets: the status and the body."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("no curl on this machine")
    done = subprocess.run(
        [
            *(program, "-sS", "-w", "\n%{http_code}", f"{up.url}{path}"),
            *("-H", f"Authorization: Bearer {key or up.api_key}", *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def curl_chat(up: Up, key: str | None = None, **fields: object) -> tuple[int, str]:
    body = json.dumps({"model": MODEL, "messages": HELLO, "max_tokens": 8, **fields})
    json_type = ("-H", "Content-Type: application/json")
    return curl(up, "/v1/chat/completions", *json_type, "-d", body, key=key)


def test_curl_gets_the_same(tiny: Up) -> None:
    """Models, a chat, a stream, a completion, two choices, logprobs and the refusals by curl."""
    assert curl(tiny, "/v1/models")[0] == 200
    assert json.loads(curl_chat(tiny)[1])["choices"][0]["message"]["content"]
    status, stream = curl_chat(tiny, stream=True, stream_options={"include_usage": True})
    assert status == 200
    assert stream.rstrip().endswith("data: [DONE]")
    assert '"usage":{' in stream
    body = json.dumps({"model": MODEL, "prompt": "Once", "max_tokens": 4})
    assert curl(tiny, "/v1/completions", "-d", body)[0] == 200
    assert len(json.loads(curl_chat(tiny, n=2)[1])["choices"]) == 2
    assert json.loads(curl_chat(tiny, logprobs=True)[1])["choices"][0]["logprobs"]["content"]
    assert curl_chat(tiny, key="sk-wrong")[0] == 401
    assert curl_chat(tiny, model="nope")[0] == 404
    assert curl_chat(tiny, messages=[{"role": "user", "content": "a b " * 3000}])[0] == 400
    assert curl(tiny, "/v1/chat/completions", "-d", "{nonsense")[0] == 400
    assert curl(tiny, "/metrics")[1].count("# TYPE") > 3
    assert curl(tiny, "/healthz")[0] == 200


def test_the_second_terminal_sees_what_happened(tiny: Up) -> None:
    """Every command of the help prints a table, and JSON when asked."""
    assert tiny.starai("chat", "Hello", "--max-tokens", "5").strip()
    for command in (
        ["status"],
        ["nodes"],
        ["models"],
        ["tasks"],
        ["ledger", "show"],
        ["keys", "list"],
    ):
        assert tiny.starai(*command).strip()
        assert json.loads(tiny.starai(*command, "--json"))
    assert "matched" in tiny.starai("tasks") or "dist" in tiny.starai("tasks")
