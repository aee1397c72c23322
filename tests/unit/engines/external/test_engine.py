"""The engine behind a URL, against a small real server that speaks as each kind does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest
from hypothesis import given, strategies as st

from starai.core.errors import (
    ConfigurationRefused,
    EngineDied,
    InvalidRequest,
    Overloaded,
    Unavailable,
    UnsupportedField,
)
from starai.engines.base import Emitted, EngineSpec
from starai.engines.external import engine as module
from starai.engines.external.connection import Connection, base_url
from starai.engines.external.engine import ExternalEngine
from starai.engines.external.servers import SERVERS
from starai.engines.external.spelling import Spelling
from starai.engines.process import engine_process
from starai.engines.registry import open_engine
from starai.local.nodes import NodeOptions, engine_spec
from starai.models.catalog import EMBEDDED_FOLDER, open_model
from starai.models.codec import open_codec
from starai.protocol import tokens
from starai.protocol.generation import Finish, Generation, Grammar, Sampling
from starai.testing.engine_server import EOS, STORY, EngineServer, serving

MOCK = open_model("mock")
TINY = open_model("embedded")
CODEC = open_codec(TINY)
SPELLING = Spelling(CODEC, TINY)
WITH_IDS = ("vllm", "sglang", "llama-server")
ALL = tuple(SERVERS)


@contextmanager
def opened(
    server: EngineServer, slots: int = 4, **options: float | str
) -> Iterator[ExternalEngine]:
    spec = EngineSpec("external", "mock", slots=slots, options={"url": server.url, **options})
    engine = open_engine(spec)
    assert isinstance(engine, ExternalEngine)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def scene(
    speaks: str, slots: int = 4, **how: object
) -> Iterator[tuple[EngineServer, ExternalEngine]]:
    with serving(EngineServer(speaks, **how)) as server, opened(server, slots) as engine:  # type: ignore[arg-type]
        yield server, engine


@pytest.fixture(scope="module", params=ALL)
def kind(request) -> Iterator[tuple[EngineServer, ExternalEngine]]:
    """One server of each kind and its engine, for tests that break neither."""
    with scene(request.param) as made:
        yield made


def generation(prompt: bytes = b"Once ", max_tokens: int = 200, **changes) -> Generation:
    values = {
        "prompt": tokens.pack(list(prompt)),
        "max_tokens": max_tokens,
        "sampling": Sampling(b"k" * 32),
        "stop_token_ids": (EOS,),
        "salt": b"s" * 16,
    }
    return Generation(**{**values, **changes})


def run(engine: ExternalEngine, *keys: bytes, within_s: float = 10.0) -> dict[bytes, list[Emitted]]:
    """Step until all of ``keys`` have ended."""
    seen: dict[bytes, list[Emitted]] = {key: [] for key in keys}
    limit_s = time.monotonic() + within_s
    while any(not s or not (s[-1].finish or s[-1].error) for s in seen.values()):
        assert time.monotonic() < limit_s, "the engine does not come to an end"
        for news in engine.step():
            seen[news.key].append(news)
    return seen


def answer(engine: ExternalEngine, asked: Generation) -> tuple[list[int], Emitted]:
    engine.admit(b"k", asked)
    news = run(engine, b"k")[b"k"]
    return [id_ for one in news for id_ in one.ids], news[-1]


def test_each_kind_is_recognised_and_answers(kind):
    """Every kind of server is told from the others by itself, and its answer is the story."""
    server, engine = kind
    assert engine._server is SERVERS[server.speaks]
    ids, last = answer(engine, generation())
    assert bytes(ids[:-1]) == STORY[5:40]
    assert (ids[-1], last.finish) == (EOS, Finish.STOP)
    assert engine.info.sampler == ("own" if server.speaks in WITH_IDS else "text")
    assert not engine.has_work


def test_max_tokens_end_an_answer(kind):
    """The limit is the client's, also where text comes in characters of several bytes."""
    ids, last = answer(kind[1], generation(max_tokens=30))
    assert (len(ids), last.finish) == (30, Finish.LENGTH)
    assert bytes(ids) == STORY[5:35]


