"""Beam search finds what transformers' finds, and leaves no sequence behind."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from starai.core.errors import InvalidRequest
from starai.engines.decoding.beams import BeamSearch, Move, follow, run

VOCAB, END = 12, 3


class Tree:
    """A host over any function from ids to log-probabilities; knows which sequences live."""

    def __init__(self, logprobs, prompt):
        self.logprobs = logprobs
        self.alive = {b"root": list(prompt)}
        self.most = 1

    def fork(self, key, new_key):
        assert new_key not in self.alive
        self.alive[new_key] = list(self.alive[key])
        self.most = max(self.most, len(self.alive))

    def remove(self, key):
        del self.alive[key]

    def step(self, feeds, count):
        assert feeds.keys() == self.alive.keys()
        for key, token_id in feeds.items():
            self.alive[key].append(token_id)
        return {key: self.tops(ids, count) for key, ids in self.alive.items()}

    def tops(self, ids, count):
        row = self.logprobs(ids)
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]
        return [(i, float(row[i])) for i in order]


def searched(logprobs, prompt, **how):
    search = BeamSearch(**how)
    tree = Tree(logprobs, prompt)
    found = run(search, tree, b"root", tree.tops(prompt, search.num_candidates))
    assert tree.alive == {}
    assert tree.most <= 2 * search.width
    return found


@pytest.fixture(scope="module")
def model():
    """A tiny random llama; torch is used in this test alone."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=END,
        bos_token_id=1,
        pad_token_id=0,
    )
    made = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return made


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize(("width", "ends"), [(1, [3]), (2, [3]), (4, [3]), (3, [3, 7]), (5, [])])
def test_it_finds_what_transformers_finds(model, width, ends, length_penalty, early_stopping):
    """All kept answers and their scores, for every way of stopping."""
    import torch  # noqa: PLC0415

    def logprobs(ids):
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1].float()
        return torch.log_softmax(logits, -1).numpy()

    lengths = []
    for prompt in ([1, 5, 9], [1, 2, 11, 4, 6]):
        kwargs = {
            "num_beams": width,
            "num_return_sequences": width,
            "max_new_tokens": 12,
            "do_sample": False,
            "eos_token_id": ends or None,
            "pad_token_id": 0,
            "return_dict_in_generate": True,
            "output_scores": True,
        }
        if width > 1:
            kwargs |= {"length_penalty": length_penalty, "early_stopping": early_stopping}
        told = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **kwargs
        )
        how = {"length_penalty": length_penalty, "early_stopping": early_stopping}
        found = searched(logprobs, prompt, width=width, ends=ends, max_tokens=12, **how)
        sequences = [ids[len(prompt) :] for ids in told.sequences.tolist()]
        assert len(found) == len(sequences)
        for one, ids in zip(found, sequences, strict=True):
            assert list(one.ids) == ids[: len(one.ids)]
            assert set(ids[len(one.ids) :]) <= {0, END}
        lengths += [len(one.ids) for one in found]
        if width > 1:
            scores = [one.score for one in found]
            assert scores == pytest.approx(told.sequences_scores.tolist(), rel=1e-4, abs=1e-4)
    if ends and width > 1 and early_stopping is True:
        assert min(lengths) < 12, "the comparison says nothing of how searches end"


def chance(seed):
    def logprobs(ids):
        row = np.random.default_rng([seed, *ids]).normal(size=VOCAB) * 2
        return row - math.log(np.exp(row).sum())

    return logprobs


@given(st.integers(0, 1000))
def test_wide_enough_it_finds_the_best_of_all(seed):
    """With as many beams as there are prefixes, no answer is likelier than the one found."""
    vocab, longest, end = 2, 3, 0

    def logprobs(ids):
        row = np.random.default_rng([seed, *ids]).normal(size=vocab)
        return row - math.log(np.exp(row).sum())

    def score(ids):
        return sum(logprobs([5, *ids[:n]])[ids[n]] for n in range(len(ids)))

    how = {"ends": [end], "max_tokens": longest, "length_penalty": 0.0}
    found = searched(logprobs, [5], width=8, early_stopping="never", **how)
    every = [
        ids
        for length in range(1, longest + 1)
        for ids in itertools.product(range(vocab), repeat=length)
        if end not in ids[:-1] and (ids[-1] == end or length == longest)
    ]
    best = max(every, key=score)
    assert found[0].ids == best
    assert found[0].score == pytest.approx(score(best))


@given(st.integers(0, 200), st.integers(1, 6), st.sampled_from([True, False, "never"]))
def test_answers_are_sorted_distinct_and_end_rightly(seed, width, early_stopping):
    """Best first; each ends with an end token or at the longest length; none twice."""
    found = searched(
        *(chance(seed), [1]), width=width, ends=[END], max_tokens=6, early_stopping=early_stopping
    )
    assert 1 <= len(found) <= width
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert len({one.ids for one in found}) == len(found)
    assert all(one.ids[-1] == END or len(one.ids) == 6 for one in found)
    assert all(END not in one.ids[:-1] for one in found)


def test_one_beam_is_greedy():
    """With a single beam each step takes the likeliest token."""
    logprobs, ids = chance(4), [1]
    while len(ids) < 7 and ids[-1] != END:
        ids.append(int(np.argmax(logprobs(ids))))
    found = searched(logprobs, [1], width=1, ends=[END], max_tokens=6, early_stopping=True)
    assert list(found[0].ids) == ids[1:]


def test_a_move_takes_the_fewest_forks():
    """A beam's first continuation keeps its sequence; the others are forks; the rest is removed."""
    keys = iter((b"d", b"e"))
    steps = follow([b"a", b"b", b"c"], Move((0, 2, 0), (7, 8, 9)), lambda: next(keys))
    assert steps.forks == ((b"a", b"d"),)
    assert steps.removals == (b"b",)
    assert steps.feeds == {b"a": 7, b"c": 8, b"d": 9}
    assert steps.keys == (b"a", b"c", b"d")


@pytest.mark.parametrize(
    "how", [{"width": 0}, {"width": 9}, {"max_tokens": 0}, {"length_penalty": math.nan}]
)
def test_impossible_searches_are_refused(how):
    """No beams, too many, no tokens, or a penalty that is no number."""
    with pytest.raises(InvalidRequest):
        BeamSearch(**{"width": 2, "ends": [END], "max_tokens": 4, **how})
