"""The canonical sampler: a keyed Gumbel race that gives the same tokens on any machine.

It knows no randomness of its own, no batch and no device: a token is a pure function of the
logits, the parameters, the sample key and the position in the answer. A node that takes over in
the middle continues as if nothing had happened, and a verifier can repeat every draw.

**Exactly**, for each sequence, from float32 logits:

1. ``logit_bias`` is added. For every token that occurs c > 0 times in the answer so far (accepted
   part included, prompt excluded): ``logit -= presence_penalty + c * frequency_penalty``. Tokens
   that the answer's grammar forbids here are -inf (`starai.engines.decoding.constraint`).
2. The 64 largest logits are the candidates, ordered by (logit descending, id ascending).
3. ``temperature`` below 1e-5: the first candidate. Else, with x = float64(logit) / temperature:
   ``top_k`` keeps the first k; p = softmax of the x kept; ``top_p`` keeps a candidate while the
   sum of p before it is below top_p; ``min_p`` keeps p >= min_p * p of the first. The first
   always stays.
4. score = x - log(-log(u)); the first candidate with the highest score is the token.

The noise: K is the little-endian u64 of HKDF-SHA256 (RFC 5869; key material ``sample_key``, no
salt, info ``starai/v1/sample``, 8 bytes). With mix() the finaliser of SplitMix64 (Steele, Lea,
Flood: Fast splittable pseudorandom number generators, OOPSLA 2014) and G = 0x9E3779B97F4A7C15,
all modulo 2**64::

    h(position, token) = mix(mix(K + G * (position + 1)) + G * (token + 1))
    u = ((h >> 12) + 0.5) / 2**52            exact in float64, strictly between 0 and 1

Test vectors are in tests/unit/engines/test_sampler.py.

**Log-probabilities** are of the model's own distribution: natural logarithm of the softmax of the
raw logits, at temperature 1, before bias and penalties.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from starai.core.errors import InvalidRequest
from starai.core.limits import LOGIT_BIAS_MAX, SAMPLER_CANDIDATES
from starai.protocol.generation import Sampling, TokenLogprobs

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS: Final = (np.uint64(30), np.uint64(27), np.uint64(31))
_U64: Final = (1 << 64) - 1
_FRACTION_SHIFT: Final = np.uint64(12)
#: Below this, dividing by the temperature would overflow before it changed a draw.
_TEMPERATURE_GREEDY: Final = 1e-5
#: Vocabularies beyond this are searched by the maxima of chunks: 20 times faster at 150,000 tokens.
_CHUNKED_MIN: Final = 16_384
_CHUNK: Final = 64
#: OpenAI's ranges.
_TEMPERATURE_MAX: Final = 2.0
_PENALTY_MAX: Final = 2.0
_BIAS_MAX: Final = 100.0


def noise_key(sample_key: bytes) -> int:
    """The u64 that a task's noise grows from: HKDF-SHA256 of its sample key."""
    pseudorandom = hmac.digest(bytes(32), sample_key, hashlib.sha256)
    okm = hmac.digest(pseudorandom, b"starai/v1/sample\x01", hashlib.sha256)
    return int.from_bytes(okm[:8], "little")


def hash_position(
    keys: NDArray[np.uint64], positions: NDArray[np.uint64], token_ids: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """H of the module's text, elementwise with broadcasting."""
    one = np.uint64(1)
    with np.errstate(over="ignore"):
        inner = _mix(keys + _GOLDEN * (positions + one))
        return _mix(inner + _GOLDEN * (token_ids + one))


def hash_one(key: int, position: int, token_id: int) -> int:
    """H of the module's text for one token: for few, numpy's calls cost more than the sums."""
    inner = _mix_one(key + int(_GOLDEN) * (position + 1))
    return _mix_one(inner + int(_GOLDEN) * (token_id + 1))


def _mix_one(z: int) -> int:
    z &= _U64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _U64
    return z ^ (z >> 31)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> _SHIFTS[0])) * _MULTIPLY[0]
    z = (z ^ (z >> _SHIFTS[1])) * _MULTIPLY[1]
    return z ^ (z >> _SHIFTS[2])