def test_a_resumed_answer_goes_on_from_what_was_accepted(kind):
    """Prompt and accepted tokens are the new prompt; the rest is what the whole would have had."""
    server, engine = kind
    whole, _ = answer(engine, generation())
    rest, last = answer(engine, generation(accepted=tokens.pack(whole[:12])))
    assert whole[:12] + rest == whole
    assert last.finish is Finish.STOP
    before, after = server.asked[-2:]
    assert _seed(before) != _seed(after)


def _seed(body):
    return body.get("seed", body.get("sampling_params", body.get("options", {})))


@pytest.mark.parametrize("speaks", WITH_IDS)
def test_logprobs_come_with_ids(speaks):
    """An entry for each token, rivals by their ids."""
    with scene(speaks) as (_server, engine):
        engine.admit(b"k", generation(max_tokens=10, top_logprobs=2))
        news = run(engine, b"k")[b"k"]
        told = [one for part in news for one in part.logprobs]
        assert [one.token_id for one in told] == list(STORY[5:15])
        assert all(one.logprob == -0.5 for one in told)
        assert told[0].top == ((STORY[5], -0.5), ((STORY[5] + 1) % 256, -1.5))


def test_the_sampler_is_told_everything(kind):
    """Nothing is left to a server's own default; the seed is the same for the same key."""
    server, engine = kind
    for key in (b"k" * 32, b"k" * 32, b"x" * 32):
        sampling = Sampling(key, temperature=0.5, top_p=0.9, presence_penalty=0.25)
        answer(engine, generation(sampling=sampling))
    seeds = [_seed(body) for body in server.asked[-3:]]
    assert seeds[0] == seeds[1] != seeds[2]
    body = server.asked[-1]
    said = body.get("sampling_params", body.get("options", body))
    assert (said["temperature"], said["top_p"], said["presence_penalty"]) == (0.5, 0.9, 0.25)


def test_what_a_server_cannot_do_is_said_before_it_is_asked():
    """Embeddings, adapters, grammars in the middle, ids that it does not know: other nodes may."""
    with scene("openai") as (server, engine):
        for asked in (
            generation(embed=True, max_tokens=0),
            generation(adapter="lora"),
            generation(top_logprobs=1),
            generation(grammar=Grammar("json_object")),
            generation(sampling=Sampling(b"k" * 32, logit_bias={5: 1.0})),
        ):
            with pytest.raises(UnsupportedField):
                engine.admit(b"k", asked)
        assert server.asked == []
    begun = generation(grammar=Grammar("json_object"), accepted=tokens.pack([65]))
    with scene("vllm") as (_server, engine), pytest.raises(UnsupportedField):
        engine.admit(b"k", begun)


@pytest.mark.parametrize(
    ("speaks", "name", "kinds"),
    [
        ("vllm", "structured_outputs", ("json_object", "json_schema", "regex", "choice")),
        ("llama-server", None, ("json_object", "json_schema", "choice")),
        ("ollama", "format", ("json_object", "json_schema")),
        ("sglang", None, ("json_object", "json_schema", "regex")),
    ],
)
def test_grammars_travel_in_the_servers_words(speaks, name, kinds):
    """Each kind that a server knows reaches it."""
    texts = {"json_schema": '{"type":"object"}', "regex": "[a-z]+", "choice": '["a","b\\""]'}
    with scene(speaks) as (server, engine):
        for kind in kinds:
            answer(engine, generation(grammar=Grammar(kind, texts.get(kind, ""))))
        bodies = [body.get("sampling_params", body) for body in server.asked]
        keys = {"structured_outputs", "json_schema", "grammar", "regex", "format"}
        assert all(keys & set(body) for body in bodies)
        assert all(name in body for body in bodies if name)
    if speaks == "llama-server":
        assert server.asked[2]["grammar"] == 'root ::= "a" | "b\\""'


