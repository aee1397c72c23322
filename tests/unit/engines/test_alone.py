"""The engine alone: what it answers, that answers share steps and memory, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import fields

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM  # noqa: E402

from starai.core.errors import (  # noqa: E402
    ConfigurationRefused,
    ContextTooLong,
    InvalidRequest,
    ModelNotFound,
)
from starai.core.randomness import SeededRandomness  # noqa: E402
from starai.engines.decoding.beams import BeamSearch  # noqa: E402
from starai.engines.text import Engine  # noqa: E402
from starai.engines.text.asking import Wanted  # noqa: E402
from starai.engines.text.beaming import check_width  # noqa: E402
from starai.engines.text.options import TextOptions  # noqa: E402
from starai.protocol.generation import Grammar, sample_key  # noqa: E402

STORY = "Once upon a time"


@pytest.fixture(scope="module")
def engine():
    with Engine(slots=8, threads=1) as made:
        yield made


@pytest.fixture(autouse=True)
def idle(request):
    """After every test nothing runs and the books add up."""
    yield
    if "engine" in request.fixturenames:
        used = request.getfixturevalue("engine")
        assert used.memory_report().sequences == 0
        used._open.check_integrity()


def test_importing_the_package_loads_no_torch():
    """Parts of the package are imported by what must stay quick; only `Engine` costs seconds."""
    code = (
        "import sys, starai.engines.text as t; print('torch' in sys.modules, 'Engine' in t.__all__)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "True"]
    with pytest.raises(ImportError):
        from starai.engines.text import Engin  # type: ignore[attr-defined]  # noqa: F401, PLC0415


def test_a_seed_gives_the_same_answer_however_it_is_asked(engine):
    """Alone, streamed, or among others in one call: the same tokens; other seeds, others."""
    whole = engine.generate(STORY, max_tokens=30, seed=5)
    assert whole.num_prompt_tokens == len(engine._codec.encode(STORY))
    assert len(whole.ids) == 30
    assert whole.finish == "length"
    assert "".join(engine.stream(STORY, max_tokens=30, seed=5)) == whole.text
    many = engine.generate_many(["Hello", STORY, "The sea"], max_tokens=30, seed=5)
    assert many[1] == whole
    assert engine.generate(STORY, max_tokens=30, seed=6).text != whole.text


def test_the_seed_is_the_one_of_the_network():
    """The gateway makes the same keys of the same seed, so a network gives the same answer."""
    with Engine(threads=1, slots=1) as one:
        asked = one._asking.generations([5], {"seed": 7, "n": 2})
    keys = [generation.sampling.sample_key for generation in asked]
    assert keys == [sample_key(7, 0), sample_key(7, 1)]


def test_without_a_seed_chance_is_what_was_given():
    """Two engines with the same randomness say the same, and one says two things in a row."""
    told = []
    for _ in range(2):
        with Engine(threads=1, randomness=SeededRandomness(1)) as one:
            told.append([one.generate(STORY, max_tokens=12).text for _ in range(2)])
    assert told[0] == told[1]
    assert told[0][0] != told[0][1]


def test_more_prompts_than_places_are_all_answered_in_order(engine):
    """Each answer is what the prompt gets alone, and never more run than there are places."""
    prompts = [f"Number {n}:" for n in range(19)]
    answers = engine.generate_many(prompts, max_tokens=6, temperature=0.0)
    assert [a.ids for a in answers] == [
        engine.generate(p, max_tokens=6, temperature=0.0).ids for p in prompts
    ]
    assert engine.memory_peak().sequences <= 8


def test_several_answers_share_their_prompt():
    """Choices differ, the first is the answer with n=1, and the prompt's blocks are held once."""
    prompt = list(range(40, 140))
    with Engine(threads=1, slots=8) as one:
        answers = one.generate(prompt, n=4, max_tokens=8, seed=3)
        peak = one.memory_peak()
        assert one.generate(prompt, max_tokens=8, seed=3).ids == answers.ids
    assert len({choice.ids for choice in answers.choices}) == 4
    assert peak.sequences == 4
    # 100 tokens are 6 full blocks: three of four copies of each are saved.
    assert peak.sharing_saves_blocks == 18 == peak.formula_saves_blocks
    assert peak.page_faults < 4 * 7
    assert "MiB" in str(peak)
    assert "S_swap" in str(peak)


