"""The canonical sampler: exact noise, honest probabilities, and no dependence on the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from starai.core.errors import InvalidRequest
from starai.engines.sampler import (
    TokenRace,
    gumbel,
    hash_one,
    hash_position,
    noise_key,
    sample,
    token_logprobs,
    top_candidates,
)
from starai.protocol.generation import Sampling

VOCAB = 100
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
KEYS = ["0x20789f7ba6b1ddbb", "0xefc84ddb2a0578ea"]
HASHES = [
    "0xf5d98df1ca97b49",
    "0x51038aadf1a59c5b",
    "0x3c404daa490f6e9b",
    "0xd28e04ca1e1d063b",
    "0x3dd8d2245625c2fe",
]
GUMBELS = [-1.034267631854, -0.140246611002, -0.369254135207, 1.632544424035, -0.351019168248]


def race(key: int = 0, accepted=(), vocab: int = VOCAB, **parameters) -> TokenRace:
    sampling = Sampling(key.to_bytes(32, "big"), **parameters)
    return TokenRace(sampling, vocab, list(accepted))


def mix(z: int) -> int:
    """SplitMix64's finaliser in Python integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def reference_hash(key: int, position: int, token: int) -> int:
    """The docstring's formula in Python integers."""
    return mix((mix((key + GOLDEN * (position + 1)) & MASK) + GOLDEN * (token + 1)) & MASK)


def u64(*values: int):
    return np.array(values, np.uint64)


def test_published_vectors_of_the_noise():
    """Any implementation, in any language, must give these numbers."""
    keys = [noise_key(bytes(32)), noise_key(bytes(range(32)))]
    vectors = [
        (keys[0], 0, 0),
        (keys[0], 0, 1),
        (keys[0], 1, 0),
        (keys[1], 4095, 151_935),
        (MASK, 2**32 - 1, 2**32 - 1),
    ]
    found = [int(hash_position(u64(k), u64(p), u64(t))[0]) for k, p, t in vectors]
    assert [hex(k) for k in keys] == KEYS
    assert [hex(h) for h in found] == HASHES
    assert gumbel(u64(*found)).tolist() == pytest.approx(GUMBELS, abs=1e-11)