def gumbel(hashed: NDArray[np.uint64]) -> Doubles:
    """Gumbel noise -log(-log u) of hashes."""
    u = ((hashed >> _FRACTION_SHIFT).astype(np.float64) + 0.5) * 2.0**-52
    return np.asarray(-np.log(-np.log(u)), dtype=np.float64)


class TokenRace:
    """One sequence's sampling: parameters, key, position, and how often each token occurred."""

    def __init__(self, sampling: Sampling, vocab_size: int, accepted: Sequence[int]) -> None:
        """Start behind ``accepted``.

        Raises:
            InvalidRequest: a parameter is outside its range.
        """
        _check(sampling, vocab_size)
        self.sampling = sampling
        self.key = noise_key(sampling.sample_key)
        self.position = 0
        self._counts: dict[int, int] = {}
        self._penalised = bool(sampling.presence_penalty or sampling.frequency_penalty)
        for token_id in accepted:
            self.note(token_id)

    def note(self, token_id: int) -> None:
        """The answer grew by ``token_id``."""
        self.position += 1
        if self._penalised:
            self._counts[token_id] = self._counts.get(token_id, 0) + 1

    def adjusted(self, logits: Floats) -> Floats:
        """Step 1: logits [vocabulary] with bias and penalties; the argument is not changed."""
        bias = self.sampling.logit_bias
        if not bias and not self._counts:
            return logits
        logits = logits.copy()
        for token_id, value in bias.items():
            logits[token_id] += np.float32(value)
        for token_id, times in self._counts.items():
            penalty = self.sampling.presence_penalty + times * self.sampling.frequency_penalty
            logits[token_id] -= np.float32(penalty)
        return logits


def sample(logits: Floats | Sequence[Floats], races: Sequence[TokenRace]) -> list[int]:
    """The next token of each sequence.

    Args:
        logits: [sequences, vocabulary], or a row for each; finite or -inf, not all of a row.
        races: each sequence's state; not changed, call `TokenRace.note` with the token.
    """
    chosen = [0] * len(races)
    drawn: list[int] = []
    rows: list[tuple[NDArray[np.int64], Floats]] = []
    for index, race in enumerate(races):
        row = race.adjusted(logits[index])
        if race.sampling.temperature < _TEMPERATURE_GREEDY:
            chosen[index] = int(np.argmax(row))  # the lowest id of equals, as in step 2
        else:
            drawn.append(index)
            rows.append(top_candidates(row, SAMPLER_CANDIDATES))
    if drawn:
        for index, token_id in zip(drawn, _race(rows, [races[i] for i in drawn]), strict=True):
            chosen[index] = token_id
    return chosen


def top_candidates(logits: Floats, count: int) -> tuple[NDArray[np.int64], Floats]:
    """Ids and logits of the ``count`` largest, by (logit descending, id ascending).

    Of a large vocabulary only the ``count`` best chunks are looked into: each holds an element at
    least as good as anything in the chunks behind them.
    """
    if logits.size > _CHUNKED_MIN:
        whole = logits.size // _CHUNK * _CHUNK
        chunks, _ = top_candidates(logits[:whole].reshape(-1, _CHUNK).max(axis=1), count)
        inside = np.sort(chunks)[:, None] * _CHUNK + np.arange(_CHUNK)
        among = np.concatenate([inside.ravel(), np.arange(whole, logits.size)])
    else:
        among = np.arange(logits.size)
    values = logits[among]
    if among.size > count:
        threshold = np.partition(values, among.size - count)[among.size - count]
        above = np.flatnonzero(values > threshold)
        equal = np.flatnonzero(values == threshold)[: count - above.size]
        kept = np.concatenate([above, equal])
        among, values = among[kept], values[kept]
    order = np.lexsort((among, -values))
    return among[order], values[order]


