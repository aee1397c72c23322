"""How fast a model would run: the roofline, with how much of it programs reach in practice.

A token needs every weight it meets read once, and its keys and values (Williams, Waterman,
Patterson: Roofline, CACM 52(4), 2009); a prompt needs every weight multiplied by each of its
tokens. The factors were fitted on measured pairs of model and device: benchmarks/matching/fit.py
says how well, device by device, each left out of its own fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from starai.fitting.base import Pool, PoolKind, Prediction, Work
from starai.models.library import LibraryModel, Quantisation, read_bytes

#: Tokens already in the conversation when a rate is told: a short chat.
CHAT_TOKENS: Final = 512


class Factors(msgspec.Struct, frozen=True):
    """How a kind of device is used by today's programs.

    Attributes:
        memory: share of the peak bandwidth that reading weights reaches.
        token_s: seconds that each token takes beside that, whatever the model.
        slow_memory: `memory` in a host that keeps the GPU waiting.
        slow_token_s: `token_s` there.
        arithmetic: share of the peak arithmetic that a prompt reaches.
        token_arithmetic: share of it that a single token's products reach.
    """

    memory: float
    token_s: float
    slow_memory: float
    slow_token_s: float
    arithmetic: float
    token_arithmetic: float = 1.0


#: Fitted by benchmarks/matching/fit.py, but for ``arithmetic``: nothing measured says much about
#: prompts, and these are cautious.
FACTORS: Final[Mapping[PoolKind, Factors]] = {
    "nvidia": Factors(0.78, 0.0012, 0.75, 0.0018, 0.30),
    "amd": Factors(0.83, 0.0024, 0.32, 0.0029, 0.20),
    # Nobody measured one in an ordinary computer: the first two are a guess.
    "intel": Factors(0.45, 0.0016, 0.23, 0.0016, 0.15),
    "apple": Factors(0.70, 0.0043, 0.70, 0.0043, 0.40),
    # The data ask for no time beside reading; half a millisecond is our own engine's.
    "cpu": Factors(0.57, 0.0005, 0.57, 0.0005, 0.70, 0.20),
}


def work_of(model: LibraryModel, kind: Quantisation) -> Work:
    """What a model of the library costs as it is kept."""
    shape = model.shape
    return Work(
        read_bytes=read_bytes(model, kind),
        weights=model.active_parameters,
        kv_bytes=model.kv_bytes(CHAT_TOKENS) // CHAT_TOKENS,
        attention=4 * shape.layers * shape.heads * shape.head_width,
        answers=model.modality != "embedding",
    )


def predict(
    work: Work,
    pool: Pool,
    length: int = CHAT_TOKENS,
    factors: Mapping[PoolKind, Factors] = FACTORS,
) -> Prediction:
    """Tokens a second of one answer after ``length`` tokens, and of a prompt that long.

    What memory the model needs, and whether it is there, does not matter here.
    """
    used = factors[pool.kind]
    share = used.slow_memory if pool.slow_host else used.memory
    reading_s = (work.read_bytes + length * work.kv_bytes) / (pool.read_bytes_per_s * share)
    multiplying_s = 2.0 * work.weights / (pool.operations_per_s * used.token_arithmetic)
    token_s = max(reading_s, multiplying_s)
    token_s += used.slow_token_s if pool.slow_host else used.token_s
    # A prompt's token looks back at half of it on average.
    operations = 2.0 * work.weights + work.attention * length / 2
    prefill_s = operations / (pool.operations_per_s * used.arithmetic)
    # However short, a prompt costs one reading of the weights.
    prefill_s = max(prefill_s, token_s / max(length, 1))
    return Prediction(1.0 / prefill_s, 1.0 / token_s if work.answers else 0.0)


def from_slice(
    layers: int,
    token: tuple[float, float],
    prompt: tuple[float, float],
    prompt_tokens: int,
    head_bytes: int,
    pool: Pool,
) -> Prediction:
    """Tokens a second of a model of which a few layers were timed.

    Args:
        layers: of the whole model.
        token: seconds of one token's pass whatever the layers, and of each layer.
        prompt: the same of a prompt.
        prompt_tokens: its length.
        head_bytes: of the output layer, which was not timed: a token reads it.
        pool: where all of this runs.
    """
    head_s = head_bytes / (pool.read_bytes_per_s * FACTORS[pool.kind].memory)
    token_s = token[0] + layers * token[1] + head_s
    prompt_s = prompt[0] + layers * prompt[1] + head_s
    return Prediction(prompt_tokens / prompt_s, 1.0 / token_s)
