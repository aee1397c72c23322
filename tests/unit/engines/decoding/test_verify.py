"""Checked drafts change the speed and nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from starai.core.errors import InternalFault, InvalidRequest
from starai.engines.answer import Answer
from starai.engines.base import EngineInfo
from starai.engines.decoding.constraint import Grammars
from starai.engines.decoding.lookup import PromptLookup
from starai.engines.decoding.verify import Turn, accept, draw
from starai.models.catalog import open_model
from starai.models.codec import open_codec
from starai.protocol import tokens
from starai.protocol.generation import Finish, Generation, Grammar, Sampling

MOCK = open_model("mock")
VOCAB = MOCK.vocab_size
INFO = EngineInfo("mock", MOCK.root, VOCAB, 256, 8)
GRAMMARS = Grammars(open_codec(MOCK), MOCK.eos_token_ids)
JSON = Grammar("json_schema", '{"type":"object","properties":{"n":{"type":"integer"}}}')


def model(ids):
    """Logits behind ``ids``: a fixed function of them; eight likely tokens, so repeats are many."""
    seed = int.from_bytes(hashlib.sha256(bytes(i % 256 for i in ids[-2:])).digest()[:4], "little")
    chance = np.random.default_rng(seed)
    row = chance.normal(size=VOCAB).astype(np.float32)
    row[chance.integers(65, 73, 3)] += 6
    return row


def answer_to(key=0, max_tokens=40, top_logprobs=None, stop=(256,), accepted=(), **sampling):
    sampled = Sampling(key.to_bytes(32, "big"), **sampling)
    packed = tokens.pack(b"some prompt")
    generation = Generation(
        *(packed, max_tokens, sampled, tuple(stop), b"s" * 16, tokens.pack(accepted), top_logprobs)
    )
    return Answer(b"key", generation, INFO)


def run(answer, constraint, propose):
    """The answer to its end: ids, log-probabilities, finish, steps."""
    ids, logprobs, steps, news = [], [], 0, None
    while news is None or news.finish is None:
        assert news is None or not news.error
        sequence = [*answer.prompt, *answer.ids]
        drafts = propose(answer, answer.limit - len(answer.ids) - 1)
        rows = [model([*sequence, *drafts[:place]]) for place in range(len(drafts) + 1)]
        news = accept(answer, np.stack(rows), drafts, constraint)
        assert 1 <= len(news.ids) <= len(drafts) + 1
        ids += news.ids
        logprobs += news.logprobs
        steps += 1
    return ids, logprobs, news.finish, steps


def single(answer, room):
    return []


SAMPLINGS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 1.0]),
        "top_p": st.sampled_from([0.5, 1.0]),
        "presence_penalty": st.sampled_from([-1.0, 1.5]),
        "frequency_penalty": st.sampled_from([-0.5, 0.7]),
        "logit_bias": st.just({70: 2.0, 71: -3.0}),
        "top_logprobs": st.sampled_from([0, 3]),
        "max_tokens": st.integers(1, 60),
        "stop": st.sampled_from([(256,), (66,), ()]),
    },
)


@settings(max_examples=60)
@given(SAMPLINGS, st.integers(0, 99), st.sampled_from([None, JSON]), st.integers(0, 6))
def test_any_drafts_give_the_answer_of_single_steps(how, key, grammar, wild):
    """Right, half right and wrong drafts; penalties, bias, logprobs, stops, limits, grammars."""
    how = {"max_tokens": 40, **how}
    whole = run(answer_to(key, **how), _constraint(grammar), single)
    chance = np.random.default_rng(wild)

    def propose(answer, room):
        truth = whole[0][len(answer.ids) :][: int(chance.integers(0, 6))]
        noise = [int(i) for i in chance.integers(0, VOCAB, wild)]
        return (truth[: int(chance.integers(0, 6))] + noise)[: max(0, room)]

    assert run(answer_to(key, **how), _constraint(grammar), propose)[:3] == whole[:3]


def _constraint(grammar):
    return GRAMMARS.constraint(grammar) if grammar else None


def test_a_draft_that_is_right_saves_its_step():
    """All guesses right: as many tokens a step as guesses, and one."""
    whole = run(answer_to(stop=()), None, single)
    told = run(answer_to(stop=()), None, lambda a, r: whole[0][len(a.ids) :][: min(4, r)])
    assert (whole[3], told[3]) == (40, 8)


def test_lookup_and_check_together_are_faster_and_equal():
    """A model that repeats itself takes fewer steps with drafts from its own text."""
    lookup = PromptLookup(draft_cost=0.02)
    before = []

    def propose(answer, room):
        if before and before[-1][1]:
            length, guesses = before[-1]
            lookup.learn(guesses, min(len(answer.ids) - length - 1, guesses))
        drafts = lookup.propose([*answer.prompt, *answer.ids], room)
        before.append((len(answer.ids), len(drafts)))
        return drafts

    how = {"temperature": 0.0, "stop": (), "max_tokens": 120}
    whole, told = run(answer_to(**how), None, single), run(answer_to(**how), None, propose)
    assert told[:3] == whole[:3]
    assert told[3] < whole[3] / 2


def test_a_batch_is_drawn_like_each_alone():
    """Turns of different lengths beside each other do not disturb one another."""
    alone, together = [], []
    for batch in (alone, together):
        for key in range(6):
            answer = answer_to(key)
            rows = [model([1, 2, place]) for place in range(key + 1)]
            drafts = [int(rows[place].argmax()) for place in range(key)]
            batch.append(Turn(answer, np.stack(rows), drafts))
    assert draw(together) == [draw([turn])[0] for turn in alone]


def test_bad_numbers_fail_their_sequence_only():
    """Not-a-number in the first row is an error; behind a drawn token it waits for its turn."""
    good, bad, later = (Turn(answer_to(), np.stack([model([n])] * 2), ()) for n in range(3))
    bad.logits = np.full_like(bad.logits, np.nan)
    later.logits = later.logits.copy()
    later.logits[1] = np.nan
    later.drafts = accept(answer_to(), later.logits[:1]).ids
    news = draw([good, bad, later])
    assert [len(one.ids) for one in news] == [1, 0, 1]
    assert [one.error for one in news] == ["", InternalFault.code, ""]


def test_a_grammar_that_gives_up_fails_its_sequence_only():
    """The error is the request's own."""
    constraint = GRAMMARS.constraint(Grammar("regex", "((([a-z]{0,100}){0,100}){0,100}b){0,100}"))
    answer, news = answer_to(max_tokens=200, stop=()), None
    chance = np.random.default_rng(2)
    while news is None or not (news.error or news.finish):
        row = chance.normal(size=(1, VOCAB)).astype(np.float32)
        news = accept(answer, row, (), constraint)
    assert news.error == InvalidRequest.code


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_lawful_token_is_drawn_whatever_its_logit(temperature):
    """The mask comes before the candidates: a token far below the best 64 can be the only one."""
    constraint = GRAMMARS.constraint(Grammar("choice", '["Z"]'))
    row = np.linspace(0, 50, VOCAB, dtype=np.float32)[None]
    answer = answer_to(temperature=temperature, top_logprobs=1)
    news = accept(answer, row, (), constraint)
    assert news.ids == (ord("Z"),)
    assert news.logprobs[0].logprob < -10
    assert news.logprobs[0].top[0][0] == VOCAB - 1
    news = accept(answer, row, (), constraint)
    assert (news.ids, news.finish) == ((256,), Finish.STOP)
