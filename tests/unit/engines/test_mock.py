"""The mock engine keeps every promise of the contract without a model."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from starai.core.errors import (
    ConfigurationRefused,
    ContextTooLong,
    InvalidRequest,
    Overloaded,
)
from starai.engines.base import EngineSpec
from starai.engines.registry import open_engine
from starai.protocol import tokens
from starai.protocol.generation import Finish, Generation, Grammar, Sampling


def generation(prompt=(1, 2, 3), max_tokens=50, accepted=(), key=b"k" * 32, **changes):
    bias = changes.pop("logit_bias", {})
    return Generation(
        prompt=tokens.pack(list(prompt)),
        max_tokens=max_tokens,
        sampling=Sampling(key, logit_bias=bias),
        stop_token_ids=changes.pop("stop", (256,)),
        salt=b"s" * 16,
        accepted=tokens.pack(list(accepted)),
        **changes,
    )


def run(asked: Generation, **options):
    engine = open_engine(EngineSpec("mock", "mock", options=options))
    engine.admit(b"a", asked)
    emitted = []
    while engine.has_work:
        emitted += engine.step()
    return [id_ for news in emitted for id_ in news.ids], emitted[-1].finish, emitted


def test_answers_are_printable_and_end_with_the_end_token():
    """Twenty printable bytes and the end token, the same for the same key."""
    ids, finish, _ = run(generation())
    assert len(ids) == 21
    assert all(32 <= id_ < 127 for id_ in ids[:-1])
    assert (ids[-1], finish) == (256, Finish.STOP)
    assert run(generation())[0] == ids
    assert run(generation(key=b"x" * 32))[0] != ids


def test_the_length_is_bounded_by_max_tokens_and_by_a_ban():
    """max_tokens ends with LENGTH; a banned end token never comes."""
    assert run(generation(max_tokens=7))[1] is Finish.LENGTH
    ids, finish, _ = run(generation(logit_bias={256: -100.0}))
    assert (len(ids), finish) == (50, Finish.LENGTH)
    assert len(run(generation(), tokens=5)[0]) == 6


@pytest.mark.parametrize("kept", [0, 1, 10, 20])
def test_a_resumed_answer_continues_identically(kept):
    """The tokens behind ``accepted`` are those of the undisturbed run."""
    ids = run(generation())[0]
    assert run(generation(accepted=ids[:kept]))[0] == ids[kept:]


def test_an_answer_that_was_complete_ends_at_once():
    """A node can die between the last token and its finish: the next one just says the finish."""
    ids = run(generation())[0]
    assert run(generation(accepted=ids))[:2] == ([], Finish.STOP)
    assert run(generation(accepted=ids[:7], max_tokens=7))[:2] == ([], Finish.LENGTH)


def test_stop_token_ids_end_an_answer_and_are_part_of_it():
    """Any id can stop."""
    ids = run(generation())[0]
    stopped, finish, _ = run(generation(stop=(ids[4],)))
    assert (stopped, finish) == (ids[: ids.index(ids[4]) + 1], Finish.STOP)


def test_logprobs_come_with_each_token_when_asked():
    """None asks for nothing, 0 for the chosen token, n for rivals."""
    assert not run(generation())[2][0].logprobs
    _, _, emitted = run(generation(top_logprobs=0))
    assert all(len(news.logprobs) == len(news.ids) == 1 for news in emitted)
    assert emitted[0].logprobs[0].token_id == emitted[0].ids[0]


def test_what_cannot_be_admitted():
    """Contexts, numbers, keys and slots are checked before anything runs."""
    engine = open_engine(EngineSpec("mock", "mock", slots=1))
    with pytest.raises(ContextTooLong):
        engine.admit(b"a", generation(prompt=[1] * 8192))
    for bad in (
        generation(prompt=()),
        generation(prompt=[257]),
        generation(max_tokens=0),
        generation(accepted=[300]),
        generation(top_logprobs=21),
    ):
        with pytest.raises(InvalidRequest):
            engine.admit(b"a", bad)
    engine.admit(b"a", generation(prompt=[1] * 8191))
    with pytest.raises(InvalidRequest):
        engine.admit(b"a", generation())
    with pytest.raises(Overloaded):
        engine.admit(b"b", generation())
    assert engine.step()[0].finish is Finish.LENGTH
    engine.admit(b"b", generation())
    engine.cancel(b"b")
    engine.cancel(b"unknown")
    assert not engine.has_work


@pytest.mark.parametrize(
    "spec",
    [
        EngineSpec("mock", "mock", slots=0),
        EngineSpec("mock", "mock", threads=-1),
        EngineSpec("text", "mock"),
        EngineSpec("sound", "mock"),
    ],
)
def test_impossible_engines_are_refused(spec):
    """The registry says what is wrong before loading anything."""
    if spec.kind == "sound":
        with pytest.raises(ConfigurationRefused, match="nothing else does"):
            open_engine(spec)
    else:
        with pytest.raises(ConfigurationRefused):
            open_engine(spec)


def test_only_the_text_engine_loads_torch():
    """Contract, mock, sampler, worker and process come without torch and transformers."""
    code = (
        "import sys, starai.engines.process, starai.engines.worker, starai.engines.mock,"
        "starai.models.catalog, starai.models.codec;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_embedding_is_one_vector_of_unit_length():
    """It depends on the prompt alone, comes with the end, and there is no token."""
    vectors = {}
    for prompt in ((1, 2, 3), (1, 2, 4)):
        ids, finish, (news,) = run(generation(prompt, 0, embed=True))
        assert (ids, finish) == ([], Finish.STOP)
        vectors[prompt] = np.frombuffer(news.embedding, "<f4")
        assert np.linalg.norm(vectors[prompt]) == pytest.approx(1.0, abs=1e-6)
    assert vectors[1, 2, 3].shape == (16,)
    assert not np.allclose(*vectors.values())


@pytest.mark.parametrize(
    "asked",
    [
        generation(max_tokens=1, embed=True),
        generation(max_tokens=0),
        generation(max_tokens=0, embed=True, accepted=(1,)),
        generation(max_tokens=0, embed=True, top_logprobs=1),
        generation(max_tokens=0, embed=True, grammar=Grammar("json_object")),
        generation(grammar=Grammar("json_object")),
        generation(adapter="poet"),
    ],
)
def test_what_makes_no_sense_is_refused(asked):
    """A vector has no tokens; a mock has neither grammars nor adapters."""
    with pytest.raises(InvalidRequest):
        run(asked)