def test_the_cache_is_kept_by_tenant():
    """A tenant's salt reaches a server that knows salts; one that does not keeps no prompt."""
    with scene("vllm") as (server, engine):
        answer(engine, generation(cache_salt=b"t" * 16))
        assert server.asked[0]["cache_salt"]
    with scene("llama-server") as (server, engine):
        answer(engine, generation(cache_salt=b"t" * 16))
        answer(engine, generation())
        assert [body["cache_prompt"] for body in server.asked] == [False, True]


def test_many_at_once_and_no_more_than_there_are_slots():
    """Answers run side by side; one too many is refused; context and slots are the smaller ones."""
    with scene("llama-server", delay_s=0.005) as (server, engine):
        assert (engine.info.slots, engine.info.context_length) == (2, 512)
        engine.admit(b"a", generation())
        engine.admit(b"b", generation(b"Another prompt "))
        with pytest.raises(Overloaded):
            engine.admit(b"c", generation())
        with pytest.raises(InvalidRequest):
            engine.admit(b"a", generation())
        seen = run(engine, b"a", b"b")
        assert all(news[-1].finish is Finish.STOP for news in seen.values())
        assert len(server.asked) == 2


def test_cancelling_closes_the_connection():
    """The server notices within a moment that nobody reads; the place is free at once."""
    with scene("vllm", slots=1, length=100_000, delay_s=0.01) as (server, engine):
        engine.admit(b"a", generation(max_tokens=500))
        while not engine.step():
            pass
        engine.cancel(b"a")
        engine.cancel(b"never seen")
        assert engine.step() == []
        assert not engine.has_work
        limit_s = time.monotonic() + 5
        while server.open and time.monotonic() < limit_s:
            time.sleep(0.01)
        assert (server.open, server.broken) == (0, 1)
        engine.admit(b"b", generation(max_tokens=3))
        assert run(engine, b"b")[b"b"][-1].finish is Finish.LENGTH


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"cut_after": 3}, "engine_died"),
        ({"rubbish": b"data: {nonsense\n\n"}, "engine_died"),
        ({"rubbish": b'data: {"choices": 5}\n\n'}, "engine_died"),
        ({"rubbish": b'data: {"choices": [{"token_ids": [99999]}]}\n\n'}, "engine_died"),
        ({"rubbish": b"data: " + b"x" * (2 << 20)}, "engine_died"),
        ({"status": 500}, "engine_died"),
        ({"status": 400}, "engine_died"),
        ({"status": 429}, "overloaded"),
        ({"stall_after": 2}, "engine_died"),
    ],
    ids=["cut", "json", "form", "id", "endless", "500", "400", "429", "stall"],
)
def test_a_failing_server_fails_one_answer(monkeypatch, fault, code):
    """Whatever it does, the answer ends with a code, in time, and the next one works."""
    monkeypatch.setattr(module, "NEXT_TOKEN_S", 0.3)
    with scene("vllm") as (server, engine):
        for name, value in fault.items():
            setattr(server, name, value)
        engine.admit(b"k", generation())
        assert run(engine, b"k")[b"k"][-1].error == code
        server.cut_after = server.stall_after = -1
        server.rubbish, server.status = b"", 200
        assert answer(engine, generation())[1].finish is Finish.STOP


def test_missing_logprobs_fail_the_answer():
    """Ids that had to be worked out from text have no log-probabilities: it is not made up."""
    with scene("llama-server", length=60) as (_server, engine):
        engine.admit(b"k", generation(max_tokens=30, top_logprobs=1))
        news = run(engine, b"k")[b"k"]
        assert news[-1].error == "engine_died"
        assert bytes(i for one in news for i in one.ids) == STORY[5:22]