def test_streams_are_read_in_turns(engine):
    """Two streams share steps, each says what it says alone, and leaving one early frees it."""
    alone = [engine.generate(STORY, max_tokens=25, seed=seed).text for seed in (1, 2)]
    streams = [engine.stream(STORY, max_tokens=25, seed=seed) for seed in (1, 2)]
    read = ["", ""]
    for _ in range(60):
        for number, stream in enumerate(streams):
            read[number] += next(stream, "")
    assert read == alone
    left = engine.stream(STORY, max_tokens=200, seed=1)
    next(left)
    assert engine.memory_report().sequences == 1
    left.close()


def test_a_stream_waits_for_a_place():
    """With one place, the second stream begins when the first has ended; both are whole."""
    with Engine(threads=1, slots=1) as one:
        first = one.stream(STORY, max_tokens=10, seed=1)
        begun = next(first)
        second = "".join(one.stream("Hello", max_tokens=10, seed=1))
        assert second == one.generate("Hello", max_tokens=10, seed=1).text
        assert begun + "".join(first) == one.generate(STORY, max_tokens=10, seed=1).text


def test_a_conversation_is_answered_by_the_template(engine):
    """`chat`, a conversation as a prompt, and the rendered ids give one answer; tools are told."""
    messages = [{"role": "user", "content": "Who are you?"}]
    told = engine.chat(messages, max_tokens=20, temperature=0.0)
    assert told == engine.generate(messages, max_tokens=20, temperature=0.0)
    assert told.num_prompt_tokens == len(engine._codec.render_chat(messages))
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    with_tools = engine.chat(messages, tools=[tool], max_tokens=1)
    assert with_tools.num_prompt_tokens > told.num_prompt_tokens


def test_a_stop_text_ends_the_answer_across_token_borders(engine):
    """The text ends before it, streamed or not, and the finish says so."""
    whole = engine.generate(STORY, max_tokens=40, seed=1).text
    stop = whole[11:17]
    wanted = {"max_tokens": 40, "seed": 1, "stop": stop}
    told = engine.generate(STORY, **wanted)
    assert told.text == whole[: whole.index(stop)]
    assert told.finish == "stop"
    assert len(told.ids) < 40
    assert "".join(engine.stream(STORY, **wanted)) == told.text


def test_the_end_token_is_no_text():
    """An answer that ends by itself has its end token in ids and nothing of it in text."""
    with Engine(threads=1) as one:
        end = one._ends[0]
        told = one.generate(STORY, logit_bias={end: 100.0}, temperature=0.0)
    assert (told.text, told.ids, told.finish) == ("", (end,), "stop")


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({"regex": "[a-c]{5}[0-9]"}, lambda text: re.fullmatch("[a-c]{5}[0-9]", text)),
        ({"choices": ["yes", "no"]}, lambda text: text in ("yes", "no")),
        ({"grammar": Grammar("regex", "x+y")}, lambda text: re.fullmatch("x+y", text)),
        (
            {"json_schema": {"enum": [{"a": 1}, {"a": 2}]}},
            lambda text: json.loads(text)["a"] in (1, 2),
        ),
        ({"json_schema": '{"const": [3]}'}, lambda text: json.loads(text) == [3]),
    ],
)
def test_answers_keep_to_a_form(engine, wanted, fits):
    """A schema, an expression, a choice or a grammar is kept to, for every seed."""
    answers = engine.generate(STORY, n=3, seed=1, max_tokens=120, temperature=0.3, **wanted)
    assert all(fits(choice.text) for choice in answers.choices), answers


def test_logprobs_are_of_the_tokens(engine):
    """One entry a token, whose texts join to the answer; the rivals are sorted."""
    told = engine.generate(STORY, max_tokens=10, temperature=0.0, logprobs=3)
    assert len(told.logprobs) == 10
    assert "".join(one.text for one in told.logprobs) == told.text
    for one in told.logprobs:
        assert len(one.rivals) == 3
        assert one.rivals[0] == (one.text, one.logprob)
        assert [r[1] for r in one.rivals] == sorted((r[1] for r in one.rivals), reverse=True)
    assert engine.generate(STORY, max_tokens=2).logprobs == ()


def test_embeddings_are_unit_vectors_of_each_text(engine):
    """Equal texts have equal vectors, wherever they stand; no text, no vector."""
    vectors = engine.embed(["a cat", "the sea", "a cat"])
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert np.array_equal(vectors[0], vectors[2])
    assert not np.allclose(vectors[0], vectors[1], atol=0.05)
    assert len(engine.embed([])) == 0


