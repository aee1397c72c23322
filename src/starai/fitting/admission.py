"""Whether a node is as fast as it says, and computes what others compute: values in, verdicts out.

Whoever asks makes a prompt from a fresh seed, so that no answer can be known before; has it
continued greedily; takes the time; and has others continue the same. A claim of more than what was
measured counts for nothing, and so does an answer that the majority does not give. What a node
does that recognises such a question, or passes it on to a faster one, is not seen here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

#: Long enough that reading the prompt can be told from the journey, and short for a slow device.
PROMPT_TOKENS: Final = 256
#: A question of next to nothing: what it takes is the journey.
SMALL_PROMPT_TOKENS: Final = 4
ANSWER_TOKENS: Final = 32
#: Ids of the prompt: ordinary tokens in any vocabulary, special ones mostly lie outside.
_FIRST_ID, _NUM_IDS = 32, 192
#: A claim may be this much higher: what is measured once is measured beside other work.
SLACK: Final = 1.5
#: Two greedy answers agree when they begin with so many equal tokens: kernels round differently,
#: so honest ones part sooner or later, but not at once.
AGREE_TOKENS: Final = 4
#: What the wire and two busy processes add to a time, or take from it.
JITTER_S: Final = 0.005
#: The least time that anything takes.
_TINY_S: Final = 1e-4
#: Of the time to the first token this share at least counts as reading.
_JOURNEY_SHARE: Final = 0.5


class Timing(msgspec.Struct, frozen=True):
    """When the parts of an answer came, in seconds since the offer.

    ``first_s`` is when the first ``num_first`` tokens came, ``last_s`` the last of ``num_tokens``.
    """

    first_s: float
    last_s: float
    num_first: int
    num_tokens: int


class Rate(msgspec.Struct, frozen=True):
    """Tokens a second as the asker saw them, and what they may have been at most."""

    tps: float
    most_tps: float


class Measured(msgspec.Struct, frozen=True):
    """How fast a node read its prompt and wrote its answer."""

    prefill: Rate
    decode: Rate

    def better(self, other: Measured) -> Measured:
        """The better of two measurements, rate by rate: what was reached once can be reached."""
        return Measured(
            max(self.prefill, other.prefill, key=_tps), max(self.decode, other.decode, key=_tps)
        )


def prompt_of(seed: bytes, num_tokens: int = PROMPT_TOKENS) -> list[int]:
    """The prompt that belongs to a seed: token ids, by SHAKE-256."""
    stream = hashlib.shake_256(b"starai/v1/admission" + seed).digest(num_tokens)
    return [_FIRST_ID + byte * _NUM_IDS // 256 for byte in stream]


def measured(timing: Timing, num_prompt: int, journey_s: float = 0.0) -> Measured:
    """What a timed answer to a prompt of ``num_prompt`` tokens says of its node.

    ``journey_s`` is what a question of next to nothing took; half of the time at most is put down
    to it, because a node may dawdle there. Tokens that came together with the first were not waited
    for, and do not count.
    """
    reading_s = max(timing.first_s - journey_s, _JOURNEY_SHARE * timing.first_s)
    later = timing.num_tokens - timing.num_first
    if later:
        decode = _rate(later, timing.last_s - timing.first_s)
    else:
        decode = _rate(timing.num_tokens, reading_s)
    return Measured(_rate(num_prompt, reading_s), decode)


def believed(claimed_tps: float, seen: Rate) -> float:
    """The speed to reckon with: the claim if what was seen allows it, else what was seen.

    A node that claims nothing (0) gets what was measured.
    """
    return claimed_tps if 0 < claimed_tps <= SLACK * seen.most_tps else seen.tps


def _tps(rate: Rate) -> float:
    return rate.tps


def _rate(num_tokens: int, took_s: float) -> Rate:
    least_s = max(took_s - JITTER_S, _TINY_S)
    return Rate(num_tokens / max(took_s, _TINY_S), num_tokens / least_s)


def agree(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two answers to one prompt begin alike."""
    needed = min(AGREE_TOKENS, max(len(one), len(other)))
    return needed > 0 and list(one[:needed]) == list(other[:needed])


def compare(answers: Mapping[str, Sequence[int]]) -> dict[str, bool | None]:
    """Whose answer is right: that of a majority of at least two; None where there is none.

    One answer alone proves nothing, and two that differ do not say which is wrong.
    """
    votes = {
        party: sum(agree(answer, other) for other in answers.values())
        for party, answer in answers.items()
    }
    most = max(votes.values(), default=0)
    if most < 2 or 2 * most <= len(answers):
        return dict.fromkeys(answers)
    return {party: count == most for party, count in votes.items()}