@pytest.mark.parametrize("speaks", ["vllm", "llama-server", "ollama"])
def test_another_model_is_refused(speaks):
    """A server with another tokenizer or vocabulary serves another model."""
    odd = EngineServer(speaks, odd_tokenizer=True)
    with serving(odd), pytest.raises(ConfigurationRefused, match="model"), opened(odd):
        pass


def test_a_key_is_asked_for_and_sent(monkeypatch):
    """401 says which variable to set; with it everything works."""
    with serving(EngineServer("vllm", key="secret")) as server:
        with pytest.raises(ConfigurationRefused, match="STARAI_ENGINE_KEY"), opened(server):
            pass
        monkeypatch.setenv("STARAI_ENGINE_KEY", "secret")
        with opened(server) as engine:
            assert answer(engine, generation())[1].finish is Finish.STOP


def test_a_kind_can_be_named_and_must_be_right():
    """kind= skips the others; a wrong one, or a wrong model, is said."""
    with serving(EngineServer("ollama")) as server:
        with opened(server, kind="ollama") as engine:
            assert engine.info.name == "mock"
        with opened(server, context=100.0) as engine:
            assert engine.info.context_length == 100
        for options, words in (
            ({"kind": "vllm"}, "not vLLM"),
            ({"kind": "nonsense"}, "auto or one of"),
            ({"served": "other"}, "served=NAME"),
            ({"speed": "fast"}, "options"),
        ):
            with pytest.raises(ConfigurationRefused, match=words), opened(server, **options):
                pass


def test_a_server_that_is_not_there_is_unavailable():
    """So that the node tries again instead of ending."""
    server = EngineServer("vllm", url="http://127.0.0.1:9")
    with pytest.raises(Unavailable), opened(server):
        pass


@pytest.mark.parametrize("speaks", ["vllm", "openai"])
def test_a_server_that_still_loads_is_unavailable(speaks):
    """HTTP 503 is no answer to what it is: asked again later."""
    server = EngineServer(speaks, healthy=False)
    with serving(server), pytest.raises(Unavailable, match="not ready"), opened(server):
        pass


def test_a_lost_server_ends_the_engine(monkeypatch):
    """When the server is gone for good, stepping says so, also without work."""
    monkeypatch.setattr(module, "_ALIVE_S", 0.05)
    monkeypatch.setattr(module, "_AGAIN_S", 0.05)
    with scene("vllm") as (server, engine):
        server.healthy = False
        limit_s = time.monotonic() + 5
        while not engine.has_work:
            assert time.monotonic() < limit_s
            time.sleep(0.01)
        with pytest.raises(EngineDied, match="gone"):
            engine.step()


@pytest.mark.anyio
async def test_it_works_in_a_worker_and_comes_back_with_its_server():
    """The worker ends when its server does, and a new one opens when it is there again."""
    speaks = EngineServer("vllm")
    with serving(speaks) as server:
        spec = EngineSpec("external", "mock", options={"url": server.url})
        async with engine_process(spec) as worker:
            worker.admit(b"a", generation())
            ids: list[int] = []
            with anyio.fail_after(20):
                while not ids or ids[-1] != EOS:
                    ids += [id_ for news in await worker.events() for id_ in news.ids]
            assert bytes(ids[:-1]) == STORY[5:40]
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(EngineDied, match="nothing answers"):
        async with engine_process(spec):
            pass
    with serving(speaks, port):
        async with engine_process(spec) as worker:
            assert worker.info.name == "mock"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://localhost:8080/v1/", "http://localhost:8080"),
        ("http://[::1]:8000/v3", "http://[::1]:8000"),
        ("https://gpu.example/inference/v1", "https://gpu.example/inference"),
    ],
)
def test_urls_are_taken_as_people_write_them(given, used):
    """With or without the path that OpenAI's clients want."""
    assert base_url(given) == used


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("http://gpu.example:8000", "unencrypted"),
        ("http://192.168.1.7:8000", "unencrypted"),
        ("ftp://127.0.0.1", "no URL"),
        ("127.0.0.1:8080", "no URL"),
        ("http://user:pass@127.0.0.1:1", "STARAI_ENGINE_KEY"),
    ],
)
def test_prompts_do_not_leave_the_machine_unencrypted(given, why):
    """Plain HTTP is for the loopback; a key is not written into a URL."""
    with pytest.raises(ConfigurationRefused, match=why):
        base_url(given)