def _race(
    rows: Sequence[tuple[NDArray[np.int64], Floats]], races: Sequence[TokenRace]
) -> list[int]:
    """Steps 3 and 4 for the whole batch at once; shorter rows are filled with -inf."""
    width = max(ids.size for ids, _ in rows)
    ids = np.zeros((len(rows), width), np.int64)
    x = np.full((len(rows), width), -np.inf)
    for index, (row_ids, values) in enumerate(rows):
        ids[index, : row_ids.size] = row_ids
        x[index, : row_ids.size] = values.astype(np.float64)
    sampling = [race.sampling for race in races]
    x /= np.array([s.temperature for s in sampling])[:, None]
    top_k = np.array([s.top_k or width for s in sampling])[:, None]
    x[np.arange(width)[None, :] >= top_k] = -np.inf
    p = np.exp(x - x[:, :1])
    p /= p.sum(axis=1, keepdims=True)
    before = np.cumsum(p, axis=1) - p
    keep = before < np.array([s.top_p for s in sampling])[:, None]
    keep &= p >= np.array([s.min_p for s in sampling])[:, None] * p[:, :1]
    keep[:, 0] = True
    hashed = hash_position(
        np.array([race.key for race in races], np.uint64)[:, None],
        np.array([race.position for race in races], np.uint64)[:, None],
        ids.astype(np.uint64),
    )
    scores = np.where(keep, x + gumbel(hashed), -np.inf)
    winners = scores.argmax(axis=1)
    return [int(ids[index, winner]) for index, winner in enumerate(winners)]


def token_logprobs(logits: Floats, token_id: int, top: int) -> TokenLogprobs:
    """The log-probability of a token and of its ``top`` likeliest rivals, itself included.

    Args:
        logits: raw logits [vocabulary].
        token_id: the token that was chosen.
        top: how many of the likeliest to list, by (logit descending, id ascending).
    """
    peak = float(logits.max())
    total = float(np.exp(logits - np.float32(peak)).sum(dtype=np.float64))
    normaliser = peak + math.log(total)
    ids, values = top_candidates(logits, top) if top else (np.zeros(0, np.int64), logits[:0])
    return TokenLogprobs(
        token_id,
        float(logits[token_id]) - normaliser,
        tuple((int(i), float(v) - normaliser) for i, v in zip(ids, values, strict=True)),
    )


def _check(sampling: Sampling, vocab_size: int) -> None:
    if len(sampling.sample_key) != 32:
        raise InvalidRequest("sample_key has 32 bytes", param="sample_key")
    ranges = (
        ("temperature", sampling.temperature, 0.0, _TEMPERATURE_MAX),
        ("top_p", sampling.top_p, 0.0, 1.0),
        ("top_k", sampling.top_k, 0, math.inf),
        ("min_p", sampling.min_p, 0.0, 1.0),
        ("presence_penalty", sampling.presence_penalty, -_PENALTY_MAX, _PENALTY_MAX),
        ("frequency_penalty", sampling.frequency_penalty, -_PENALTY_MAX, _PENALTY_MAX),
    )
    for name, value, low, high in ranges:
        if not low <= value <= high:  # also false for NaN
            raise InvalidRequest(f"{name} lies between {low} and {high}", param=name)
    if len(sampling.logit_bias) > LOGIT_BIAS_MAX:
        raise InvalidRequest(f"logit_bias has up to {LOGIT_BIAS_MAX} entries", param="logit_bias")
    for token_id, value in sampling.logit_bias.items():
        if not 0 <= token_id < vocab_size or not abs(value) <= _BIAS_MAX:
            raise InvalidRequest(
                f"logit_bias maps tokens 0 to {vocab_size - 1} to -100 ... 100",
                param="logit_bias",
            )