def test_the_finaliser_is_splitmix64s():
    """The first outputs of the reference generator for seed 1234567."""
    outputs = [mix((1234567 + GOLDEN * n) & MASK) for n in (1, 2, 3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(0, MASK), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_the_hash_is_integer_arithmetic(key, position, token):
    """Numpy's hash equals Python's integers everywhere, and its noise is finite."""
    found = hash_position(u64(key), u64(position), u64(token))
    assert int(found[0]) == hash_one(key, position, token) == reference_hash(key, position, token)
    assert np.isfinite(gumbel(found)).all()


def test_noise_is_finite_at_both_ends():
    """The smallest and the largest hash give finite noise."""
    low, high = gumbel(u64(0, MASK))
    assert -4 < low < high < 40


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_it_samples_the_softmax(temperature):
    """Chi-square over 20,000 positions at 9 degrees of freedom."""
    logits = np.linspace(-2, 1, 10).astype(np.float32)
    draws = np.zeros(10)
    for key in range(5):
        runner = race(key, vocab=10, temperature=temperature)
        for _ in range(4000):
            draws[sample(logits[None], [runner])[0]] += 1
            runner.position += 1
    p = np.exp(logits.astype(float) / temperature)
    expected = 20_000 * p / p.sum()
    chi_square = ((draws - expected) ** 2 / expected).sum()
    assert chi_square < 27.9  # p = 0.001


def test_positions_and_keys_are_independent():
    """Noise of neighbouring positions, tokens and keys is uncorrelated."""
    grid = gumbel(
        hash_position(
            u64(7), np.arange(300, dtype=np.uint64)[:, None], np.arange(64, dtype=np.uint64)
        )
    )
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.03
    assert abs(grid.mean() - 0.5772) < 0.03


LOGITS = hnp.arrays(np.float32, (5, 200), elements=st.floats(-20, 20, width=32))


@settings(max_examples=50)
@given(LOGITS, st.data())
def test_the_batch_does_not_matter(logits, data):
    """Alone, among others, in any order: a sequence gets the same token."""
    draw = data.draw
    races = [
        race(
            draw(st.integers(0, 2**64)),
            draw(st.lists(st.integers(0, 199), max_size=8)),
            200,
            temperature=draw(st.sampled_from([0.0, 0.3, 1.0, 2.0])),
            top_p=draw(st.sampled_from([0.0, 0.5, 1.0])),
            top_k=draw(st.sampled_from([0, 1, 5, 500])),
            min_p=draw(st.sampled_from([0.0, 0.1, 1.0])),
            presence_penalty=draw(st.sampled_from([0.0, 1.5])),
            frequency_penalty=draw(st.sampled_from([0.0, -0.5])),
        )
        for _ in range(5)
    ]
    together = sample(logits, races)
    assert together == [sample(logits[i : i + 1], [races[i]])[0] for i in range(5)]
    assert together == sample(logits[::-1], races[::-1])[::-1]


@given(LOGITS)
def test_greedy_takes_the_lowest_of_equals(logits):
    """Temperature 0 is argmax, ties to the lower id; so are top_k 1, top_p 0 and min_p 1."""
    row = np.round(logits[0])
    best = int(np.flatnonzero(row == row.max())[0])
    for cold in (0.0, 1e-320, 1e-6):
        assert sample(row[None], [race(vocab=200, temperature=cold)]) == [best]
    sample(row[None], [race(vocab=200, temperature=1e-5)])  # a warning would be an error
    for narrow in ({"top_k": 1}, {"top_p": 0.0}):
        assert sample(row[None], [race(vocab=200, **narrow)]) == [best]
    tied = sample(row[None], [race(vocab=200, min_p=1.0)])[0]
    assert row[tied] == row[best]


@given(LOGITS)
def test_candidates_are_ordered_and_deterministic(logits):
    """The 64 largest by (logit descending, id ascending), as a plain sort finds them."""
    row = np.round(logits[0])
    ids, values = top_candidates(row, 64)
    expected = sorted(range(row.size), key=lambda i: (-row[i], i))[:64]
    assert ids.tolist() == expected
    assert values.tolist() == [row[i] for i in expected]


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    """With p = 0.5, 0.3, 0.2 and top_p 0.6 the first two remain and the third never comes."""
    logits = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    seen = set()
    for position in range(300):
        runner = race(3, vocab=3, top_p=0.6)
        runner.position = position
        seen.add(sample(logits, [runner])[0])
    assert seen == {0, 1}


def test_penalties_count_the_answer_only():
    """Presence once, frequency per occurrence, accepted tokens included, as OpenAI says."""
    logits = np.zeros(VOCAB, np.float32)
    runner = race(accepted=[5, 5, 6], presence_penalty=0.5, frequency_penalty=0.25)
    runner.note(7)
    adjusted = runner.adjusted(logits)
    assert adjusted[[5, 6, 7, 8]].tolist() == [-1.0, -0.75, -0.75, 0.0]
    assert not logits.any()


def test_bias_bans_and_forces():
    """-100 never comes, +100 always does, even from the bottom of the vocabulary."""
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, 3] = 20
    assert sample(logits, [race(logit_bias={3: -100.0})]) != [3]
    assert sample(logits, [race(logit_bias={99: 100.0})]) == [99]


def test_masked_logits_never_win():
    """-inf logits are never drawn, even when fewer than 64 are finite."""
    logits = np.full((1, VOCAB), -np.inf, np.float32)
    logits[0, [4, 9]] = 0
    seen = {sample(logits, [race(key, temperature=2.0)])[0] for key in range(100)}
    assert seen == {4, 9}


def test_logprobs_are_of_the_raw_distribution():
    """Natural logarithms at temperature 1, rivals by (logit, id); the chosen may be among them."""
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32)) + np.float32(50)
    found = token_logprobs(logits, 0, 2)
    assert found.token_id == 0
    assert found.logprob == pytest.approx(math.log(0.1), abs=1e-5)
    assert [i for i, _ in found.top] == [3, 2]
    assert found.top[0][1] == pytest.approx(math.log(0.4), abs=1e-5)
    assert token_logprobs(logits, 1, 0).top == ()


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": math.nan},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": -0.1},
        {"presence_penalty": 3.0},
        {"frequency_penalty": math.inf},
        {"logit_bias": {VOCAB: 1.0}},
        {"logit_bias": {0: 101.0}},
        {"logit_bias": dict.fromkeys(range(301), 0.0)},
    ],
)
def test_parameters_outside_their_range_are_refused(bad):
    """The error names the parameter."""
    with pytest.raises(InvalidRequest) as caught:
        race(vocab=VOCAB, **bad)
    assert caught.value.param == next(iter(bad))


def test_a_short_key_is_refused():
    """A sample key has 32 bytes."""
    with pytest.raises(InvalidRequest):
        TokenRace(Sampling(b"short"), VOCAB, [])


@pytest.mark.parametrize("kind", ["distinct", "many ties", "nearly all forbidden"])
def test_large_vocabularies_have_the_same_candidates(kind):
    """Searching by chunks finds what sorting everything finds, ties and -inf included."""
    chance = np.random.default_rng(11)
    for size in (16_385, 40_000, 151_936):
        logits = chance.normal(size=size).astype(np.float32)
        if kind == "many ties":
            logits = np.round(logits * 2)
        if kind == "nearly all forbidden":
            logits[chance.permutation(size)[30:]] = -np.inf
        expected = np.lexsort((np.arange(size), -logits))[:64]
        ids, values = top_candidates(logits, 64)
        assert ids.tolist() == expected.tolist()
        assert values.tolist() == logits[expected].tolist()