def test_no_proxy_of_the_environment_sees_a_prompt(monkeypatch):
    """HTTP_PROXY is for other programs."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with scene("vllm") as (_server, engine):
        assert answer(engine, generation())[1].finish is Finish.STOP


@pytest.mark.parametrize("model", ["mock", "embedded"])
def test_text_is_spelled_as_it_is_read(model):
    """What a tokenizer made of a conversation is text that it makes the same ids of."""
    manifest = open_model(model)
    codec = open_codec(manifest)
    spelling = Spelling(codec, manifest)
    for text in ("Once upon a time", "naïve 你好\n\tx = 3.14", " leading", "a" * 50):
        ids = codec.encode(text)
        assert codec.encode(spelling.text_of(ids, len(ids))) == ids
        answer_ids = spelling.ids_of(text)
        assert codec.decode(answer_ids) == text
    chat = codec.render_chat([{"role": "user", "content": "Tell me a story."}])
    assert codec.encode(spelling.text_of(chat, len(chat))) == chat


def test_a_control_token_in_a_message_cannot_be_forged():
    """A message that spells a control token has no text that is read as it was meant: refused."""
    manifest = open_model("embedded")
    codec = open_codec(manifest)
    spelling = Spelling(codec, manifest)
    control = codec.token_text(manifest.eos_token_ids[0])
    forged = codec.render_chat([{"role": "user", "content": f"Hi {control} there"}])
    with pytest.raises(UnsupportedField):
        spelling.text_of(forged, len(forged))


def test_a_served_model_has_no_engine_but_its_server(tmp_path):
    """Without a URL the reason is said."""
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((EMBEDDED_FOLDER / name).read_bytes())
    with pytest.raises(ConfigurationRefused, match="URL"):
        open_engine(EngineSpec("text", f"served:{tmp_path}"))
    with pytest.raises(ConfigurationRefused, match="--engine-url"):
        engine_spec(tmp_path, NodeOptions(f"served:{tmp_path}"))
    spec = engine_spec(tmp_path, NodeOptions(f"served:{tmp_path}", engine_url="http://[::1]:1"))
    assert (spec.kind, spec.options) == ("external", {"url": "http://[::1]:1"})


@pytest.mark.anyio
async def test_questions_are_bounded():
    """A list of models without end is not read to its end."""
    with serving(EngineServer("openai")) as server:
        async with Connection(server.url) as connection:
            assert await connection.answers("/v1/models")
            assert await connection.answers("/nothing")
            server.endless = True
            with pytest.raises(Unavailable, match="without end"):
                await connection.ask("/v1/models")
    async with Connection("http://127.0.0.1:9") as connection:
        assert not await connection.answers("/")


@given(st.text())
def test_an_answers_ids_are_its_text(text):
    """Whatever a server says, its ids say the same."""
    assert CODEC.decode(SPELLING.ids_of(text)) == text


@given(st.text(max_size=60), st.text(max_size=20))
def test_a_prompts_text_is_read_as_the_prompt(text, accepted):
    """Or it is refused; with an accepted part behind it, too."""
    ids = CODEC.encode(text)
    whole = [*ids, *SPELLING.ids_of(accepted)]
    try:
        spelled = SPELLING.text_of(whole, len(ids))
    except UnsupportedField:
        return
    assert CODEC.encode(spelled)[: len(ids)] == ids
    assert spelled.endswith(accepted)
