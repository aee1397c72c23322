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
ANSWER_TOKENS: Final = 32
#: Ids of the prompt: ordinary tokens in any vocabulary, special ones mostly lie outside.
_FIRST_ID, _NUM_IDS = 32, 192
#: A claim may be this much higher: what is measured once is measured beside other work.
SLACK: Final = 1.5
#: Two greedy answers agree when they begin with so many equal tokens: kernels round differently,
#: so honest ones part sooner or later, but not at once.
AGREE_TOKENS: Final = 4
#: An answer that came in one piece took at least this long.
_TINY_S: Final = 1e-3


class Timing(msgspec.Struct, frozen=True):
    """When the parts of an answer came, in seconds since the offer.

    ``accepted_s`` is the first sign of life, ``first_s`` the first tokens, of which there were
    ``num_first``, ``last_s`` the last of ``num_tokens``.
    """

    accepted_s: float
    first_s: float
    last_s: float
    num_first: int
    num_tokens: int


class Measured(msgspec.Struct, frozen=True):
    """Tokens a second as the asker saw them."""

    prefill_tps: float
    decode_tps: float


def prompt_of(seed: bytes, num_tokens: int = PROMPT_TOKENS) -> list[int]:
    """The prompt that belongs to a seed: token ids, by SHAKE-256."""
    stream = hashlib.shake_256(b"starai/v1/admission" + seed).digest(num_tokens)
    return [_FIRST_ID + byte * _NUM_IDS // 256 for byte in stream]


def measured(timing: Timing, num_prompt: int) -> Measured:
    """What a timed answer says of its node.

    From acceptance to the first token the prompt was read; the journey is in neither. Tokens that
    came together with the first were not waited for, and do not count.
    """
    reading_s = max(timing.first_s - timing.accepted_s, _TINY_S)
    later = timing.num_tokens - timing.num_first
    if later:
        decode_tps = later / max(timing.last_s - timing.first_s, _TINY_S)
    else:
        decode_tps = timing.num_tokens / reading_s
    return Measured(num_prompt / reading_s, decode_tps)


def believed(claimed_tps: float, measured_tps: float) -> float:
    """The speed to reckon with: the claim if it is near what was measured, else the measurement.

    A node that claims nothing (0) gets what was measured.
    """
    if 0 < claimed_tps <= SLACK * measured_tps:
        return claimed_tps
    return measured_tps


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