@pytest.mark.parametrize("width", [1, 2, 4])
def test_beam_search_finds_what_transformers_finds(folder_of, width):
    """Tokens and scores of every kept answer; all memory is free afterwards."""
    folder = folder_of("llama")
    prompt = [5, 9, 200, 17, 3, 88, 21, 4, 9, 11, 250, 17, 3, 88, 21, 4, 9]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        told = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=20,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    expected = [ids[len(prompt) :] for ids in told.sequences.tolist()]
    with Engine(str(folder), slots=2 * width, threads=1) as one:
        found = one.beam_search(prompt, width, max_tokens=20)
        assert one.memory_report().sequences == 0
        one._open.check_integrity()
        faults = one.memory_report().page_faults
    for beam, ids in zip(found, expected, strict=True):
        assert list(beam.ids) == ids[: len(beam.ids)]
    if width > 1:
        scores = told.sequences_scores.numpy()
        assert np.allclose([beam.score for beam in found], scores, atol=1e-4)
        # Unshared, each of 20 steps would have taken 2 or 3 blocks for every beam.
        assert faults < 20 * 2 * width / 2


def test_beams_share_the_engine_with_a_stream(engine):
    """A stream that is half read goes on through a search, and ends as it would alone."""
    alone = engine.generate(STORY, max_tokens=30, seed=4).text
    beams = engine.beam_search("Hello", 2, max_tokens=8)
    stream = engine.stream(STORY, max_tokens=30, seed=4)
    begun = next(stream)
    assert engine.beam_search("Hello", 2, max_tokens=8) == beams
    assert begun + "".join(stream) == alone


def test_a_search_too_wide_is_refused_before_it_begins(engine):
    """Both bounds are named: what the engine tells of tokens, and its slots."""
    with pytest.raises(InvalidRequest, match="10 slots, the engine has 8"):
        engine.beam_search(STORY, 5)
    with pytest.raises(InvalidRequest, match="up to 6 beams"):
        check_width(BeamSearch(8, (1, 2), 5), slots=64)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"max_token": 3}, "did you mean max_tokens"),
        ({"n": 0}, "n is at least 1"),
        ({"seed": 1 << 63}, "64 bits"),
        ({"stop": [""]}, "stop"),
        ({"stop": list("abcde")}, "stop"),
        ({"temperature": 9.0}, "temperature"),
        ({"logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"regex": "a", "choices": ["b"]}, "exclude each other"),
        ({"json_schema": {"type": "nonsense"}}, "nonsense"),
        ({"adapter": "nobody"}, "adapter"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(engine, wanted, said):
    """The message names what is wrong, nothing is left running, and the engine still answers."""
    with pytest.raises(InvalidRequest, match=said):
        engine.generate_many([STORY, "Hello"], **wanted)
    assert engine.generate(STORY, max_tokens=2).ids


def test_prompts_that_cannot_be_are_refused(engine):
    """Empty, too long, outside the vocabulary, negative, or half a conversation."""
    for prompt in ([], [1 << 20], [-1], ["a"], [{"role": "user", "content": "x"}, 3]):
        with pytest.raises(InvalidRequest):
            engine.generate(prompt)
    with pytest.raises(ContextTooLong):
        engine.generate_many(["short", [5] * 5000])
    with pytest.raises(InvalidRequest):
        next(engine.stream(STORY, n=2))


def test_models_and_options_that_cannot_be_are_refused():
    """As everywhere: what is wrong, and what to do."""
    with pytest.raises(ModelNotFound):
        Engine("no/such")
    with pytest.raises(ConfigurationRefused, match="did you mean bits"):
        Engine(bit=8)
    with pytest.raises(ConfigurationRefused, match="mock"):
        Engine("mock")


def test_a_closed_engine_says_so():
    """Closing frees the model; a stream that was open ends with the same words."""
    engine = Engine(threads=1)
    stream = engine.stream(STORY)
    next(stream)
    engine.close()
    engine.close()
    with pytest.raises(InvalidRequest, match="closed"):
        engine.generate(STORY)
    with pytest.raises(InvalidRequest, match="closed"):
        list(stream)


def test_the_page_lists_every_option_and_wish():
    """docs/howto/engine.md has each option with its default, and names all that can be asked."""
    page = (Path(__file__).resolve().parents[3] / "docs/howto/engine.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", page, flags=re.MULTILINE)
    assert rows == [(field.name, repr(field.default)) for field in fields(TextOptions)]
    assert [name for name in Wanted.__annotations__ if f"`{name}`" not in page] == []
