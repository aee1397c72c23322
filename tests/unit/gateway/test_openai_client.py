"""The unmodified openai package against a real gateway."""

import openai
import pytest

from starai.core.errors import DeadlinePassed, Overloaded, Unavailable
from starai.protocol.generation import Finish, sample_key
from starai.protocol.tokens import unpack
from starai.testing.tasks import Script, says

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def client(served, key):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0) as client:
        yield client


def chat(client, **fields):
    return client.chat.completions.create(**{"model": "mock", "messages": HELLO, **fields})


def test_models(client):
    """Models are listed and found one by one."""
    assert [model.id for model in client.models.list()] == ["mock"]
    assert client.models.retrieve("mock").owned_by == "starai"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/other")


def test_chat(client, served):
    """A chat is answered whole: text, reason, usage, fingerprint."""
    answer = chat(client)
    (choice,) = answer.choices
    assert choice.message.content == "Hello, world!"
    assert (choice.message.role, choice.finish_reason, choice.logprobs) == (
        "assistant",
        "stop",
        None,
    )
    usage = answer.usage
    assert usage.completion_tokens == len("Hello, world!") + 1
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens == len(served.tasks.submissions[0].generation.prompt) // 4
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint.startswith("fp_")
    assert answer.model == "mock"


def test_chat_stream_with_usage(client):
    """A stream gives the role, the text, the reason, then the usage."""
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [c.choices[0].delta.content or "" for c in chunks[:-1]]
    assert "".join(texts) == "Hello, world!"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 14
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat_stream_without_usage(client):
    """Without being asked, a stream tells no usage."""
    chunks = list(chat(client, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_length_is_the_reason(client, served):
    """An answer cut by max_tokens says so."""
    answer = chat(client, max_tokens=5)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
        "Hello",
        "length",
    )
    assert served.tasks.submissions[0].generation.max_tokens == 5


def test_unstated_length(client, served):
    """Without max_tokens an answer may fill the context, up to the gateway's default."""
    chat(client)
    assert served.tasks.submissions[0].generation.max_tokens == 4096
    chat(client, messages=[{"role": "user", "content": "x" * 5000}])
    generation = served.tasks.submissions[1].generation
    assert generation.max_tokens == 8192 - len(generation.prompt) // 4


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices(client, served, stream):
    """N choices are n tasks with their own sample keys, each under its index."""
    names = iter(("choice 0", "choice 1", "choice 2"))
    served.tasks.script = lambda _: says(next(names))
    texts = dict.fromkeys(range(3), "")
    if stream:
        for chunk in chat(client, n=3, seed=7, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    else:
        texts = {
            choice.index: choice.message.content for choice in chat(client, n=3, seed=7).choices
        }
    assert sorted(texts) == [0, 1, 2]
    assert sorted(texts.values()) == ["choice 0", "choice 1", "choice 2"]
    keys = {task.generation.sampling.sample_key for task in served.tasks.submissions}
    assert keys == {sample_key(7, index) for index in range(3)}


def test_seeds(client, served):
    """The same seed gives the same sample key; no seed, a fresh one every time."""
    for seed in (1, 1, 2, None, None):
        chat(client, seed=seed)
    keys = [task.generation.sampling.sample_key for task in served.tasks.submissions]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(client, stream):
    """Every token comes with its bytes, its log-probability and its rivals."""
    if stream:
        chunks = [
            c.choices[0].logprobs for c in chat(client, logprobs=True, top_logprobs=2, stream=True)
        ]
        told = [token for logprobs in chunks if logprobs for token in logprobs.content]
    else:
        told = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert "".join(token.token for token in told) == "Hello, world!"
    assert bytes(told[0].bytes) == b"H"
    assert told[0].logprob == -0.25
    assert [rival.token for rival in told[0].top_logprobs] == ["H", "I"]


def test_completions(client, served):
    """A plain completion reads its prompt as it is."""
    answer = client.completions.create(model="mock", prompt="Say", max_tokens=20)
    assert answer.choices[0].text == "Hello, world!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 3
    assert bytes(unpack(served.tasks.submissions[0].generation.prompt)) == b"Say"


def test_completions_from_token_ids(client, served):
    """A prompt of token ids goes to the node unchanged; ids outside the vocabulary are refused."""
    client.completions.create(model="mock", prompt=[1, 2, 256])
    assert unpack(served.tasks.submissions[0].generation.prompt) == [1, 2, 256]
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="mock", prompt=[1, 257])


def test_completions_of_several_prompts(client, served):
    """Each prompt has its choices, prompts first."""
    answer = client.completions.create(model="mock", prompt=["a", "bc"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    prompts = [len(task.generation.prompt) // 4 for task in served.tasks.submissions]
    assert sorted(prompts) == [1, 1, 2, 2]
    assert answer.usage.prompt_tokens == 3


def test_completions_stream(client):
    """A plain completion streams its text, its reason and its usage."""
    chunks = list(
        client.completions.create(
            model="mock", prompt="x", stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "Hello, world!"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.prompt_tokens == 1


def test_completions_logprobs(client):
    """The older shape of log-probabilities: four lists of equal length."""
    logprobs = client.completions.create(model="mock", prompt="x", logprobs=2).choices[0].logprobs
    assert logprobs.tokens == list("Hello, world!")
    assert logprobs.text_offset == list(range(13))
    assert logprobs.token_logprobs == [-0.25] * 13
    assert logprobs.top_logprobs[0] == {"H": -0.25, "I": -1.25}


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_the_work(client, served, stream):
    """A stop string is not shown, ends the answer with "stop", and cancels the task."""
    answer = chat(client, stop=["o, w", "zzz"], stream=stream)
    if stream:
        chunks = list(answer)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, reason) == ("Hell", "stop")
    assert len(served.tasks.cancelled) == 1


def test_wrong_key(served):
    """A wrong or missing key is refused with 401, and the key is not repeated."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            chat(client)
        assert caught.value.code == "invalid_api_key"
        assert caught.value.type == "invalid_request_error"
        assert "sk-wrong" not in str(caught.value)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_unknown_model(client):
    """An unknown model is told with near names and with what there is."""
    with pytest.raises(openai.NotFoundError) as caught:
        chat(client, model="mok")
    assert caught.value.code == "model_not_found"
    assert "Did you mean `mock`?" in caught.value.message
    assert "Available models: `mock`." in caught.value.message


def test_a_model_that_nobody_serves_now(client, served):
    """A known model without a node is unavailable, not unknown."""
    offers = served.tasks.served
    served.tasks.served = ()
    try:
        with pytest.raises(openai.InternalServerError) as caught:
            chat(client)
        assert caught.value.status_code == 503
        assert list(client.models.list()) == []
    finally:
        served.tasks.served = offers


def test_too_long_prompt(client):
    """A prompt beyond the context is refused with OpenAI's code and the counts."""
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=[{"role": "user", "content": "x" * 9000}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    assert "maximum context length is 8192 tokens" in caught.value.message
    with pytest.raises(openai.BadRequestError, match="you requested 8193 tokens"):
        client.completions.create(model="mock", prompt="xxx", max_tokens=8190)


def test_a_very_long_text_is_read_in_a_thread(client):
    """Long texts are tokenised aside and still counted."""
    with pytest.raises(openai.BadRequestError, match="resulted in"):
        client.completions.create(model="mock", prompt="x" * 100_000)


def test_an_empty_prompt(client):
    """An empty prompt is refused."""
    with pytest.raises(openai.BadRequestError, match="must not be empty"):
        client.completions.create(model="mock", prompt="")


def test_unsupported_field(client):
    """A field that is not offered is refused by name."""
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, functions=[{"name": "f"}])
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "functions")


def test_logit_bias_of_a_token_that_is_not(client, served):
    """Biases go to the node; ids outside the vocabulary are refused."""
    chat(client, logit_bias={"65": -100})
    assert served.tasks.submissions[0].generation.sampling.logit_bias == {65: -100}
    with pytest.raises(openai.BadRequestError):
        chat(client, logit_bias={"257": 1})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (Overloaded("full", retry_after_s=2.5), 429, "rate_limit_error"),
        (Unavailable("no node", retry_after_s=1), 503, "server_error"),
        (DeadlinePassed("late"), 504, "server_error"),
    ],
)
def test_errors_before_the_answer(client, served, error, status, kind, stream):
    """A task that cannot begin is told by its status, also to who asked for a stream."""
    served.tasks.script = Script(fails_at=-1, error=error)
    with pytest.raises(openai.APIStatusError) as caught:
        chat(client, stream=stream)
    assert (caught.value.status_code, caught.value.type) == (status, kind)
    wait = caught.value.response.headers.get("retry-after")
    assert wait == {429: "3", 503: "1", 504: None}[status]


def test_an_error_in_the_middle_of_a_stream(client, served):
    """A stream that breaks ends with an error, after the text so far."""
    served.tasks.script = says("Hello", fails_at=2, error=Unavailable("all nodes died"))
    chunks = chat(client, stream=True)
    assert [next(chunks).choices[0].delta.content for _ in range(3)] == ["", "H", "e"]
    with pytest.raises(openai.APIError, match="all nodes died") as caught:
        next(chunks)
    assert caught.value.code == "service_unavailable"


@pytest.mark.parametrize("script", [says("Hello", breaks_at=2), Script(tokens=(), breaks_at=0)])
def test_an_answer_without_an_end(client, served, script):
    """A port that breaks off is an error, never a short answer."""
    served.tasks.script = script
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client)
    assert caught.value.status_code == 503


def test_one_choice_that_fails_ends_the_others(client, served):
    """With several choices, the first error is the answer and the other tasks are cancelled."""
    scripts = iter([says("a" * 500, delay_s=0.05), says("b", fails_at=0, error=Unavailable("x"))])
    served.tasks.script = lambda _: next(scripts)
    with pytest.raises(openai.InternalServerError):
        chat(client, n=2)
    assert served.tasks.running == 0
    assert len(served.tasks.cancelled) == 2


def test_an_empty_answer(client, served):
    """An answer that ends at once is an empty text."""
    served.tasks.script = Script(tokens=(256,), finish=Finish.STOP, accepts_first=True)
    assert chat(client).choices[0].message.content == ""
    chunks = list(chat(client, stream=True))
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, "stop"]


def test_faults_of_ours(client, served, capfd):
    """A mistake of the gateway's costs one request: 500, with nothing of its inside."""

    def broken(_):
        raise ZeroDivisionError("secret text")

    served.tasks.script = broken
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client)
    assert caught.value.status_code == 500
    assert "secret" not in str(caught.value)
    served.tasks.script = says("fine")
    assert chat(client).choices[0].message.content == "fine"
